//! The policy of the request path, pure: no clock, I/O or randomness. Time is an argument.
//!
//! | room | decides |
//! |---|---|
//! | [`engine`] | ties the others together: `on event → effects`, one per VM |
//! | [`identity`] | which tenant a request belongs to, and when that has to be verified again |
//! | [`http`] | the meaning of a request, what SQ is sent, what the client gets back |
//! | [`limits`] | what a tenant may use, and what it has used |
//! | [`effect`] | the border with the shell: ids, calls, and what the gate wants done |
//! | [`shared`] | the data that all VMs of one Envoy share |

pub mod effect;
pub mod engine;
pub mod http;
pub mod identity;
pub mod limits;
pub mod shared;

pub use engine::Gate;
pub use http::refusal::{Refusal, RefusalKind};
