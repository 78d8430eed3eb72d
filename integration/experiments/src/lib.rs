//! Measurements of the whole gateway, and what it does while its parts fail.

pub mod bench;
pub mod drill;
pub mod proof;
pub mod reconcile;
pub mod scale;
