//! Types that cross a process boundary: requests and responses between the filter, the relay and the
//! orchestrator, the filter's configuration, and the vocabulary that all of them share.
//!
//! | module | contents |
//! |---|---|
//! | [`key`], [`tenant`], [`limits`] | API keys and their digests; names; what a tenant may use |
//! | [`verify`] | filter → relay: verification of a key, changes of verdicts |
//! | [`lease`] | filter → orchestrator: permission to route to a tenant |
//! | [`usage`] | filter → orchestrator: counters of requests and traffic |
//! | [`headers`] | names of headers, paths and clusters |
//! | [`config`] | operator → filter: the JSON in Envoy's configuration |
//! | [`sq_version`] | releases of SQ and what they can do |
//! | [`containers`] | labels of the tenants' containers |
//! | [`deadlines`] | times on which all parts must agree |
//! | [`calendar`], [`time`] | months and dates in UTC; units of time |
//!
//! This crate reads no clock, file, socket, environment or randomness, and makes no decisions.
//! Responses tolerate unknown fields, so that releases of the parts can differ; settings do not.

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
pub use limits::{ByteLimit, CountLimit, KeepAwake, Limits, WarmHours};
pub use sq_version::SqVersion;
pub use tenant::{GatewayId, TenantId, TierName};
pub use usage::{Counters, UsageReport, UsageResponse};
pub use verify::{ChangesResponse, Epoch, TenantStatus, Verdict, VerifyRequest, VerifyResponse};
