//! The ranch side of the gateway: verifies API keys against the registry and announces changes.
//!
//! ```text
//!  operator ──► cli ──► edit ───writes───► registry file, or a phext in an SQ server
//!                                                │
//!                                             source   polls until a text is complete
//!                                                │ bytes
//!                                            registry  parses; reports every fault at once
//!                                                │ Registry
//!  gateway ◄── HTTP/1.1 over mutual TLS ── serve ◄┘    publishes verdicts and their revision
//! ```
//!
//! | room | contents |
//! |---|---|
//! | [`registry`] | the format: parsing, limits, redaction, signs of truncation (pure) |
//! | [`edit`] | edits that keep every other byte (pure), and the file that they replace atomically |
//! | [`source`] | where the registry comes from: a file or an SQ server; the last good copy |
//! | [`serve`] | reload, verdicts and revision, HTTP interface, connections, TLS, metrics |
//! | [`cli`] | the command line, the `relay registry` commands and their output |
//! | [`config`] | the settings in `relay.toml` |
//! | `atomic_file.rs`, `secret_file.rs`, [`clock`] | leaves that several rooms use |
//!
//! # Invariants
//!
//! - A registry with a fault, or one that looks truncated, never replaces a good one. The relay
//!   keeps answering from the last good registry, also after a restart.
//! - Readers see one whole registry: a view is immutable and is swapped in
//!   one step together with its revision.
//! - The revision grows exactly when at least one key's verdict changes; within one epoch, a gateway
//!   that drops the digests that the changes feed names is never out of date.
//! - No response is given without a client certificate from a trusted CA.
//! - A key's plain text is printed once, by the command that generated it. It is never logged and
//!   never written to the last good copy.
//! - An edit starts from a valid registry, results in a valid one, and replaces the file atomically
//!   or not at all.

mod atomic_file;
pub mod cli;
pub mod clock;
pub mod config;
pub mod edit;
pub mod registry;
mod secret_file;
pub mod serve;
pub mod source;

pub use config::Config;
pub use serve::run;

/// The registry that `relay registry init` writes: documented tiers and no tenants.
pub const TEMPLATE: &str = include_str!("template.phext");
