//! Hostile clients against a running gateway, bounded in time, and their effect on other clients.
//!
//! | module | attack |
//! |---|---|
//! | [`idle_connections`] | as many connections as one address gets, without a request |
//! | [`stalled_streams`] | HTTP/2 streams that never end, each with the largest head that is allowed |
//!
//! The end-to-end tests and `make drill` run the same attacks. [`watch`] measures Envoy's memory
//! and sends a probe's requests while an attack runs.

mod frames;
pub mod idle_connections;
pub mod stalled_streams;
pub mod watch;

use std::fs;

use anyhow::{Context, Result};
use harness::Stack;

/// What an attacker sends as its API key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// No key.
    Absent,
    /// A well-formed key that the registry does not have.
    Invented,
    /// The key of a tenant.
    Valid(String),
}

impl Credentials {
    /// Value of the `authorization` header.
    fn authorization(&self) -> Option<String> {
        match self {
            Self::Absent => None,
            Self::Invented => Some(format!("Bearer pmb-v1-{:032x}", fastrand::u128(..))),
            Self::Valid(key) => Some(format!("Bearer {key}")),
        }
    }
}

/// Reads a number that Envoy's configuration sets, so that attacks are as large as it allows.
fn configured(stack: &Stack, setting: &str) -> Result<usize> {
    let text = fs::read_to_string(stack.envoy.config())?;
    let (_, after) = text
        .split_once(&format!("{setting}: "))
        .with_context(|| format!("no {setting} in Envoy's configuration"))?;
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().with_context(|| format!("{setting}: {digits}"))
}
