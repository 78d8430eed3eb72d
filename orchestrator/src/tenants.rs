//! The lifecycle of tenants: a pure state machine and the task that drives it.

pub(crate) mod backup_task;
pub mod driver;
pub mod lifecycle;
pub mod previous_run;
