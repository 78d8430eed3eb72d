//! Every decision on the request path, pure: no clock, no I/O, no randomness. Time is an argument.
//!
//! | module | decides |
//! |---|---|
//! | [`engine`] | ties the others together: `on event → effects`, one per VM |
//! | [`credentials`], [`verdicts`], [`feed`], [`strangers`] | whose request it is, and since when that may be wrong |
//! | [`request`], [`answer`] | what is asked, written anew; what of SQ's answer is shown |
//! | [`bucket`], [`quota`], [`storage`], [`usage`] | what a tenant may use and has used |
//! | [`bodies`] | how much of Envoy's memory a tenant may have |
//! | [`leases`] | which tenants may be routed to |
//! | [`stream`], [`cache`], [`shared`] | one request; a bounded map; what VMs have in common |
//! | [`refusal`] | every answer of our own that is not a success |

pub mod answer;
pub mod bodies;
pub mod bucket;
pub mod cache;
pub mod credentials;
pub mod engine;
pub mod feed;
pub mod leases;
pub mod quota;
pub mod refusal;
pub mod request;
pub mod shared;
pub mod storage;
pub mod strangers;
pub mod stream;
pub mod usage;
pub mod verdicts;

pub use engine::Gate;
pub use refusal::{Refusal, RefusalKind};
