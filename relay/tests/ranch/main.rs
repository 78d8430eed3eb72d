//! A relay as a gateway sees it: real TLS over loopback, real files, a real SQ server.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod cli;
mod client;
mod connections;
mod cut;
mod serve;
mod source;
mod sq;
mod tls;
mod world;
