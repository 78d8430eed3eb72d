//! The words that cross a process border: what the filter, the relay and the orchestrator say to
//! each other, and the configuration an operator writes for the filter.
//!
//! | module | who says it |
//! |---|---|
//! | [`key`], [`tenant`], [`limits`] | everyone: the nouns |
//! | [`verify`] | filter → relay: is this key good, what has changed |
//! | [`lease`] | filter → orchestrator: may I route to this tenant |
//! | [`usage`] | filter → orchestrator: what was served |
//! | [`headers`] | names and paths of all of the above |
//! | [`calendar`], [`time`] | months and dates in UTC; units of time |
//! | [`sq_version`] | releases of SQ and what they can do |
//! | [`containers`] | labels of the tenants' containers |
//! | [`deadlines`] | times on which all parts must agree |
//! | [`config`] | operator → filter: the plugin's JSON |
//!
//! This crate reads no clock, file, socket, environment or randomness, and decides nothing.
//! Answers tolerate fields they do not know, so that two releases can talk; configuration does not.

pub mod calendar;
pub mod config;
pub mod containers;
pub mod deadlines;
pub mod headers;
pub mod key;
pub mod lease;
pub mod limits;
pub mod sq_version;
pub mod tenant;
pub mod time;
pub mod usage;
pub mod verify;

pub use config::FilterConfig;
pub use key::{ApiKey, KeyHash};
pub use lease::{LeaseRefusal, LeaseRequest, LeaseResponse, TenantNotice, WakeKind};
pub use limits::{KeepAwake, Limits, WarmHours};
pub use sq_version::SqVersion;
pub use tenant::{GatewayId, TenantId, TierName};
pub use usage::{Counters, UsageReport, UsageResponse};
pub use verify::{ChangesResponse, Epoch, TenantStatus, Verdict, VerifyRequest, VerifyResponse};
