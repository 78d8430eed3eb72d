//! The log of operators' actions: who did what to which tenant, when, and how it ended.
//!
//! ```text
//!  begin (on disk) ─► the action ─► outcome (on disk)
//!
//!  audit.jsonl.7 … audit.jsonl.1 ─► audit.jsonl       one JSON object per line, oldest first;
//!                                                     each has the hash of the one before
//! ```
//!
//! An action whose begin can't be written does not happen. One without an outcome was interrupted, or
//! is under way. Files are appended to and renamed, never rewritten, and are readable by their owner
//! alone. The chain shows that a line was changed, removed or inserted. It does not show that the end
//! of the log was cut off, or that all of it was replaced by a user who can write the file:
//! compare the last hash with one that was noted elsewhere.
//!
//! The orchestrator and `relay registry` share this crate, because both write such a log and neither
//! may depend on the other.

mod entry;
mod log;
mod verify;

pub use entry::{Action, ActionReport, Actor, Entry, Outcome, reports};
pub use log::{AuditError, AuditLog, FILE_MAX_BYTES, FILES_MAX};
pub use verify::{Broken, Verified};
