//! The relay as gateways and operators use it: real TLS over loopback, real files, real SQ servers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod cli;
mod client;
mod connections;
mod serve;
mod source;
mod sq;
mod test_ranch;
mod tls;
mod truncation;
