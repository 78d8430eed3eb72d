//! The lifecycle of all tenants: a pure state machine, and the one task that drives it.
//!
//! # Files
//!
//! | file | content |
//! |---|---|
//! | `lifecycle.rs` | the state machine, with its diagram and safety rules; pure |
//! | `driver.rs` | the task that owns the machine and performs its effects |
//! | `driver/handle.rs` | the API of the driver for the other tasks |
//! | `driver/jobs.rs` | calls of the runtime and the vault, each ending in one event |
//! | `pressure.rs` | the watch over the host's memory and the runtime's bound on instances |
//! | `backup_task.rs` | good copies of the phexts of awake tenants |
//! | `metrics.rs` | Prometheus metrics of leases, wakes, copies and the host |
//! | `awake_records.rs` | records of started tenants, which the next process starts again |
//! | `previous_run.rs` | the record that one orchestrator process leaves to the next |
//!
//! # Threading
//!
//! The state machine has no lock, because exactly one task, the driver, owns it. Everything else
//! reaches that task through a channel or as the result of a job:
//!
//! ```text
//!  gate API ┐                                     ┌─ job: start, pause, resume, stop
//!  admin API├─ Handle ─► commands ─►┌──────────┐──┤  (a task each; calls the runtime
//!  pressure │            (1,024)    │  driver  │  │   and, on blocking threads, the vault)
//!  backup   ┘                       │          │◄─┴─ one event when the job ends
//!  xDS server ────────── XdsEvent ─►│ Lifecycle│──► Publisher (clusters for Envoy)
//!  runtime ───────────────── Died ─►└──────────┘──► replies to lease requests (oneshot)
//! ```
//!
//! - A [`Handle`](driver::Handle) sends a command with a one-shot channel for the response and
//!   awaits that. The driver answers most commands at once. A lease request may wait for a wake:
//!   the driver keeps its channel until the machine decides.
//! - The driver performs an effect either at once (publishing a cluster, replying) or by spawning a
//!   job. It awaits nothing but its next input, so a slow runtime call delays no other tenant.
//! - The machine requests one runtime call per tenant at a time, so jobs for one tenant never
//!   overlap. Memory changes and reclaims are the exception: no state depends on their result.
//! - The driver ends with an error if a channel that feeds it closes. The process then ends as
//!   well: a lifecycle that misses events must not go on.

pub mod awake_records;
pub(crate) mod backup_task;
pub mod driver;
pub mod lifecycle;
pub(crate) mod metrics;
pub(crate) mod pressure;
pub(crate) mod previous_run;
