//! One request from its head to its end, and what of its head is kept.
//!
//! ```text
//!                           lease ran out while the body came
//!  head ──┬──────────────► Forwarded ──────► Held ──┬──► end
//!         ├─► Waiting ───►   │  ▲ leased again │    │
//!         │      │           │  └──────────────┤    │
//!         │      │ refused   ▼ body refused    │    │
//!         └──────┴────────► Answered ◄─────────┘────┘
//! ```
//!
//! A request is forwarded or answered here, never both, and never twice: the gate's `settle`
//! is the only way out of waiting.

use std::rc::Rc;

use protocol::{KeyHash, TenantId, Verdict, WakeKind};

use crate::RefusalKind;
use crate::engine::{CallId, Headers};
use crate::http::request::{self, BodyCheck, Request};
use crate::http::response::Rewriter;
use crate::identity::credentials::{CredentialFault, Credentials};
use crate::limits::rate::Rate;
use crate::limits::storage::Written;

/// What of a request's head is kept. The key is not: only its digest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Head {
    /// `:method`.
    pub method: String,
    /// `:path` with its query, as it came: the parser refuses what is not ASCII.
    pub path: Vec<u8>,
    /// `content-length`, as the host's codec has checked it.
    pub content_length: Option<u64>,
    /// `content-type`.
    pub(crate) content_type: Option<String>,
    /// `content-encoding`, where it says something else than `identity`.
    pub(crate) encoding: Option<String>,
    /// Whether the head is all there is.
    pub ends: bool,
    /// Given by the host; goes back with the answer.
    pub(crate) request_id: Option<String>,
    /// `origin` and `access-control-request-method` are there: a browser asks whether it may.
    pub is_preflight: bool,
    /// `x-sq-test-panic`, in builds that have the trigger.
    pub(crate) test_panic: bool,
}

impl Head {
    /// Reads the head. What is not UTF-8 in method, type and coding stays visible as U+FFFD, which
    /// none of those that are taken contains.
    pub fn read(
        headers: &[(String, Vec<u8>)],
        ends: bool,
    ) -> (Self, Result<KeyHash, CredentialFault>) {
        let mut head = Self { ends, ..Self::default() };
        let mut credentials = Credentials::default();
        let (mut origin, mut asks) = (false, false);
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        for (name, value) in headers {
            match name.as_str() {
                ":method" => head.method = text(value),
                ":path" => head.path.clone_from(value),
                "content-length" => {
                    head.content_length =
                        std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
                }
                "content-type" => head.content_type = Some(text(value)),
                "x-request-id" => head.request_id = String::from_utf8(value.clone()).ok(),
                "content-encoding" if !is_identity(value) => head.encoding = Some(text(value)),
                "origin" => origin = true,
                "access-control-request-method" => asks = true,
                name => {
                    credentials.see(name, value);
                    head.test_panic |= cfg!(feature = "test-panic") && name == "x-sq-test-panic";
                }
            }
        }
        head.is_preflight = origin && asks && head.method == "OPTIONS";
        (head, credentials.digest())
    }

    /// As the parser takes it.
    pub fn as_request(&self) -> request::Head<'_> {
        request::Head {
            method: &self.method,
            path: &self.path,
            content_length: self.content_length,
            has_body: !self.ends,
            content_type: self.content_type.as_deref(),
        }
    }
}

fn is_identity(coding: &[u8]) -> bool {
    let coding = coding.trim_ascii();
    coding.is_empty() || coding.eq_ignore_ascii_case(b"identity")
}

/// What a stream waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// The relay's verdict on the key.
    Verdict,
    /// The orchestrator's lease.
    Lease,
    /// The tenant's own numbers, by this call.
    Usage(CallId),
}

/// Where a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Paused.
    Waiting(Waiting),
    /// On its way to the tenant.
    Forwarded,
    /// On its way to the tenant, all but its end, which waits for a lease.
    Held,
    /// Answered here.
    Answered,
}

/// A request.
#[derive(Debug)]
pub(crate) struct Stream {
    /// Its head.
    pub(crate) head: Head,
    /// Whose key it carries.
    pub(crate) key: KeyHash,
    /// Where it stands.
    pub(crate) state: State,
    /// When its patience ends, while it waits.
    pub(crate) deadline_ns: u64,
    /// Whether the verdict was known when it came.
    pub(crate) auth_hit: bool,
    /// What waking the tenant took, if this request waited for it.
    pub(crate) wake: Option<(WakeKind, u64)>,
    /// What the registry says.
    pub(crate) verdict: Option<Rc<Verdict>>,
    /// Has a call out in its own context, which dies with it.
    pub(crate) leads: bool,
    /// What was understood.
    pub(crate) request: Option<Request>,
    /// The check that the rest of the body must pass.
    pub(crate) body: Option<BodyCheck>,
    /// Bytes of its body that Envoy keeps or is to keep.
    pub(crate) held_bytes: u64,
    /// How long the body was, once it has ended.
    pub(crate) body_bytes: u64,
    /// What was let through to the disk.
    pub(crate) written: Option<Written>,
    /// What becomes of the answer's body.
    pub(crate) rewriter: Option<Rewriter>,
    /// Whether the quotas were looked at since what was used of them was heard.
    pub(crate) within_quota: bool,
    /// What the bucket said, once the token is taken: not again after each wait.
    pub(crate) rate: Option<Rate>,
    /// For the client: what nears its limit.
    pub(crate) warning: Option<String>,
    /// For the client: what shadow mode would have refused it for.
    pub(crate) shadowed: Option<RefusalKind>,
    /// Headers of a refusal made after it was forwarded: they replace those that Envoy adds.
    pub(crate) late_headers: Option<Headers>,
    /// Why it was refused.
    pub(crate) refused: Option<RefusalKind>,
    /// When it was forwarded.
    pub(crate) forwarded_ns: u64,
    /// Status of the answer; 0: none yet.
    pub(crate) status: u16,
    /// Body and query string.
    pub(crate) bytes_in: u64,
    /// Body of the answer.
    pub(crate) bytes_out: u64,
}

impl Stream {
    /// A request that has just come.
    pub(crate) fn new(head: Head, key: KeyHash, deadline_ns: u64) -> Self {
        let mark = head.path.iter().position(|byte| *byte == b'?');
        let query = mark.map_or(0, |at| head.path.len() - at - 1);
        Self {
            bytes_in: query as u64,
            head,
            key,
            state: State::Waiting(Waiting::Verdict),
            deadline_ns,
            auth_hit: true,
            wake: None,
            verdict: None,
            leads: false,
            request: None,
            body: None,
            held_bytes: 0,
            body_bytes: 0,
            written: None,
            rewriter: None,
            within_quota: false,
            rate: None,
            warning: None,
            shadowed: None,
            late_headers: None,
            refused: None,
            forwarded_ns: 0,
            status: 0,
            bytes_out: 0,
        }
    }

    /// Whether it is paused.
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting(_) | State::Held)
    }

    /// Whether it waits for a lease.
    pub(crate) fn awaits_lease(&self) -> bool {
        matches!(self.state, State::Waiting(Waiting::Lease) | State::Held)
    }

    /// Whether it changes data, as far as it was understood.
    pub(crate) fn writes(&self) -> bool {
        self.request.as_ref().is_some_and(|request| request.class != request::Class::Read)
    }

    /// Whose it is, once that is known.
    pub(crate) fn tenant(&self) -> Option<&TenantId> {
        self.verdict.as_ref().map(|verdict| &verdict.tenant)
    }
}
