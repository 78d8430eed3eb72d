//! What the ledger does not believe of a usage report, pure.
//!
//! A row that is beyond a bound of [`protocol::usage::bounds`], or that names a tenant or tier which
//! does not exist, goes to the quarantine with one of these reasons. All other rows of its report
//! are taken.

use protocol::limits::PRICE_CENTS_MAX;
use protocol::usage::UsageRow;
use protocol::usage::bounds::{
    BYTES_MAX, BYTES_PER_S_MAX, JUMP_SLACK_S, REQUESTS_MAX, REQUESTS_PER_S_MAX, SERVICE_MS_MAX,
};
use serde::{Deserialize, Serialize};

use crate::usage::sums::{Sums, Wakes};

/// Largest count in a day, a month or a released row: that of 4,000 workers in a month.
pub const STORED_REQUESTS_MAX: u64 = 1_000_000 * REQUESTS_MAX;
/// Largest number of bytes, or of milliseconds, in a day, a month or a released row.
pub const STORED_AMOUNT_MAX: u64 = 1_000_000_000_000_000_000;

/// Reason why a row is in the quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Suspicion {
    /// It is not a row: a name, a number or a field has another form.
    Malformed,
    /// Its report has more rows than any gate sends.
    TooManyRows,
    /// There are more sources than any installation has.
    TooManySources,
    /// A counter is larger than a worker can count in an hour.
    CounterTooLarge,
    /// Its source has counted more since its last report than a worker can.
    Jump,
    /// Its hour has become part of a day, or is older than those.
    HourTooOld,
    /// Its hour is further ahead than clocks differ.
    HourAhead,
    /// Its price is above the registry's bound.
    Price,
    /// Its tenant had another tier, and no lease and no row had this one. The first lease of the
    /// tier releases it.
    UnknownTier,
    /// Its tenant has no folder, no lease and no earlier row. The first lease releases it.
    UnknownTenant,
    /// It was in a ledger of an earlier release, beyond a bound.
    Stored,
    /// The operator removed it.
    Removed,
    /// The operator changed its counters.
    Replaced,
}

impl Suspicion {
    /// All reasons, the labels of a metric.
    pub const ALL: [Self; 13] = [
        Self::Malformed,
        Self::TooManyRows,
        Self::TooManySources,
        Self::CounterTooLarge,
        Self::Jump,
        Self::HourTooOld,
        Self::HourAhead,
        Self::Price,
        Self::UnknownTier,
        Self::UnknownTenant,
        Self::Stored,
        Self::Removed,
        Self::Replaced,
    ];

    /// Returns its name in the database, metrics and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::TooManyRows => "too-many-rows",
            Self::TooManySources => "too-many-sources",
            Self::CounterTooLarge => "counter-too-large",
            Self::Jump => "jump",
            Self::HourTooOld => "hour-too-old",
            Self::HourAhead => "hour-ahead",
            Self::Price => "price",
            Self::UnknownTier => "unknown-tier",
            Self::UnknownTenant => "unknown-tenant",
            Self::Stored => "stored",
            Self::Removed => "removed",
            Self::Replaced => "replaced",
        }
    }

    /// Reads a name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }
}

/// The hours whose rows are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HourWindow {
    /// The oldest hour that has not become part of a day.
    pub(super) first: u64,
    /// The furthest hour ahead.
    pub(super) last: u64,
}

/// Judges the hour, the counters and the price of a row.
pub(super) fn judge(row: &UsageRow, window: HourWindow) -> Option<Suspicion> {
    if row.hour < window.first {
        return Some(Suspicion::HourTooOld);
    }
    if row.hour > window.last {
        return Some(Suspicion::HourAhead);
    }
    if row.limits.price_cents_month > PRICE_CENTS_MAX {
        return Some(Suspicion::Price);
    }
    let sums = Sums::from_counters(&row.counters);
    let bounds = Bounds { count: REQUESTS_MAX, bytes: BYTES_MAX, service_ms: SERVICE_MS_MAX };
    (!bounds.contain(&sums)).then_some(Suspicion::CounterTooLarge)
}

/// True if the counters can be added to the ledger without making its sums useless.
pub(super) fn is_storable(sums: &Sums) -> bool {
    let amount = STORED_AMOUNT_MAX;
    Bounds { count: STORED_REQUESTS_MAX, bytes: amount, service_ms: amount }.contain(sums)
}

struct Bounds {
    count: u64,
    bytes: u64,
    service_ms: u64,
}

impl Bounds {
    fn contain(&self, sums: &Sums) -> bool {
        let Sums { reads, writes, refused, status, bytes_in, bytes_out, service_ms, wakes, .. } =
            sums;
        let Wakes { doze, start, create } = wakes;
        let mut counts = [reads, writes, refused, doze, start, create].into_iter().chain(status);
        counts.all(|count| *count <= self.count)
            && bytes_in.max(bytes_out) <= &self.bytes
            && *service_ms <= self.service_ms
    }
}

/// Bound on the increase that a source can report: the time since its last report at full speed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    requests: u64,
    bytes: u64,
}

impl Budget {
    /// The budget of a row that the operator or a lease has released.
    pub(super) const UNLIMITED: Self = Self { requests: u64::MAX, bytes: u64::MAX };

    pub(super) fn after(elapsed_s: u64) -> Self {
        let s = elapsed_s.saturating_add(JUMP_SLACK_S);
        Self {
            requests: s.saturating_mul(REQUESTS_PER_S_MAX),
            bytes: s.saturating_mul(BYTES_PER_S_MAX),
        }
    }

    /// Takes an increase out of the budget; changes nothing and returns false if it is too large.
    pub(super) fn take(&mut self, increase: &Sums) -> bool {
        let bytes = increase.bytes_in.saturating_add(increase.bytes_out);
        let left = self.requests.checked_sub(increase.requests());
        let (Some(requests), Some(bytes)) = (left, self.bytes.checked_sub(bytes)) else {
            return false;
        };
        *self = Self { requests, bytes };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_one_name() {
        for reason in Suspicion::ALL {
            assert_eq!(Suspicion::parse(reason.as_str()), Some(reason));
            let json = serde_json::to_string(&reason).unwrap();
            assert_eq!(json, format!("\"{}\"", reason.as_str()));
        }
        assert_eq!(Suspicion::parse("evil"), None);
    }

    #[test]
    fn busiest_measured_worker_is_believed_for_hours() {
        // 20,000 requests a second, the most that a worker was measured at.
        let day = Sums { reads: 20_000 * 13 * 3_600, ..Sums::default() };
        let bounds = Bounds { count: REQUESTS_MAX, bytes: BYTES_MAX, service_ms: SERVICE_MS_MAX };
        assert!(bounds.contain(&day));
        assert!(Budget::after(13 * 3_600).take(&day));
        assert!(!bounds.contain(&Sums { writes: REQUESTS_MAX + 1, ..Sums::default() }));
        assert!(!bounds.contain(&Sums { bytes_out: BYTES_MAX + 1, ..Sums::default() }));
        assert!(!bounds.contain(&Sums { status: [0, 0, 0, 0, 0, u64::MAX], ..Sums::default() }));
    }

    #[test]
    fn budget_bounds_all_rows_of_a_report_together() {
        let mut budget = Budget::after(0);
        let half = Sums { reads: JUMP_SLACK_S * REQUESTS_PER_S_MAX / 2, ..Sums::default() };
        assert!(budget.take(&half) && budget.take(&half));
        assert!(!budget.take(&Sums { refused: 1, ..Sums::default() }));
        assert!(budget.take(&Sums { status: [0, 0, 9, 0, 0, 0], ..Sums::default() }));
    }
}
