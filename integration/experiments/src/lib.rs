//! Experiments on the whole gateway, run with its real parts.
//!
//! | module | question |
//! |---|---|
//! | [`mod@bench`] | What do a warm request, limits and a wake cost? |
//! | [`scale`] | What does one host pay for 100 to 10,000 tenants? |
//! | [`drill`] | What do clients see while a part fails? |
//! | [`proof`] | Which data is lost when SQ dies during writes? |
//! | [`reconcile`] | Do clients, Envoy and the ledger count the same requests? |
//! | [`attack`] | What do other clients see while hostile clients are connected? |
//!
//! Each module has a `run` that prints a table, goals beside the figures. The attacks are part of
//! the drills.

pub mod attack;
pub mod bench;
mod columns;
pub mod drill;
pub mod proof;
pub mod reconcile;
pub mod scale;
