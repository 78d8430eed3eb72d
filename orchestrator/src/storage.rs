//! Tenants' files: room on the disk, copies, snapshots.

pub mod backup_task;
pub mod disk;
pub mod lock;
pub mod measured;
pub mod vault;
