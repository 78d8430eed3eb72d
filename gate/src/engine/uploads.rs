//! Bodies of forwarded requests: checked as they come, bounded in memory, and judged again at their
//! end, by the verdict and the lease of then. An end that must wait for either is parked.

use std::rc::Rc;

use protocol::time::MS_NS;
use protocol::{KeyHash, Verdict};

use super::Gate;
use super::clock::Ctx;
use super::stream::{Body, Exchange, Marks, State, Stream, TenantRequest};
use crate::effect::{Effect, StreamId};
use crate::identity::verdicts::Lookup;
use crate::shared::Shared;
use crate::{Refusal, RefusalKind};

/// The fate of a piece of a body that was not refused.
enum Piece {
    Passes,
    Parked,
}

impl Gate {
    /// A piece of a request's body has come; `end`: it is the last one, and may be empty. `read`
    /// copies it from the host and is called only if the piece has to be checked. The piece passes
    /// with [`Effect::Resume`]. The last piece is withheld unless the tenant has a lease, because
    /// Envoy looks for the tenant's cluster only then.
    pub fn on_request_body(
        &mut self,
        id: StreamId,
        end: bool,
        read: impl FnOnce() -> Vec<u8>,
        wall_ns: u64,
        shared: &mut dyn Shared,
    ) {
        let mut ctx = self.enter(Some(id), wall_ns, shared);
        let Some(mut stream) = self.streams.take(id) else {
            return self.effects.push_back(Effect::Resume(id));
        };
        match self.take_piece(&mut stream, end, read, &mut ctx) {
            Ok(Piece::Passes) => self.effects.push_back(Effect::Resume(id)),
            Ok(Piece::Parked) => {}
            Err(refusal) => self.refuse(&mut stream, &refusal),
        }
        self.streams.put(stream);
    }

    fn take_piece(
        &mut self,
        stream: &mut Stream,
        end: bool,
        read: impl FnOnce() -> Vec<u8>,
        ctx: &mut Ctx<'_>,
    ) -> Result<Piece, Refusal> {
        let Stream { id, key, head, marks, bytes_in, state, verdict, .. } = stream;
        let exchange = match state {
            State::Forwarded(exchange) => exchange,
            State::Parked { .. } if end => return Ok(Piece::Parked),
            _ => return Ok(Piece::Passes),
        };
        // 1. Check the bytes, and find room for them if the head did not announce their number.
        if let Body::Incoming(check) = &mut exchange.body {
            let chunk = read();
            let chunk_bytes = chunk.len() as u64;
            *bytes_in += chunk_bytes;
            if head.content_length.is_none() {
                self.reserve(marks, &exchange.request, chunk_bytes)?;
            }
            if !chunk.is_empty() {
                check.on_chunk(&chunk)?;
            }
            if end {
                check.on_end()?;
                exchange.body = Body::Complete { bytes: check.received_bytes() };
            }
        }
        if !end {
            return Ok(Piece::Passes);
        }
        // 2. The body took its time. The key must still be good, and as the tenant may be going to
        //    sleep, the request must reach SQ within the grace of a lease.
        if let Some(missing) = self.rejudge(*id, key, exchange, verdict, None, ctx)? {
            if head.content_length.is_none() {
                // A parked end passes Envoy's buffer filter twice, which would then announce twice
                // the length to SQ. What is missing was requested, so the client's retry succeeds.
                return Err(Refusal::new(missing));
            }
            stream.park(ctx.now_ns + u64::from(self.config.lease_timeout_ms) * MS_NS);
            return Ok(Piece::Parked);
        }
        // 3. From here on the write may be on disk at any time.
        if exchange.written.is_none() {
            let body_bytes = exchange.body.bytes();
            exchange.written = self.count_storage(marks, &exchange.request, body_bytes, ctx)?;
            // The head has paid for the length that it announced, if any.
            self.charge_work(marks, &exchange.request, body_bytes);
        }
        Ok(Piece::Passes)
    }

    /// Judges a request at the end of its body by the present verdict and lease. Returns the refusal
    /// that fits if one of them must be awaited.
    fn rejudge(
        &mut self,
        id: StreamId,
        key: &KeyHash,
        exchange: &mut Exchange,
        known: &mut Option<Rc<Verdict>>,
        lookup: Option<Lookup>,
        ctx: &mut Ctx<'_>,
    ) -> Result<Option<RefusalKind>, Refusal> {
        let Some(verdict) = self.confirm(id, key, &exchange.request.verdict, lookup, ctx)? else {
            return Ok(Some(RefusalKind::RelayUnavailable));
        };
        if !Rc::ptr_eq(&verdict, &exchange.request.verdict) {
            let bytes = exchange.body.bytes();
            let max = verdict.limits.body_max_bytes();
            if bytes > max {
                return Err(Refusal::body_too_large(bytes, max));
            }
            *known = Some(verdict.clone());
            exchange.request.verdict = verdict;
        }
        let is_leased = !self.has_orchestrator()
            || self.lease_or_wait(id, &exchange.request.verdict, ctx)?.is_some();
        Ok((!is_leased).then_some(RefusalKind::OrchestratorUnavailable))
    }

    /// Lets a parked stream go on: what it waits for has come, or may have come.
    pub(super) fn release(
        &mut self,
        stream: &mut Stream,
        lookup: Option<Lookup>,
        ctx: &mut Ctx<'_>,
    ) {
        match self.try_release(stream, lookup, ctx) {
            Ok(Piece::Passes) => {
                stream.unpark();
                self.effects.push_back(Effect::Resume(stream.id));
            }
            Ok(Piece::Parked) => {}
            Err(refusal) => self.refuse(stream, &refusal),
        }
    }

    fn try_release(
        &mut self,
        stream: &mut Stream,
        lookup: Option<Lookup>,
        ctx: &mut Ctx<'_>,
    ) -> Result<Piece, Refusal> {
        let Stream { id, key, marks, verdict, state: State::Parked { exchange, .. }, .. } = stream
        else {
            return Ok(Piece::Parked);
        };
        if self.rejudge(*id, key, exchange, verdict, lookup, ctx)?.is_some() {
            return Ok(Piece::Parked);
        }
        let body_bytes = exchange.body.bytes();
        exchange.written = self.count_storage(marks, &exchange.request, body_bytes, ctx)?;
        Ok(Piece::Passes)
    }

    /// Reserves room for an announced body; one of unannounced length takes its room as it comes.
    pub(super) fn reserve_announced(
        &mut self,
        marks: &mut Marks,
        request: &TenantRequest,
        body: &Body,
        content_length: Option<u64>,
    ) -> Result<(), Refusal> {
        match (body, content_length) {
            (Body::Incoming(_), Some(bytes)) => self.reserve(marks, request, bytes),
            _ => Ok(()),
        }
    }

    fn reserve(
        &mut self,
        marks: &mut Marks,
        request: &TenantRequest,
        bytes: u64,
    ) -> Result<(), Refusal> {
        let Verdict { tenant, limits, .. } = &*request.verdict;
        if !self.body_budget.reserve(tenant, limits, bytes) {
            return Err(Refusal::new(RefusalKind::DatabaseBusy));
        }
        marks.reserved_bytes += bytes;
        Ok(())
    }
}
