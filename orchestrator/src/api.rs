//! The HTTP APIs of the orchestrator.
//!
//! | API | on | client | modules |
//! |---|---|---|---|
//! | gate | a Unix socket | the filter in Envoy | [`lease`], [`usage`] |
//! | admin | a Unix socket | the operator | [`admin`], [`snapshots`], [`usage`] |
//! | metrics | TCP, loopback | Prometheus | [`metrics`] |
//!
//! The bodies of the admin API's responses are re-exported here, for clients in Rust.

pub(crate) mod admin;
pub(crate) mod audit;
pub(crate) mod lease;
pub(crate) mod metrics;
pub(crate) mod snapshots;
pub(crate) mod startup;
pub(crate) mod status;
pub(crate) mod usage;

mod loopback;

pub use admin::SleepReport;
pub use audit::AuditFile;
pub use snapshots::{RestoreReport, SnapshotFolder};
pub use status::{HostStatus, LastWake, Status, TenantStatus};
pub use usage::{LedgerFile, MonthUsage, Quarantine, Quota, Quotas, StorageUsage, TenantUsage};
