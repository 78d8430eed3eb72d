//! Limits and metering: what a tenant may use, and what it has used.
//!
//! | module | purpose |
//! |---|---|
//! | [`rate`] | rate limit shared by all workers of an Envoy |
//! | [`cost`] | the bytes that a request costs |
//! | [`quota`] | requests per day and month, bytes of responses per day |
//! | [`storage`] | storage and number of phexts, estimated between two measurements |
//! | [`body_budget`] | bound on Envoy's memory for one tenant's request bodies |
//! | [`usage`] | counters per tenant and hour, reported to the orchestrator |

pub(crate) mod body_budget;
pub(crate) mod cost;
pub mod quota;
pub mod rate;
pub mod storage;
pub mod usage;
