//! HTTP: the meaning of a request, what SQ is sent, and what the client gets back.
//!
//! | module | purpose |
//! |---|---|
//! | [`request`] | parses a request's head and rebuilds it for SQ |
//! | [`endpoint`] | the table of endpoints: methods, parameters, bodies |
//! | [`coordinate`], [`text`], `params`, `query` | the parts of a request and their syntax |
//! | [`body`] | checks a request body while it passes |
//! | [`response`] | rewrites SQ's response for the client |
//! | [`refusal`] | every error response of the gateway itself |

pub(crate) mod body;
pub(crate) mod coordinate;
pub(crate) mod endpoint;
mod params;
mod query;
pub mod refusal;
pub mod request;
pub mod response;
pub mod text;
