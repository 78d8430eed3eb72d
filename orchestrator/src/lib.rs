//! The gateway host side: tenants' lifecycle, clusters for Envoy, ledger of usage.

pub mod api;
pub mod app;
pub mod cli;
pub mod config;
pub mod host;
pub mod metrics;
pub mod runtime;
pub mod storage;
pub mod tenants;
pub mod usage;
pub mod xds;
