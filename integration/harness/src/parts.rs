//! The parts of a stack as processes: Envoy, relay, orchestrator.

#[cfg(feature = "containers")]
mod container;
pub mod envoy;
pub mod orchestrator;
pub mod process;
pub mod relay;
pub mod service;
