//! Metering: usage reports, the ledger, and the quotas, revenue and checks derived from it.
//!
//! ```text
//!  gateway's report ─► ledger (one thread) ─► store (SQLite)
//!                          │                    │ hours ─► days ─► months
//!                          │                    │ quarantine: rejected rows
//!                          ▼                    ▼
//!                     tally: notices       queries: month, revenue, reconciliation
//! ```
//!
//! [`sums`], [`suspicion`], [`tally`], [`revenue`] and [`reconcile`] are pure arithmetic; [`names`]
//! tells tenants from invented names; [`store`] alone names the database; [`ledger`] owns the thread
//! that writes to it.

pub(crate) mod exhausted;
pub(crate) mod ledger;
pub(crate) mod metrics;
pub mod names;
pub mod received;
pub(crate) mod reconcile;
pub mod revenue;
pub mod store;
pub mod sums;
pub mod suspicion;
pub mod tally;
