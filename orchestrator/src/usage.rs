//! Metering: usage reports, the ledger, and the quotas, revenue and checks derived from it.
//!
//! ```text
//!  gateway's report ─► ledger (one thread) ─► store (SQLite)
//!                          │                    │ hours ─► days ─► months
//!                          ▼                    ▼
//!                     tally: notices       queries: month, revenue, reconciliation
//! ```
//!
//! [`sums`], [`tally`], [`revenue`] and [`reconcile`] are pure arithmetic; [`store`] alone names the
//! database; [`ledger`] owns the thread that writes to it.

pub mod exhausted;
pub mod ledger;
pub mod metrics;
pub mod reconcile;
pub mod revenue;
pub mod store;
pub mod sums;
pub mod tally;
