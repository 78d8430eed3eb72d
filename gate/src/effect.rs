//! The boundary between the gate and its shell: ids, calls, and what the gate wants done.
//!
//! A shell reports each event to [`Gate`](crate::Gate) and then performs the effects that it gets
//! from [`Gate::next_effect`](crate::Gate::next_effect) until there are none. This is the only
//! channel for decisions: an effect may name the stream whose callback is running or any other
//! stream that is paused.
//!
//! - An effect on another stream is performed in the context of that stream, and the stream is
//!   resumed unless it got a reply.
//! - A hostcall may report an event of another stream before it returns: a reply is a response,
//!   whose head the filter sees. The effects of such an event are performed at once, and those that
//!   were waiting stay with the callback that they belong to.
//! - The effect on the stream of the running callback decides what the callback returns to the
//!   host. A call that cannot be sent is reported back at once, so this effect may come after it.

use std::borrow::Cow;

/// One request, by the number that the host gave to its context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u32);

/// One outbound call, numbered by the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// Headers to write. The names are all known to the gate.
pub type Headers = Vec<(&'static str, Cow<'static, str>)>;

/// A response made by the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// All headers except those that Envoy adds.
    pub headers: Headers,
    /// The body, empty for a preflight.
    pub body: String,
}

/// An outbound HTTP call, made in the context of the event that caused it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Reported back when the call ends.
    pub id: CallId,
    /// The Envoy cluster to call.
    pub cluster: String,
    /// The HTTP method.
    pub method: &'static str,
    /// The path with its query.
    pub path: String,
    /// A JSON document, if the method takes a body.
    pub body: Option<String>,
    /// The deadline of the whole call, in milliseconds from now.
    pub timeout_ms: u32,
}

/// An instruction to the shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send this call.
    Call(Call),
    /// Drop the response to this call when it comes: the stream that made the call has ended.
    Abandon(CallId),
    /// Replace the request's headers by exactly these and let the request go on.
    Forward(StreamId, Headers),
    /// Let the withheld piece of the request's body go on.
    Resume(StreamId),
    /// Respond to the request and let nothing of it go on.
    Reply(StreamId, Reply),
    /// Set these headers of the response and leave the others.
    SetResponseHeaders(StreamId, Headers),
    /// Remove the response's `content-length`: its body will be rewritten.
    RemoveContentLength(StreamId),
}

impl Effect {
    /// The stream that the effect is about; calls are about none.
    pub fn stream(&self) -> Option<StreamId> {
        match self {
            Self::Call(_) | Self::Abandon(_) => None,
            Self::Forward(id, _)
            | Self::Resume(id)
            | Self::Reply(id, _)
            | Self::SetResponseHeaders(id, _)
            | Self::RemoveContentLength(id) => Some(*id),
        }
    }
}

/// A call without a response: it was not sent, the connection failed, or its deadline passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallFailed;

/// Status and body of the response to a call.
pub type CallResult<'a> = Result<(u16, &'a [u8]), CallFailed>;
