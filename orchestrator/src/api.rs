//! HTTP endpoints of the orchestrator.

pub mod admin;
pub mod lease;
pub mod loopback;
pub mod snapshots;
pub mod status;
pub mod usage;
