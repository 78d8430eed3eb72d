//! Metering: usage reports, the ledger and what is derived from it.

pub mod exhausted;
pub mod ledger;
pub mod metrics;
pub mod reconcile;
pub mod revenue;
pub mod store;
pub mod sums;
