//! Counts what tenants have used, and reports it to the orchestrator.

use protocol::time::MS_NS;
use protocol::{TenantId, UsageResponse, WakeKind};

use super::Gate;
use super::clock::Ctx;
use super::limits::UNLIMITED;
use super::metrics::Metric;
use super::stream::{Body, Exchange, State, Stream};
use crate::limits::usage::{Fate, Served};

impl Gate {
    /// Counts a request at its end.
    pub(super) fn meter(&mut self, stream: &Stream, ctx: &Ctx<'_>) {
        let Some(verdict) = &stream.verdict else { return };
        if !stream.is_metered || UNLIMITED {
            return;
        }
        let mut service_us = 0;
        let fate = match &stream.state {
            State::Forwarded(Exchange { failed: Some(kind), .. })
            | State::Parked { exchange: Exchange { failed: Some(kind), .. }, .. }
            | State::Answered { refused: Some(kind), .. } => Fate::Refused(*kind),
            State::Forwarded(exchange) if matches!(exchange.body, Body::Complete { .. }) => {
                service_us = ctx.now_ns.saturating_sub(exchange.forwarded_ns) / 1_000;
                Fate::Forwarded(exchange.request.class())
            }
            // Waiting, parked, or its body was incomplete: SQ has got nothing.
            _ => Fate::Gone,
        };
        let served = Served {
            fate,
            status: stream.status,
            bytes_in: stream.bytes_in,
            bytes_out: stream.bytes_out,
            service_us,
        };
        let is_counted = self.usage.record(verdict, &served, ctx.wall_s());
        self.counts.add(if is_counted { Metric::Metered } else { Metric::Uncounted });
    }

    /// Counts a wake that the orchestrator ascribes to the request of this VM.
    pub(super) fn meter_wake(&mut self, tenant: &TenantId, kind: WakeKind, ctx: &Ctx<'_>) {
        if UNLIMITED {
            return;
        }
        if let Some(verdict) = self.leases.verdict(tenant) {
            self.usage.record_wake(verdict, kind, ctx.wall_s());
        }
    }

    /// Reports the counters, every `usage_interval_ms` and one report at a time. With nothing to
    /// report it asks for news, because a quota may be used up at another VM or Envoy.
    pub(super) fn report_usage(&mut self, ctx: &Ctx<'_>) {
        if !self.has_orchestrator() || self.is_reporting || ctx.now_ns < self.next_report_ns {
            return;
        }
        self.next_report_ns = ctx.now_ns + u64::from(self.config.usage_interval_ms) * MS_NS;
        let report = match self.usage.flush(ctx.wall_s()) {
            Some(report) => report,
            None if !self.leases.is_empty() => self.usage.empty_report(),
            None => return,
        };
        self.is_reporting = true;
        self.send_report(&report, ctx);
    }

    /// A report has ended: with the ledger's confirmation and its news of the tenants, or without.
    pub(super) fn report_done(
        &mut self,
        response: Option<UsageResponse>,
        asked_ns: u64,
        ctx: &Ctx<'_>,
    ) {
        self.is_reporting = false;
        let Some(response) = response else {
            return self.counts.add(Metric::ReportFailures);
        };
        self.counts.add_many(Metric::QuarantinedRows, response.quarantined);
        let has_more = self.usage.acked(response.sequence);
        for (tenant, notice) in response.notices {
            self.leases.update_notice(&tenant, notice, asked_ns);
        }
        if has_more {
            self.next_report_ns = ctx.now_ns;
            self.report_usage(ctx);
        }
    }
}
