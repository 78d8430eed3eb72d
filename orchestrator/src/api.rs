//! The HTTP APIs of the orchestrator, on loopback only.
//!
//! | API | client | modules |
//! |---|---|---|
//! | gate | the filter in Envoy | [`lease`], [`usage`] |
//! | admin | the operator, Prometheus | [`admin`], [`snapshots`], [`usage`] |
//!
//! [`loopback`] keeps web pages out of both. The bodies of the admin API's responses are re-exported
//! here, for clients in Rust.

pub(crate) mod admin;
pub(crate) mod lease;
pub(crate) mod loopback;
pub(crate) mod snapshots;
pub(crate) mod startup;
pub(crate) mod status;
pub(crate) mod usage;

pub use admin::SleepReport;
pub use snapshots::{RestoreReport, SnapshotFolder};
pub use status::{HostStatus, LastWake, Status, TenantStatus};
pub use usage::{LedgerFile, MonthUsage, Quota, Quotas, StorageUsage, TenantUsage};
