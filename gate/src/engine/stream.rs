//! One request from its head to its end.
//!
//! ```text
//!             the lease is there                 the lease ran out before the body's end
//!  head ──┬────────────────────────► Forwarded ─────────────────────────► Parked
//!         │                           ▲    │  ◄──────────────────────────   │
//!         ├──► Waiting ───────────────┘    │        leased again            │
//!         │       │                        │ body refused                   │ refused, deadline
//!         │       │ refused, deadline      ▼                                ▼
//!         └───────┴────────────────────► Answered ◄─────────────────────────┘
//! ```
//!
//! Each state holds the data that is valid in it only. A request is forwarded or answered, never
//! both at once and neither of them twice.

use std::rc::Rc;

use protocol::{KeyHash, TenantId, Verdict, WakeKind};

use super::clock::Ctx;
use super::head::RequestHead;
use crate::effect::{Headers, StreamId};
use crate::http::request::{Access, BodyCheck, Endpoint, Request};
use crate::http::response::Rewriter;
use crate::limits::rate::Rate;
use crate::limits::storage::{self, AdmittedWrite, Change};
use crate::limits::usage;
use crate::{Refusal, RefusalKind};

/// One request and all that is known of it.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: StreamId,
    pub(super) head: RequestHead,
    pub(super) key: KeyHash,
    pub(super) state: State,
    /// The verdict on the key, once it is known.
    pub(super) verdict: Option<Rc<Verdict>>,
    /// The verdict was cached when the request came.
    pub(super) auth_hit: bool,
    /// The wake that this request has waited for.
    pub(super) wake: Option<Wake>,
    /// The request counts as usage. Only the tenant's own pages do not.
    pub(super) is_metered: bool,
    pub(super) marks: Marks,
    /// Status of the response; 0 while there is none.
    pub(super) status: u16,
    /// Size of query string and body.
    pub(super) bytes_in: u64,
    /// Size of the response's body.
    pub(super) bytes_out: u64,
}

/// Traces that the tenant's limits have left on a request.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// State of the tenant's bucket when this request took its tokens, which it does once.
    pub(super) rate: Option<Rate>,
    /// Bytes that the tokens taken for this request pay for.
    pub(super) paid_bytes: u64,
    /// The quotas were checked since the last news about their use.
    pub(super) quota_checked: bool,
    /// The header that warns the client of a quota nearly used up.
    pub(super) warning: Option<String>,
    /// The first refusal that shadow mode has suppressed.
    pub(super) shadowed: Option<RefusalKind>,
    /// Bytes of the body budget that this request occupies.
    pub(super) reserved_bytes: u64,
}

/// The place of a request between its head and its end.
#[derive(Debug)]
pub(super) enum State {
    /// Paused at its head, until a call ends or `deadline_ns` has passed.
    Waiting { reason: Reason, deadline_ns: u64 },
    /// On its way to the tenant's SQ.
    Forwarded(Exchange),
    /// On its way to SQ except for the end of its body, which is withheld until there is a lease
    /// again or `deadline_ns` has passed.
    Parked { exchange: Exchange, deadline_ns: u64 },
    /// Answered by the gateway.
    Answered {
        refused: Option<RefusalKind>,
        /// Headers of a refusal made after the request was forwarded. They replace those that Envoy
        /// adds to the response by order of the forwarded head.
        late_headers: Option<Headers>,
    },
}

/// The thing that a paused request waits for.
#[derive(Debug)]
pub(super) enum Reason {
    /// The relay's verdict on the key.
    Verdict,
    /// A lease on the tenant.
    Lease(Box<TenantRequest>),
    /// The tenant's own usage, from the orchestrator.
    Usage,
}

/// The wake of a tenant, as the orchestrator reported it with the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wake {
    pub(super) kind: WakeKind,
    pub(super) ms: u64,
}

/// An understood request, and the verdict on its sender.
#[derive(Debug)]
pub(super) struct TenantRequest {
    pub(super) verdict: Rc<Verdict>,
    pub(super) request: Request,
}

/// A forwarded request and the response to it.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) request: TenantRequest,
    pub(super) forwarded_ns: u64,
    pub(super) body: Body,
    /// The write as counted towards the tenant's storage.
    pub(super) written: Option<AdmittedWrite>,
    /// Rewrites the body of the response.
    pub(super) rewriter: Option<Rewriter>,
    /// The error that Envoy or SQ has responded with.
    pub(super) failed: Option<RefusalKind>,
}

/// The body of a forwarded request.
#[derive(Debug)]
pub(super) enum Body {
    /// Checked as it comes. SQ gets nothing before the end.
    Incoming(BodyCheck),
    /// All of it has come, or there is none.
    Complete { bytes: u64 },
}

impl Stream {
    /// A new request, which waits for its verdict until `deadline_ns` at most.
    pub(super) fn new(id: StreamId, head: RequestHead, key: KeyHash, deadline_ns: u64) -> Self {
        let question_mark = head.path.iter().position(|byte| *byte == b'?');
        let query_bytes = question_mark.map_or(0, |at| head.path.len() - at - 1);
        Self {
            id,
            head,
            key,
            state: State::Waiting { reason: Reason::Verdict, deadline_ns },
            verdict: None,
            auth_hit: true,
            wake: None,
            is_metered: true,
            marks: Marks::default(),
            status: 0,
            bytes_in: query_bytes as u64,
            bytes_out: 0,
        }
    }

    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting { .. } | State::Parked { .. })
    }

    /// End of the stream's patience while it is paused.
    pub(super) fn deadline_ns(&self) -> Option<u64> {
        match self.state {
            State::Waiting { deadline_ns, .. } | State::Parked { deadline_ns, .. } => {
                Some(deadline_ns)
            }
            State::Forwarded(_) | State::Answered { .. } => None,
        }
    }

    /// The refusal at the end of the stream's patience.
    pub(super) fn overdue_refusal(&self) -> Refusal {
        Refusal::new(match &self.state {
            State::Waiting { reason: Reason::Verdict, .. } => RefusalKind::RelayUnavailable,
            _ => RefusalKind::OrchestratorUnavailable,
        })
    }

    /// Changes what a waiting stream waits for; its deadline stays.
    pub(super) fn wait_for(&mut self, new_reason: Reason) {
        if let State::Waiting { reason, .. } = &mut self.state {
            *reason = new_reason;
        }
    }

    /// The request that waited for a lease, to go on with it.
    pub(super) fn take_request(&mut self) -> Option<TenantRequest> {
        let State::Waiting { reason, .. } = &mut self.state else { return None };
        match std::mem::replace(reason, Reason::Verdict) {
            Reason::Lease(request) => Some(*request),
            Reason::Verdict | Reason::Usage => None,
        }
    }

    /// The request, if it waits for a lease.
    pub(super) fn awaiting_lease(&self) -> Option<&TenantRequest> {
        match &self.state {
            State::Waiting { reason: Reason::Lease(request), .. } => Some(request),
            State::Parked { exchange, .. } => Some(&exchange.request),
            _ => None,
        }
    }

    /// Withholds the end of the body.
    pub(super) fn park(&mut self, deadline_ns: u64) {
        self.state = match self.take_state() {
            State::Forwarded(exchange) => State::Parked { exchange, deadline_ns },
            other => other,
        };
    }

    /// Lets the end of the body go on.
    pub(super) fn unpark(&mut self) {
        self.state = match self.take_state() {
            State::Parked { exchange, .. } => State::Forwarded(exchange),
            other => other,
        };
    }

    fn take_state(&mut self) -> State {
        std::mem::replace(&mut self.state, State::Answered { refused: None, late_headers: None })
    }

    pub(super) fn is_head_method(&self) -> bool {
        self.head.method == "HEAD"
    }
}

impl TenantRequest {
    pub(super) fn tenant(&self) -> &TenantId {
        &self.verdict.tenant
    }

    /// Returns whether the request changes data. Deletes do.
    pub(super) fn writes(&self) -> bool {
        self.request.access != Access::Read
    }

    /// The request's class in usage and quotas.
    pub(super) fn class(&self) -> usage::Class {
        if self.writes() { usage::Class::Write } else { usage::Class::Read }
    }

    pub(super) fn phext(&self) -> &str {
        self.request.phext.as_deref().unwrap_or_default()
    }

    /// The change of the phext, with a body of this size.
    pub(super) fn change(&self, body_bytes: u64) -> Change {
        let growth = self.request.growth_bytes() + body_bytes;
        match (self.request.access, self.request.scroll()) {
            (Access::Read, _) => Change::Read,
            (Access::Delete, _) => Change::Delete,
            (Access::Write, Some(at)) if self.request.endpoint == Endpoint::Update => {
                Change::Replace { at, growth }
            }
            (Access::Write, _) => Change::Append { growth },
        }
    }
}

impl Body {
    /// Bytes that have come so far.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Incoming(check) => check.received_bytes(),
            Self::Complete { bytes } => *bytes,
        }
    }
}

impl Exchange {
    /// SQ has confirmed the request: its write is on disk, and the next measurement contains it.
    pub(super) fn confirm_write(&self, ctx: &mut Ctx<'_>) {
        if let Some(written) = &self.written {
            let phext = self.request.phext();
            storage::completed(self.request.tenant(), phext, written, ctx.wall_ms(), ctx.shared);
        }
    }
}
