//! The parts of a stack: relay, orchestrator and Envoy.
//!
//! A part is a [`service::Service`], which starts and ends a [`process::Process`], with a client
//! for its interface. Envoy can also run in a container.

#[cfg(feature = "containers")]
mod container;
pub mod envoy;
pub mod orchestrator;
pub mod process;
pub mod relay;
pub mod service;
