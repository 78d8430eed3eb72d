//! The lifecycle of tenants: a pure state machine and the task that drives it.

pub mod driver;
pub mod lifecycle;
pub mod previous_run;
