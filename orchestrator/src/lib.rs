//! The daemon on the gateway host: starts and stops tenants' SQ databases, publishes them to Envoy
//! and keeps the ledger of usage.
//!
//! # Rooms
//!
//! | module | purpose | kind |
//! |---|---|---|
//! | [`tenants`] | lifecycle of the tenants: a pure state machine and the task that drives it | core, shell |
//! | [`runtime`] | starts, pauses and stops SQ, in Docker or as a process | shell |
//! | [`xds`] | publishes clusters to Envoy; a pure session behind a gRPC server | core, shell |
//! | [`usage`] | usage reports, the ledger, quotas, revenue, reconciliation | core, shell |
//! | [`storage`] | disk, good copies of phexts, snapshots | shell |
//! | [`api`] | HTTP for the filter and the operator | shell |
//! | [`cli`] | the commands | shell |
//! | [`app`] | composition root: builds all of the above and ends it in order | shell |
//! | [`config`] | settings, checked as a whole | types |
//! | [`host`] | clock, boot id, memory and limits of this machine | shell |
//! | [`sockets`] | Unix sockets that check who connects | shell |
//!
//! # Dependencies
//!
//! Types ← pure core ← I/O: a module names only modules to its left.
//!
//! ```text
//!  protocol, sockets, config, host ← xds, runtime, storage, usage ← tenants ← api ← app ← cli ← main
//! ```
//!
//! # Threads and tasks
//!
//! A multi-threaded tokio runtime has the tasks below; [`app`] starts them, and one that ends before
//! the shutdown takes the process down with its name and error.
//!
//! | task or thread | owns | talks to |
//! |---|---|---|
//! | driver | the lifecycle of all tenants | all others, by commands in a channel ([`tenants::driver::Handle`]); starts one job per start, pause or stop |
//! | gate API | nothing | driver (a lease waits for its reply), ledger |
//! | admin API | nothing | driver, ledger, runtime, vault |
//! | metrics | nothing | no other: it reads counters |
//! | xDS server | one session per Envoy | driver, by events in a channel ([`xds::XdsEvent`]) |
//! | backup | rounds of good copies | driver, vault on blocking threads |
//! | memory watch | nothing | driver, when memory or instances run short |
//! | ledger (a thread) | the database connection that writes | the gate API, by reports in a channel; publishes the tally behind a lock |
//! | ledger watch | nothing | ends the process if the ledger's thread ends |
//!
//! Files are read and written on tokio's blocking threads, and so are ledger queries, each on a
//! separate read-only connection. Every channel, cache and pool has a bound, stated at its
//! constant.
//!
//! # Where to start reading
//!
//! [`app::serve`] for the whole; [`tenants::lifecycle`] for the state machine; [`api::lease`] for
//! the path of a request that wakes a tenant; [`usage`] for the path of a usage report.

#![allow(
    rustdoc::private_intra_doc_links,
    reason = "`make doc` documents private items, which most readers of this crate need"
)]

pub mod api;
pub(crate) mod app;
pub mod cli;
pub mod config;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod host;
pub mod runtime;
pub mod sockets;
pub mod storage;
pub mod tenants;
pub mod usage;
pub mod xds;
