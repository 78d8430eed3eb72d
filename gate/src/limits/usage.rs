//! What one VM has served, until the orchestrator has it in its ledger.
//!
//! ```text
//!  record ─► row (tenant, hour), cumulative ─ flush ─► report ─ acked ─► clean ─ hour over ─► gone
//!              ▲        ▲                               │
//!              │        └──── changed since the flush ◄─┤
//!              └───────────── no answer: same rows again┘
//! ```
//!
//! Counters are cumulative for the life of the VM, so a report may be lost or arrive twice. Only one
//! set of rows is under way at a time: while the orchestrator is away the same rows are sent again,
//! and everything else is *unsent*. When rows get too many, an unsent row is added to a later one of
//! its tenant: counted once, in the wrong hour. A row that was ever sent is never moved (the ledger
//! may have it). With more tenants than rows the newest tenants are not counted: a gap, told by
//! [`Usage::record`] and a metric.
//!
//! An hour whose rows are gone is never opened again by the same source, for the ledger would take
//! the larger of two counters in place of their sum. A clock that steps back into the hour before
//! leaves the counters in the later one; one that steps back further had been ahead, and from then on
//! the VM reports under another name: a new *life*. Rows of the lives before keep theirs.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use protocol::calendar::Month;
use protocol::time::{DAY_S, HOUR_S};
use protocol::usage::UsageRow;
use protocol::{GatewayId, TenantId, UsageReport, Verdict, WakeKind};

use crate::http::refusal::RefusalKind;
use crate::limits::quota::Delta;

mod row;
#[cfg(test)]
mod tests;

use row::{Row, Tenant};

/// Rows of a report: about 300 KB of JSON, well inside what the orchestrator takes.
pub(crate) const REPORT_ROWS: usize = 500;
/// Rows kept per VM, about 10 MB: 10,000 active tenants for three hours without an orchestrator
/// before hours are merged.
pub(crate) const ROWS_MAX: usize = 30_000;

/// Whether a request changes the tenant's data. Deletes write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// It does not.
    Read,
    /// It does.
    Write,
}

/// How a request ended: forwarded, or refused by the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It went to the tenant's SQ.
    Forwarded(Class),
    /// The gateway answered.
    Refused(RefusalKind),
    /// Its client went away while it waited or before it had sent all: no answer, counted as refused.
    Gone,
}

/// Name of [`Fate::Gone`] among the refusals of a report.
pub(crate) const GONE: &str = "client-gone";

/// One request of a tenant, at its end, whatever ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// Forwarded or refused.
    pub fate: Fate,
    /// Status of the answer; 0: none was sent (client gone).
    pub status: u16,
    /// Request body and query string.
    pub bytes_in: u64,
    /// Answer body.
    pub bytes_out: u64,
    /// From the forwarded headers to the end of the answer; 0 when refused.
    pub service_us: u64,
}

/// All counters of one VM.
#[derive(Debug)]
pub struct Usage {
    gateway: GatewayId,
    source: String,
    /// How often the clock stepped back into hours that are closed.
    life: u32,
    sequence: u64,
    rows_max: usize,
    tenants: BTreeMap<TenantId, Tenant>,
    /// Rows in memory, over all tenants.
    rows: usize,
    /// Tenants with rows to send, each once, longest waiting first.
    dirty: VecDeque<TenantId>,
    under_way: Option<UnderWay>,
    /// The last report had no room for all that was to tell.
    behind: bool,
    /// Hours up to this one are closed: their rows may be gone.
    closed_hour: u64,
}

/// From when on requests are summed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// The last report that was answered.
    Answered,
    /// The last report that was sent.
    Sent,
}

#[derive(Debug)]
struct UnderWay {
    sequence: u64,
    /// Of one life.
    life: u32,
    /// Tenants and hours.
    rows: Vec<(TenantId, u64)>,
}

impl Usage {
    /// Counters of a new VM; `source` must differ from that of every other life of every VM.
    pub fn new(gateway: GatewayId, source: String) -> Self {
        Self::with_rows_max(gateway, source, ROWS_MAX)
    }

    /// The same with another bound on rows.
    pub(crate) fn with_rows_max(gateway: GatewayId, source: String, rows_max: usize) -> Self {
        Self {
            gateway,
            source,
            life: 0,
            sequence: 0,
            rows_max: rows_max.max(1),
            tenants: BTreeMap::new(),
            rows: 0,
            dirty: VecDeque::new(),
            under_way: None,
            behind: false,
            closed_hour: 0,
        }
    }

    /// Counts one request of the verdict's tenant. Call it exactly once per request. `false`: there was
    /// no room.
    pub fn record(&mut self, verdict: &Rc<Verdict>, served: &Served, now_s: u64) -> bool {
        let row = self.changed_row(verdict, now_s);
        row.map(|row| row.count(served)).is_some()
    }

    /// Counts a wake that the orchestrator has put down to this VM's question.
    pub(crate) fn woke(&mut self, verdict: &Rc<Verdict>, kind: WakeKind, now_s: u64) {
        if let Some(row) = self.changed_row(verdict, now_s) {
            row.woke(kind);
        }
    }

    /// The tenant's row of this hour, which is about to change; `None`: there is no room.
    fn changed_row(&mut self, verdict: &Rc<Verdict>, now_s: u64) -> Option<&mut Row> {
        self.follow(now_s / HOUR_S);
        let (life, hour) = (self.life, (now_s / HOUR_S).max(self.closed_hour + 1));
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
        let (row, added) = account.row(life, hour);
        self.rows += usize::from(added);
        Some(row)
    }

    /// The next report, if there is something to tell. Until it is [`acked`](Self::acked) the same
    /// rows come again, with newer counters. Don't call it while a report is on its way.
    pub fn flush(&mut self, now_s: u64) -> Option<UsageReport> {
        self.follow(now_s / HOUR_S);
        self.close(now_s / HOUR_S);
        let (life, rows) = match self.under_way.take() {
            Some(again) => (again.life, again.rows),
            None => self.pick(),
        };
        self.behind = !self.dirty.is_empty();
        if rows.is_empty() {
            return None;
        }
        self.sequence += 1;
        let mut under_way = UnderWay { sequence: self.sequence, life, rows: Vec::new() };
        let mut report = UsageReport {
            gateway: self.gateway.clone(),
            source: self.name(life),
            sequence: self.sequence,
            rows: Vec::with_capacity(rows.len()),
        };
        for (tenant, hour) in rows {
            let Some(account) = self.tenants.get_mut(&tenant) else { continue };
            let Verdict { tier, limits, .. } = &*account.verdict;
            let (tier, limits) = (tier.clone(), limits.clone());
            let Some(row) = account.find(life, hour) else { continue };
            row.sent = row.told();
            report.rows.push(UsageRow {
                tenant: tenant.clone(),
                tier,
                limits,
                hour,
                counters: row.counters(),
            });
            under_way.rows.push((tenant, hour));
        }
        self.under_way = Some(under_way);
        Some(report)
    }

    /// A report without rows: its answer tells who has used up a quota elsewhere.
    pub(crate) fn ask_for_news(&mut self) -> UsageReport {
        self.sequence += 1;
        UsageReport {
            gateway: self.gateway.clone(),
            source: self.name(self.life),
            sequence: self.sequence,
            rows: Vec::new(),
        }
    }

    /// The orchestrator has report `sequence` in its ledger. Answers to older ones are ignored.
    /// Whether that report left out what was to tell, for it has a bound or repeated an older one:
    /// the next is due at once.
    pub fn acked(&mut self, sequence: u64) -> bool {
        let under_way = self.under_way.take_if(|u| u.sequence == sequence);
        let Some(under_way) = under_way else { return false };
        for (tenant, hour) in under_way.rows {
            let Some(account) = self.tenants.get_mut(&tenant) else { continue };
            let Some(row) = account.find(under_way.life, hour) else { continue };
            row.acked = row.sent;
            if account.rows.iter().any(Row::is_dirty) && !account.queued {
                account.queued = true;
                self.dirty.push_back(tenant);
            }
        }
        self.behind
    }

    /// Whether a report is on its way, or may have arrived although its answer did not.
    pub(crate) fn awaits_answer(&self) -> bool {
        self.under_way.is_some()
    }

    /// What is counted here and not yet in a notice, for [`crate::limits::quota::check`].
    pub fn delta(&self, tenant: &TenantId, since: Since, now_s: u64) -> Delta {
        let this_hour = now_s / HOUR_S;
        let mut delta = Delta::default();
        for row in self.tenants.get(tenant).map_or(&[][..], |a| &a.rows) {
            let told = if since == Since::Sent { row.sent } else { row.acked };
            let (reads, writes) = (row.reads - told.reads, row.writes - told.writes);
            if reads + writes == 0 {
                continue;
            }
            let start_s = row.hour * HOUR_S;
            // Mostly it is of this hour, and then the calendar need not be asked.
            let is_now = row.hour == this_hour;
            if is_now || start_s / DAY_S == now_s / DAY_S {
                delta.requests_day += reads + writes;
                delta.writes_day += writes;
            }
            if is_now || Month::of(start_s) == Month::of(now_s) {
                delta.requests_month += reads + writes;
            }
        }
        delta
    }

    /// Rows in memory.
    #[cfg(test)]
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    fn has_row(&self, tenant: &TenantId, hour: u64) -> bool {
        let is_it = |r: &Row| r.life == self.life && r.hour == hour;
        self.tenants.get(tenant).is_some_and(|a| a.rows.iter().any(is_it))
    }

    /// Under which name a life reports.
    fn name(&self, life: u32) -> String {
        if life == 0 { self.source.clone() } else { format!("{}-{life}", self.source) }
    }

    /// Rows of one life for the next report: all that changed, the longest waiting tenants first.
    fn pick(&mut self) -> (u32, Vec<(TenantId, u64)>) {
        let (mut life, mut rows, mut others) = (None, Vec::new(), Vec::new());
        while rows.len() < REPORT_ROWS {
            let Some(tenant) = self.dirty.pop_front() else { break };
            let Some(account) = self.tenants.get_mut(&tenant) else { continue };
            account.queued = false;
            for row in account.rows.iter().filter(|r| r.is_dirty()) {
                if *life.get_or_insert(row.life) == row.life {
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
        (life.unwrap_or(self.life), rows)
    }

    /// A new life, should the clock be in hours that are long closed.
    fn follow(&mut self, hour: u64) {
        if hour < self.closed_hour {
            self.life += 1;
            self.closed_hour = hour.saturating_sub(1);
        }
    }

    /// Once an hour: rows of past hours that are in the ledger go, and tenants without rows.
    fn close(&mut self, hour: u64) {
        if hour <= self.closed_hour + 1 {
            return;
        }
        self.closed_hour = hour - 1;
        self.sweep();
    }

    fn sweep(&mut self) {
        let (life, closed_hour) = (self.life, self.closed_hour);
        self.tenants.retain(|_, account| {
            let may_grow = |r: &Row| r.life == life && r.hour > closed_hour;
            account.rows.retain(|r| may_grow(r) || r.is_dirty());
            !account.rows.is_empty()
        });
        self.rows = self.tenants.values().map(|a| a.rows.len()).sum();
    }

    /// Room for one more row: what the ledger has goes, then unsent hours are merged.
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
