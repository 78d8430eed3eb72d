//! The harness: builders that start the whole gateway out of its real parts, and clients that talk
//! to it.
//!
//! A [`Stack`] is a relay, an orchestrator and an Envoy as processes of their own, in one folder,
//! on ports of their own; dropping it ends all of them and every tenant they started. The
//! end-to-end suite, `make run`, the benchmarks and the drills are all made of it.

pub mod bare_sq;
pub mod bench;
pub mod certs;
pub mod cli;
pub mod client;
#[cfg(feature = "containers")]
mod container;
pub mod dev;
pub mod docker;
pub mod drill;
pub mod envoy;
pub mod load;
pub mod orchestrator;
pub mod part;
pub mod poll;
pub mod ports;
pub mod processes;
pub mod proof;
pub mod raw;
pub mod reconcile;
pub mod registry;
pub mod relay;
pub mod scale;
pub mod service;
pub mod signals;
pub mod stack;
pub mod tools;

pub use client::{Answer, Client, Http};
pub use load::Load;
pub use poll::{holds, until};
pub use stack::{Runtime, Stack};
