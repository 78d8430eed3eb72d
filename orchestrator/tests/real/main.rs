//! The runtimes and the xDS server against the real SQ, Docker and Envoy.
//!
//! What needs a Docker daemon is ignored unless it is asked for: `make integration-test` does.

// All of it is tests.
#![allow(clippy::unwrap_used, clippy::panic)]

mod cli;
mod docker;
mod process;
mod rules;
mod tools;
mod xds;
