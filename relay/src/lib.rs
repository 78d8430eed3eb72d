//! The ranch side of the gateway: answers which key is good, and tells when that changes.
//!
//! ```text
//! source ──bytes──► registry ──Registry──► state::Book ──View──► api ◄──HTTP/1.1── connection ◄── TLS
//! (file, SQ)        (pure)                 (pure)        swapped whole
//!    ▲
//!    └── store ◄── edit (pure) ◄── commands ◄── cli
//! ```
//!
//! | module | does |
//! |---|---|
//! | [`registry`] | the registry's text, read (pure) |
//! | [`edit`], [`store`] | edits that keep everything else (pure); the file, changed atomically |
//! | [`source`], [`feed`] | file or SQ server, polled; the one task that publishes views |
//! | [`guard`] | whether a text looks cut and must prove itself (pure) |
//! | [`kept`] | the last good registry, for the next start |
//! | [`state`], [`lookup`] | revision, changes, verdicts (pure) |
//! | [`api`], [`server`], [`connection`], [`tls`] | HTTP, connections, mutual TLS |
//! | [`cli`], [`commands`], [`config`] | what an operator writes |
//! | [`metrics`] | what an operator watches |

pub mod api;
pub mod cli;
pub mod commands;
pub mod config;
pub mod connection;
pub mod edit;
pub mod feed;
pub mod guard;
pub mod kept;
pub mod lookup;
pub mod metrics;
pub mod registry;
pub mod server;
pub mod source;
pub mod state;
pub mod store;
pub mod tls;

pub use config::Config;
pub use server::run;

/// A registry with documented tiers and no tenants: where an operator starts.
pub const TEMPLATE: &str = include_str!("template.phext");
