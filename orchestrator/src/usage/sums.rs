//! Arithmetic of usage counters, pure.
//!
//! Counters of one source only grow, so the maximum of two reports is the newer one: a report that
//! arrives twice or late changes nothing, and one that is lost is made good by the next. Sources
//! and hours are added up.

use std::collections::BTreeMap;

use protocol::usage::{OTHER_REASON, REASONS};
use protocol::{Counters, TenantId, TierName, WakeKind};
use serde::{Deserialize, Serialize};

/// The largest value of a counter: the database's integers are signed.
const COUNTER_MAX: u64 = i64::MAX as u64;

/// Counters summed over sources and hours, each at most 2^63 - 1.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// Requests forwarded that read.
    pub reads: u64,
    /// Requests forwarded that write.
    pub writes: u64,
    /// Requests refused by the gateway.
    pub refused: u64,
    /// Responses by status class; index 0 counts requests that got none.
    pub status: [u64; 6],
    /// Bytes of request bodies and query strings.
    pub bytes_in: u64,
    /// Bytes of response bodies.
    pub bytes_out: u64,
    /// Milliseconds of service.
    pub service_ms: u64,
    /// Wakes by the depth of the sleep.
    pub wakes: Wakes,
    /// Refusals by one of [`REASONS`] or [`OTHER_REASON`]; absent where only totals were queried.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reasons: BTreeMap<String, u64>,
}

/// Wakes that requests of a source waited for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wakes {
    /// From doze: SQ was paused.
    pub doze: u64,
    /// From sleep: SQ was started.
    pub start: u64,
    /// From sleep, with a container that had to be created.
    pub create: u64,
}

/// One tenant's usage over a span of time, with the tier and price that applied last in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantSums {
    /// The tenant's name.
    pub tenant: TenantId,
    /// Its last tier in the span.
    pub tier: TierName,
    /// Its last price in the span, in US cents a month.
    pub price_cents_month: u32,
    /// Its usage in the span.
    pub sums: Sums,
}

impl Sums {
    /// Number of plain counters.
    pub const COLUMNS: usize = 15;

    /// Returns the counters in the order of the database's columns.
    pub fn columns(&self) -> [u64; Self::COLUMNS] {
        let [s0, s1, s2, s3, s4, s5] = self.status;
        let Wakes { doze, start, create } = self.wakes;
        let Self { reads, writes, refused, bytes_in, bytes_out, service_ms, .. } = *self;
        [
            reads, writes, refused, s0, s1, s2, s3, s4, s5, bytes_in, bytes_out, service_ms, doze,
            start, create,
        ]
    }

    /// Builds sums without reasons; the reverse of [`columns`](Self::columns).
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

    /// Takes a source's counters with bounds: unknown reasons are merged into one and numbers
    /// are capped, so that a broken source can fill neither the database nor the metrics.
    pub fn from_counters(counters: &Counters) -> Self {
        let reasons = known_reasons(&counters.refused);
        let sums = Self {
            reads: counters.reads,
            writes: counters.writes,
            refused: reasons.values().copied().fold(0, capped_sum),
            status: counters.status,
            bytes_in: counters.bytes_in,
            bytes_out: counters.bytes_out,
            service_ms: counters.service_ms,
            wakes: Wakes {
                doze: wakes(counters, WakeKind::Doze),
                start: wakes(counters, WakeKind::Start),
                create: wakes(counters, WakeKind::Create),
            },
            reasons: BTreeMap::new(),
        };
        let capped = sums.columns().map(|count| count.min(COUNTER_MAX));
        Self { reasons, ..Self::from_columns(capped) }
    }

    /// Builds the counters of a report; the reverse of [`from_counters`](Self::from_counters).
    pub(super) fn to_counters(&self) -> Counters {
        let mut refused = self.reasons.clone();
        let without_reason = self.refused.saturating_sub(capped_total(refused.values()));
        if without_reason > 0 {
            let other = refused.entry(OTHER_REASON.to_owned()).or_default();
            *other = capped_sum(*other, without_reason);
        }
        let Wakes { doze, start, create } = self.wakes;
        let wakes = [(WakeKind::Doze, doze), (WakeKind::Start, start), (WakeKind::Create, create)];
        Counters {
            reads: self.reads,
            writes: self.writes,
            refused,
            status: self.status,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            service_ms: self.service_ms,
            wakes: wakes.into_iter().filter(|(_, count)| *count > 0).collect(),
        }
    }

    /// Returns the requests that were forwarded, which quotas and bills count.
    pub fn forwarded(&self) -> u64 {
        capped_sum(self.reads, self.writes)
    }

    /// Returns all requests, forwarded and refused.
    pub fn requests(&self) -> u64 {
        capped_sum(self.forwarded(), self.refused)
    }

    /// Merges another report of the same source and hour: takes the maximum of each counter.
    pub fn merge(&mut self, other: &Self) {
        self.combine(other, u64::max);
    }

    /// Adds the sums of another source or hour.
    pub fn add(&mut self, other: &Self) {
        self.combine(other, capped_sum);
    }

    /// Subtracts what the same source had reported earlier for the same hour.
    pub(super) fn subtract(&mut self, earlier: &Self) {
        self.combine(earlier, u64::saturating_sub);
    }

    fn combine(&mut self, other: &Self, operation: impl Fn(u64, u64) -> u64) {
        let mut columns = self.columns();
        for (own, theirs) in columns.iter_mut().zip(other.columns()) {
            *own = operation(*own, theirs);
        }
        let mut reasons = std::mem::take(&mut self.reasons);
        for (name, count) in &other.reasons {
            let own = reasons.entry(name.clone()).or_default();
            *own = operation(*own, *count);
        }
        *self = Self { reasons, ..Self::from_columns(columns) };
    }
}

/// Merges all names that are not in [`REASONS`] into one.
pub(super) fn known_reasons(refused: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let mut reasons = BTreeMap::new();
    for (name, count) in refused {
        let name = if REASONS.contains(&name.as_str()) { name } else { OTHER_REASON };
        let sum = reasons.entry(name.to_owned()).or_default();
        *sum = capped_sum(*sum, *count);
    }
    reasons
}

fn wakes(counters: &Counters, kind: WakeKind) -> u64 {
    counters.wakes.get(&kind).copied().unwrap_or(0)
}

/// Adds two counters; the sum stops at the largest value instead of wrapping.
pub(super) fn capped_sum(a: u64, b: u64) -> u64 {
    a.saturating_add(b).min(COUNTER_MAX)
}

/// Adds counters; the sum stops at the largest value.
pub(crate) fn capped_total<'a>(counts: impl IntoIterator<Item = &'a u64>) -> u64 {
    counts.into_iter().copied().fold(0, capped_sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_source_fills_neither_names_nor_numbers() {
        let mut counters = Counters { reads: u64::MAX, ..Counters::default() };
        for n in 0..1_000 {
            counters.refused.insert(format!("reason-{n}"), u64::MAX / 2);
        }
        counters.refused.insert("<script>".to_owned(), 1);
        counters.refused.insert("rate-limited".to_owned(), 7);
        let sums = Sums::from_counters(&counters);
        assert_eq!(sums.reads, i64::MAX.unsigned_abs());
        let names: Vec<_> = sums.reasons.keys().map(String::as_str).collect();
        assert_eq!((names, sums.reasons["rate-limited"]), (vec!["other", "rate-limited"], 7));
        let mut twice = sums.clone();
        twice.add(&sums);
        assert_eq!(twice.requests(), i64::MAX.unsigned_abs(), "capped, not wrapped");
    }
}
