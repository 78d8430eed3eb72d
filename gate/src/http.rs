//! HTTP: the meaning of a request, what SQ is sent, and what the client gets back.
//!
//! | module | purpose |
//! |---|---|
//! | [`request`] | parses a request's head and rebuilds it for SQ |
//! | [`endpoint`] | the table of endpoints: methods, parameters, bodies |
//! | [`coordinate`], [`text`], `params`, `query` | the parts of a request and their syntax |
//! | [`body`] | checks a request body while it passes |
//! | [`response`] | rewrites SQ's response for the client |
//! | [`pages`] | pages that need no key |
//! | [`grpc`] | undoes what Envoy makes of responses to gRPC |
//! | [`refusal`] | every error response of the gateway itself |

pub(crate) mod body;
pub(crate) mod coordinate;
pub(crate) mod endpoint;
pub mod grpc;
pub(crate) mod pages;
mod params;
mod query;
pub mod refusal;
pub mod request;
pub mod response;
pub mod text;
