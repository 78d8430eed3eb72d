//! The ledger's arithmetic, pure: what a report adds, what a tenant has used, what a month earns.
//!
//! ```text
//!  report ─► merge with the row of (source, tenant, hour): maximum of each counter ─► row
//!                 └─ what that added ─► Tally (this day and month per tenant) ─► notice
//! ```
//!
//! Counters of one source only grow, so the maximum is the newest, and a report that comes twice,
//! late or not at all changes nothing that the next one does not set right. Sources are summed.
//! The database is `store.rs`, its thread `writer.rs`.

use std::collections::{BTreeMap, HashMap};

use protocol::calendar::Month;
use protocol::time::{DAY_S, HOUR_S};
use protocol::usage::{OTHER_REASON, REASONS, UsageRow};
use protocol::{Counters, TenantId, TenantNotice, TierName, WakeKind};
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// Rows further ahead than this come from a broken clock and are not taken: a gap.
pub const AHEAD_HOURS: u64 = 48;

/// Sums over sources and hours. All are `u64` and stay below 2^63, which is what the database takes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// Requests forwarded that read.
    pub reads: u64,
    /// Requests forwarded that write.
    pub writes: u64,
    /// Requests refused by the gateway.
    pub refused: u64,
    /// Answers by class of status; index 0: none was sent.
    pub status: [u64; 6],
    /// Bytes of request bodies and query strings.
    pub bytes_in: u64,
    /// Bytes of answer bodies.
    pub bytes_out: u64,
    /// Milliseconds of service.
    pub service_ms: u64,
    /// Wakes from doze, by a start, by making a container.
    pub wakes: Wakes,
    /// Refusals by one of [`REASONS`] or [`OTHER_REASON`]; left out where only sums were asked for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reasons: BTreeMap<String, u64>,
}

/// Wakes that a source waited for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wakes {
    /// Was paused.
    pub doze: u64,
    /// Was stopped.
    pub start: u64,
    /// Its container had to be made.
    pub create: u64,
}

/// The most a counter may say: what the database's integers hold.
const COUNTER_MAX: u64 = i64::MAX as u64;

impl Sums {
    /// Number of plain counters.
    pub const COLUMNS: usize = 15;

    /// The counters in the order of the database's columns.
    pub fn columns(&self) -> [u64; Self::COLUMNS] {
        let [s0, s1, s2, s3, s4, s5] = self.status;
        let Wakes { doze, start, create } = self.wakes;
        let Self { reads, writes, refused, bytes_in, bytes_out, service_ms, .. } = *self;
        [
            reads, writes, refused, s0, s1, s2, s3, s4, s5, bytes_in, bytes_out, service_ms, doze,
            start, create,
        ]
    }

    /// The reverse of [`columns`](Self::columns).
    pub fn from_columns(c: [u64; Self::COLUMNS]) -> Self {
        Self {
            reads: c[0],
            writes: c[1],
            refused: c[2],
            status: [c[3], c[4], c[5], c[6], c[7], c[8]],
            bytes_in: c[9],
            bytes_out: c[10],
            service_ms: c[11],
            wakes: Wakes { doze: c[12], start: c[13], create: c[14] },
            reasons: BTreeMap::new(),
        }
    }

    /// What a source said, with bounds on all of it.
    pub fn of(counters: &Counters) -> Self {
        let mut reasons = BTreeMap::new();
        for (name, times) in &counters.refused {
            let name = if REASONS.contains(&name.as_str()) { name } else { OTHER_REASON };
            add(reasons.entry(name.to_owned()).or_default(), *times);
        }
        let wakes = |kind| counters.wakes.get(&kind).copied().unwrap_or(0);
        let sums = Self {
            reads: counters.reads,
            writes: counters.writes,
            refused: reasons.values().fold(0, |sum, n| bounded(sum, *n)),
            status: counters.status,
            bytes_in: counters.bytes_in,
            bytes_out: counters.bytes_out,
            service_ms: counters.service_ms,
            wakes: Wakes {
                doze: wakes(WakeKind::Doze),
                start: wakes(WakeKind::Start),
                create: wakes(WakeKind::Create),
            },
            reasons: BTreeMap::new(),
        };
        Self { reasons, ..Self::from_columns(sums.columns().map(|n| n.min(COUNTER_MAX))) }
    }

    /// Requests that were forwarded: what quotas and bills count.
    pub fn forwarded(&self) -> u64 {
        bounded(self.reads, self.writes)
    }

    /// All requests.
    pub fn requests(&self) -> u64 {
        bounded(self.forwarded(), self.refused)
    }

    /// The newest of two reports of one source: the maximum of each counter.
    pub fn merge(&mut self, other: &Self) {
        self.each(other, u64::max);
    }

    /// The sum of two sources or hours.
    pub fn add(&mut self, other: &Self) {
        self.each(other, bounded);
    }

    fn each(&mut self, other: &Self, with: impl Fn(u64, u64) -> u64) {
        let mut columns = self.columns();
        for (mine, theirs) in columns.iter_mut().zip(other.columns()) {
            *mine = with(*mine, theirs);
        }
        let mut reasons = std::mem::take(&mut self.reasons);
        for (name, times) in &other.reasons {
            let mine = reasons.entry(name.clone()).or_default();
            *mine = with(*mine, *times);
        }
        *self = Self { reasons, ..Self::from_columns(columns) };
    }
}

fn bounded(a: u64, b: u64) -> u64 {
    a.saturating_add(b).min(COUNTER_MAX)
}

fn add(sum: &mut u64, more: u64) {
    *sum = bounded(*sum, more);
}

/// Whether a row's hour can be: not from a clock that is far ahead.
pub fn is_plausible(row: &UsageRow, now_s: u64) -> bool {
    row.hour <= now_s / HOUR_S + AHEAD_HOURS
}

/// What a report added to one tenant's hour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    /// Who.
    pub tenant: TenantId,
    /// Hours since 1970.
    pub hour: u64,
    /// Forwarded reads.
    pub reads: u64,
    /// Forwarded writes.
    pub writes: u64,
}

/// What each tenant has used of its quotas: kept exact with the ledger, so that a notice costs no
/// query. About 150 bytes per tenant that was seen this month or the last.
#[derive(Debug, Default)]
pub struct Tally {
    tenants: HashMap<TenantId, Used>,
}

/// Two days and two months, for reports of an hour ago come after midnight, and clocks differ.
#[derive(Debug, Clone, Copy, Default)]
struct Used {
    days: [Period; 2],
    months: [Period; 2],
}

#[derive(Debug, Clone, Copy, Default)]
struct Period {
    number: u64,
    requests: u64,
    writes: u64,
}

impl Used {
    /// Adds to the period `number`; periods older than the two newest are over.
    fn add(periods: &mut [Period; 2], number: u64, requests: u64, writes: u64) {
        if number > periods[0].number {
            periods[1] = periods[0];
            periods[0] = Period { number, ..Period::default() };
        } else if number > periods[1].number && number != periods[0].number {
            periods[1] = Period { number, ..Period::default() };
        }
        if let Some(period) = periods.iter_mut().find(|p| p.number == number) {
            add(&mut period.requests, requests);
            add(&mut period.writes, writes);
        }
    }

    fn get(periods: &[Period; 2], number: u64) -> Period {
        periods.iter().find(|p| p.number == number).copied().unwrap_or_default()
    }
}

impl Tally {
    /// Counts what a report added.
    pub fn count(&mut self, added: &Added) {
        let used = match self.tenants.get_mut(&added.tenant) {
            Some(used) => used,
            None => self.tenants.entry(added.tenant.clone()).or_default(),
        };
        let (start_s, requests) = (added.hour * HOUR_S, added.reads + added.writes);
        Used::add(&mut used.days, start_s / DAY_S, requests, added.writes);
        Used::add(&mut used.months, Month::of(start_s).0, requests, added.writes);
    }

    /// The counting half of a tenant's notice; the storage half is the disk's to fill in.
    pub fn notice(&self, tenant: &TenantId, now_s: u64) -> TenantNotice {
        let (day, month) = (now_s / DAY_S, Month::of(now_s));
        let used = self.tenants.get(tenant).copied().unwrap_or_default();
        let today = Used::get(&used.days, day);
        TenantNotice {
            requests_day: today.requests,
            requests_month: Used::get(&used.months, month.0).requests,
            writes_day: today.writes,
            day_ends_s: (day + 1) * DAY_S,
            month_ends_s: month.next().start_s(),
            ..TenantNotice::default()
        }
    }

    /// The tenants with the most requests of this day, most first.
    pub fn top(&self, now_s: u64, n: usize) -> Vec<(TenantId, u64)> {
        let day = now_s / DAY_S;
        let of_today = |(tenant, used): (&TenantId, &Used)| {
            let requests = Used::get(&used.days, day).requests;
            (requests > 0).then(|| (requests, tenant.clone()))
        };
        let mut all: Vec<_> = self.tenants.iter().filter_map(of_today).collect();
        all.sort_unstable_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        all.into_iter().take(n).map(|(requests, tenant)| (tenant, requests)).collect()
    }

    /// Forgets tenants that were not seen this month or the last.
    pub fn prune(&mut self, now_s: u64) {
        let month = Month::of(now_s).0;
        self.tenants.retain(|_, used| used.months[0].number + 1 >= month);
    }

    /// Tenants remembered.
    pub fn len(&self) -> usize {
        self.tenants.len()
    }

    /// Whether none is remembered.
    pub fn is_empty(&self) -> bool {
        self.tenants.is_empty()
    }
}

/// One tenant's line of a month.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Who.
    pub tenant: TenantId,
    /// Its last tier in that time.
    pub tier: TierName,
    /// Its last price in that time, in US cents a month.
    pub price_cents_month: u32,
    /// What it used.
    pub sums: Sums,
}
