//! Tests of the runtimes and the xDS server against the real SQ, Docker and Envoy.
//!
//! | file | content |
//! |---|---|
//! | `contract.rs` | rules that every runtime must keep |
//! | `process.rs` | the process runtime: the contract, and its own rules |
//! | `docker.rs` | the same for the Docker runtime |
//! | `firewall.rs` | who reaches tenants, and whom they reach |
//! | `xds.rs` | the xDS server against Envoy |
//! | `cli.rs` | exit codes and messages of the program |
//! | `tools.rs` | paths of the real programs, and a client of SQ |
//!
//! Tests that need a Docker daemon are ignored by default; `make integration-test` runs them.

// Everything here is a test.
#![allow(clippy::unwrap_used, clippy::panic)]

mod cli;
mod contract;
mod docker;
mod firewall;
mod process;
mod tools;
mod xds;
