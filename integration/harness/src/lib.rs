//! Builders that start the whole gateway from its real parts, and clients that talk to it.
//!
//! A [`Stack`] is a relay, an orchestrator and an Envoy as separate processes, in one folder and on
//! free ports. Dropping it ends all of them and every tenant that they have started.

pub mod bare_sq;
pub mod client;
pub mod host;
pub mod parts;
pub mod poll;
pub mod registry;
pub mod stack;

pub use client::load::Load;
pub use client::{Answer, Client, Http};
pub use poll::{holds, until};
pub use stack::{Runtime, Stack};
