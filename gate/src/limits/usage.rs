//! Counts requests per tenant and hour until the orchestrator has them in its ledger.
//!
//! ```text
//!  record ─► row (tenant, hour), cumulative ─ flush ─► report ─ acked ─► clean ─ hour over ─► removed
//!              ▲        ▲                               │
//!              │        └──── changed since the flush ◄─┤
//!              └──────────── no response: same rows again
//! ```
//!
//! Counters are cumulative per source, so a report may be lost or arrive twice. Only one set of rows
//! is in flight at a time: while the orchestrator is away, the same rows are sent again and all
//! others stay *unsent*. When there are too many rows, an unsent row is added to a later one of the
//! same tenant: counted once, in the wrong hour. A row that was ever sent is never moved, because the
//! ledger may have it. If there are more tenants than rows, the newest tenants are not counted.
//! [`Usage::record`] and a metric report that gap.
//!
//! A source never reopens an hour whose rows are removed, because the ledger would take the larger of
//! two counters instead of their sum. If the clock steps back into the previous hour, counters stay
//! in the later one. If it steps back further, it had been ahead; from then on the VM reports as
//! another source, a new *generation*. Rows of earlier generations keep their source.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use protocol::calendar::Month;
use protocol::time::{DAY_S, HOUR_S};
use protocol::usage::UsageRow;
use protocol::usage::bounds::REPORT_ROWS;
use protocol::{GatewayId, TenantId, UsageReport, Verdict, WakeKind};

use crate::http::refusal::RefusalKind;
pub use crate::limits::quota::Class;
use crate::limits::quota::Delta;

mod row;
#[cfg(test)]
mod tests;

use row::{Row, Tenant};

/// Bound on the rows of a VM, about 10 MB: without an orchestrator, 10,000 active tenants for three
/// hours before hours are merged.
pub(crate) const ROWS_MAX: usize = 30_000;

/// The way in which a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It was forwarded to the tenant's SQ.
    Forwarded(Class),
    /// The gateway refused it.
    Refused(RefusalKind),
    /// Its client disconnected while it waited or before its body was complete. It got no response
    /// and counts as refused.
    Gone,
}

/// Name of [`Fate::Gone`] among the refusals of a report.
pub(crate) const GONE: &str = "client-gone";

/// One request of a tenant, at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// The way in which it ended.
    pub fate: Fate,
    /// HTTP status of the response; 0 if there was none.
    pub status: u16,
    /// Bytes of request body and query string.
    pub bytes_in: u64,
    /// Bytes of the response body.
    pub bytes_out: u64,
    /// Time from the forwarded head to the end of the response; 0 if refused.
    pub service_us: u64,
}

/// All usage counters of one VM.
#[derive(Debug)]
pub struct Usage {
    gateway: GatewayId,
    source: String,
    /// Number of times the clock stepped back into closed hours.
    generation: u32,
    sequence: u64,
    rows_max: usize,
    tenants: BTreeMap<TenantId, Tenant>,
    /// Number of rows in memory, over all tenants.
    rows: usize,
    /// Tenants with unsent changes, each once, the longest waiting first.
    dirty: VecDeque<TenantId>,
    in_flight: Option<InFlightReport>,
    /// The last report had no room for all changed rows.
    behind: bool,
    /// Hours up to this one are closed: their rows may be removed.
    closed_hour: u64,
}

/// The point from which requests are summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// The last acknowledged report.
    Acked,
    /// The last report that was sent.
    Sent,
}

#[derive(Debug)]
struct InFlightReport {
    sequence: u64,
    /// All rows belong to this generation.
    generation: u32,
    /// Tenants and hours.
    rows: Vec<(TenantId, u64)>,
}

impl Usage {
    /// Creates the counters of a new VM. `source` must differ from that of every other VM instance.
    pub fn new(gateway: GatewayId, source: String) -> Self {
        Self::with_rows_max(gateway, source, ROWS_MAX)
    }

    /// Creates counters with another bound on rows.
    pub(crate) fn with_rows_max(gateway: GatewayId, source: String, rows_max: usize) -> Self {
        Self {
            gateway,
            source,
            generation: 0,
            sequence: 0,
            rows_max: rows_max.max(1),
            tenants: BTreeMap::new(),
            rows: 0,
            dirty: VecDeque::new(),
            in_flight: None,
            behind: false,
            closed_hour: 0,
        }
    }

    /// Counts one request of the verdict's tenant. Call it exactly once per request. Returns `false` if
    /// there was no room.
    pub fn record(&mut self, verdict: &Rc<Verdict>, served: &Served, now_s: u64) -> bool {
        let row = self.changed_row(verdict, now_s);
        row.map(|row| row.count(served)).is_some()
    }

    /// Counts a wake that the orchestrator attributes to this VM's lease request.
    pub(crate) fn record_wake(&mut self, verdict: &Rc<Verdict>, kind: WakeKind, now_s: u64) {
        if let Some(row) = self.changed_row(verdict, now_s) {
            row.count_wake(kind);
        }
    }

    /// Returns the tenant's row of this hour for a change; `None` if there is no room for it.
    fn changed_row(&mut self, verdict: &Rc<Verdict>, now_s: u64) -> Option<&mut Row> {
        self.follow(now_s / HOUR_S);
        let generation = self.generation;
        let hour = (now_s / HOUR_S).max(self.closed_hour + 1);
        let tenant = &verdict.tenant;
        if !self.has_row(tenant, hour) {
            if !self.make_room() {
                return None;
            }
            self.tenants.entry(tenant.clone()).or_insert_with(|| Tenant::new(verdict));
        }
        let account = self.tenants.get_mut(tenant)?;
        if !Rc::ptr_eq(&account.verdict, verdict) {
            account.verdict = verdict.clone();
        }
        if !account.queued {
            account.queued = true;
            self.dirty.push_back(tenant.clone());
        }
        let (row, added) = account.row(generation, hour);
        self.rows += usize::from(added);
        Some(row)
    }

    /// Returns the next report, if rows have changed. Until it is [`acked`](Self::acked), the same rows
    /// are sent again with newer counters. Do not call it while a report is in flight.
    pub fn flush(&mut self, now_s: u64) -> Option<UsageReport> {
        self.follow(now_s / HOUR_S);
        self.close(now_s / HOUR_S);
        let (generation, rows) = match self.in_flight.take() {
            Some(unacked) => (unacked.generation, unacked.rows),
            None => self.pick_rows(),
        };
        self.behind = !self.dirty.is_empty();
        if rows.is_empty() {
            return None;
        }
        self.sequence += 1;
        let mut in_flight =
            InFlightReport { sequence: self.sequence, generation, rows: Vec::new() };
        let mut report = UsageReport {
            gateway: self.gateway.clone(),
            source: self.source_name(generation),
            sequence: self.sequence,
            rows: Vec::with_capacity(rows.len()),
        };
        for (tenant, hour) in rows {
            let Some(account) = self.tenants.get_mut(&tenant) else { continue };
            let verdict = account.verdict.clone();
            let Some(row) = account.find(generation, hour) else { continue };
            row.sent = row.mark();
            report.rows.push(UsageRow {
                tenant: tenant.clone(),
                tier: verdict.tier.clone(),
                limits: verdict.limits.clone(),
                hour,
                counters: row.counters(),
            });
            in_flight.rows.push((tenant, hour));
        }
        self.in_flight = Some(in_flight);
        Some(report)
    }

    /// Returns a report without rows. Its response names tenants that have used up a quota elsewhere.
    pub(crate) fn empty_report(&mut self) -> UsageReport {
        self.sequence += 1;
        UsageReport {
            gateway: self.gateway.clone(),
            source: self.source_name(self.generation),
            sequence: self.sequence,
            rows: Vec::new(),
        }
    }

    /// Records that report `sequence` is in the ledger; responses to older ones are ignored. Returns
    /// whether the next report is due at once: this one had no room for all changed rows.
    pub fn acked(&mut self, sequence: u64) -> bool {
        let Some(acked) = self.in_flight.take_if(|report| report.sequence == sequence) else {
            return false;
        };
        for (tenant, hour) in acked.rows {
            let Some(account) = self.tenants.get_mut(&tenant) else { continue };
            let Some(row) = account.find(acked.generation, hour) else { continue };
            row.acked = row.sent;
            if account.rows.iter().any(Row::is_dirty) && !account.queued {
                account.queued = true;
                self.dirty.push_back(tenant);
            }
        }
        self.behind
    }

    /// Returns whether a report is unacknowledged. It may have arrived nevertheless.
    pub(crate) fn awaits_ack(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Requests counted here that no notice contains yet, for [`crate::limits::quota::check`].
    pub fn delta(&self, tenant: &TenantId, since: Since, now_s: u64) -> Delta {
        let this_hour = now_s / HOUR_S;
        let mut delta = Delta::default();
        for row in self.tenants.get(tenant).map_or(&[][..], |a| &a.rows) {
            let mark = if since == Since::Sent { row.sent } else { row.acked };
            let reads = row.reads - mark.reads;
            let writes = row.writes - mark.writes;
            let bytes_out = row.bytes_out - mark.bytes_out;
            if reads + writes + bytes_out == 0 {
                continue;
            }
            let start_s = row.hour * HOUR_S;
            // The common case, a row of this hour, needs no calendar arithmetic.
            let is_now = row.hour == this_hour;
            if is_now || start_s / DAY_S == now_s / DAY_S {
                delta.requests_day += reads + writes;
                delta.writes_day += writes;
                delta.bytes_out_day += bytes_out;
            }
            if is_now || Month::of(start_s) == Month::of(now_s) {
                delta.requests_month += reads + writes;
            }
        }
        delta
    }

    /// Number of rows in memory.
    #[cfg(test)]
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    fn has_row(&self, tenant: &TenantId, hour: u64) -> bool {
        self.tenants.get(tenant).is_some_and(|account| {
            account.rows.iter().any(|row| row.generation == self.generation && row.hour == hour)
        })
    }

    /// Source name of a generation.
    fn source_name(&self, generation: u32) -> String {
        if generation == 0 { self.source.clone() } else { format!("{}-{generation}", self.source) }
    }

    /// Picks changed rows of one generation for the next report, the longest waiting tenants first.
    fn pick_rows(&mut self) -> (u32, Vec<(TenantId, u64)>) {
        let mut generation = None;
        let mut rows = Vec::new();
        let mut others = Vec::new();
        while rows.len() < REPORT_ROWS {
            let Some(tenant) = self.dirty.pop_front() else { break };
            let Some(account) = self.tenants.get_mut(&tenant) else { continue };
            account.queued = false;
            for row in account.rows.iter().filter(|r| r.is_dirty()) {
                // A row of another generation waits for the next report.
                if *generation.get_or_insert(row.generation) == row.generation {
                    rows.push((tenant.clone(), row.hour));
                } else {
                    account.queued = true;
                }
            }
            if account.queued {
                others.push(tenant);
            }
        }
        self.dirty.extend(others);
        (generation.unwrap_or(self.generation), rows)
    }

    /// Begins a new generation if the clock has stepped back into hours that are long closed.
    fn follow(&mut self, hour: u64) {
        if hour < self.closed_hour {
            self.generation += 1;
            self.closed_hour = hour.saturating_sub(1);
        }
    }

    /// Once an hour, removes acknowledged rows of past hours, and tenants without rows.
    fn close(&mut self, hour: u64) {
        if hour <= self.closed_hour + 1 {
            return;
        }
        self.closed_hour = hour - 1;
        self.sweep();
    }

    fn sweep(&mut self) {
        let generation = self.generation;
        let closed_hour = self.closed_hour;
        self.tenants.retain(|_, account| {
            account.rows.retain(|row| {
                let may_grow = row.generation == generation && row.hour > closed_hour;
                may_grow || row.is_dirty()
            });
            !account.rows.is_empty()
        });
        self.rows = self.tenants.values().map(|a| a.rows.len()).sum();
    }

    /// Makes room for one more row: removes acknowledged rows, then merges unsent hours. Returns
    /// whether there is room.
    fn make_room(&mut self) -> bool {
        if self.rows < self.rows_max {
            return true;
        }
        self.sweep();
        if self.rows >= self.rows_max {
            self.rows -= self.tenants.values_mut().map(Tenant::merge).sum::<usize>();
        }
        self.rows < self.rows_max
    }
}
