//! Files of tenants and of the orchestrator: disk space, copies, snapshots.
//!
//! | question | file |
//! |---|---|
//! | How much of the disk does a tenant use, and is the host full? | [`disk`], [`measured`] |
//! | What is lost if SQ or the host crashes, and how is it repaired? | [`vault`] |
//! | How is a snapshot taken and restored? | [`vault::snapshots`] |
//! | May a second orchestrator serve the same tenants? | [`lock`] |
//! | How is a file replaced so that no crash leaves a part of it? | `atomic_file` |
//! | Which files may only the orchestrator's user read? | `private` |
//! | How is a file opened that a tenant may have planted? | `tenant_file` |
//!
//! Everything here blocks on files and knows nothing of tasks: `tenants::backup_task` calls the vault
//! while tenants run, `tenants::driver` before starts and after stops.

pub(crate) mod atomic_file;
pub mod disk;
pub mod lock;
pub mod measured;
pub(crate) mod private;
pub(crate) mod tenant_file;
pub mod vault;
