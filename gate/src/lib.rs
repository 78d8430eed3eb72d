//! The policy of the request path, pure: no clock, I/O or randomness. Time is an argument.
//!
//! A shell (the proxy-wasm module in `filter`) reports events to the [`Gate`] and performs its
//! [effects](effect::Effect). There is one gate per VM; the VMs of one Envoy share a map with
//! compare-and-swap.
//!
//! | module | decides |
//! |---|---|
//! | [`engine`] | ties the others together: `on event → effects` |
//! | [`identity`] | the tenant of a request, and when its verdict has to be verified again |
//! | [`http`] | the meaning of a request, the request that SQ gets, the response of the client |
//! | [`limits`] | the limits of a tenant, and the counters of what it has used |
//! | [`effect`] | the boundary with the shell: ids, calls, and what the gate wants done |
//! | [`shared`] | the data that all VMs of one Envoy share |
//!
//! Invariants, each with its test:
//!
//! - A request is forwarded or answered, never both, and none waits past its deadline.
//! - The API key itself is never stored, sent or logged, only its digest.
//! - No header or byte of a path reaches SQ unless the gate has written it.
//! - A key that was revoked before the VM's last contact with the relay is never served.
//! - All VMs of an Envoy together let no more requests pass than the bucket holds, and overshoot a
//!   storage limit by at most one body.
//! - A metered request is in exactly one usage report.
//! - Every queue, cache and map has a bound.

#![allow(
    rustdoc::private_intra_doc_links,
    reason = "`make doc` documents private items, which most readers of this crate need"
)]

pub mod effect;
pub mod engine;
pub mod http;
pub mod identity;
pub mod limits;
pub mod shared;

pub use engine::Gate;
pub use http::refusal::{Refusal, RefusalKind};
