//! Compares the ledger with Envoy's own counters, over one run of one Envoy.
//!
//! Two things are compared:
//!
//! - Envoy counts every request of the listener by status class. Some belong to no tenant: requests
//!   without a key or with an unknown one (401), preflights and a tenant's own usage page (2xx),
//!   requests that Envoy refused before the filter saw them (400, 413, 431 …), and 503 while the
//!   filter restarts. The ledger counts tenants' requests only, so Envoy must have at least as many.
//!   If it has fewer, requests were counted twice.
//! - The filter's own counter in Envoy's stats says how many requests it has put into reports. If
//!   the ledger has fewer, requests were lost.
//!
//! A request whose client left before any response has no class in Envoy. Those are the difference
//! of `downstream_rq_total`, `downstream_rq_completed` and `downstream_rq_active`.

use serde::{Deserialize, Serialize};

use crate::usage::sums::{Sums, capped_total};

/// Envoy's counters of one listener: `http.<stat_prefix>.downstream_rq_*`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EnvoyCounters {
    /// The counter `downstream_rq_total`.
    pub total: u64,
    /// The gauge `downstream_rq_active`.
    pub active: u64,
    /// The counters `downstream_rq_1xx` to `downstream_rq_5xx`.
    pub status: [u64; 5],
}

/// The comparison of one status class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ClassRow {
    /// The class, such as `2xx` or `none`.
    pub class: &'static str,
    /// Count in Envoy's stats.
    pub envoy: u64,
    /// Count in the ledger.
    pub ledger: u64,
    /// Envoy's surplus: requests of no tenant, those that came during the comparison, lost ones.
    pub unattributed: u64,
    /// The ledger's surplus: requests counted twice.
    pub doubled: u64,
}

/// The whole comparison.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Reconciliation {
    /// One row per status class.
    pub rows: Vec<ClassRow>,
    /// Sum of all classes.
    pub total: ClassRow,
    /// Requests that the filter had put into reports. It updates this once a second, so it may be
    /// less than the ledger has.
    pub metered: u64,
    /// Metered requests that the ledger does not have.
    pub lost: u64,
}

const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// Compares the counters.
///
/// `metered` must be read long enough before the ledger for a report to arrive, and `envoy` after
/// the ledger: requests in between then count as Envoy's surplus and as no fault.
pub(crate) fn reconcile(envoy: &EnvoyCounters, metered: u64, ledger: &Sums) -> Reconciliation {
    let responses = capped_total(&envoy.status);
    let unanswered = envoy.total.saturating_sub(responses).saturating_sub(envoy.active);
    let [x1, x2, x3, x4, x5] = envoy.status;
    let by_class = [unanswered, x1, x2, x3, x4, x5];
    let rows: Vec<ClassRow> = CLASSES
        .into_iter()
        .zip(by_class)
        .zip(ledger.status)
        .map(|((class, envoy), ledger)| ClassRow::new(class, envoy, ledger))
        .collect();
    let total = ClassRow::new("total", capped_total(&by_class), capped_total(&ledger.status));
    let lost = metered.saturating_sub(total.ledger);
    Reconciliation { rows, total, metered, lost }
}

impl ClassRow {
    fn new(class: &'static str, envoy: u64, ledger: u64) -> Self {
        let unattributed = envoy.saturating_sub(ledger);
        let doubled = ledger.saturating_sub(envoy);
        Self { class, envoy, ledger, unattributed, doubled }
    }
}

impl Reconciliation {
    /// Returns true if nothing was counted twice and nothing was lost.
    ///
    /// Judged by the total: when a client leaves in the middle of a response, one side may count a
    /// class and the other none.
    pub(crate) fn is_sound(&self) -> bool {
        self.total.doubled == 0 && self.lost == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surplus_doubles_and_losses_are_told_apart() {
        let envoy = EnvoyCounters { total: 112, active: 1, status: [0, 90, 0, 15, 5] };
        let mut sums = Sums { status: [1, 0, 88, 0, 10, 5], ..Sums::default() };
        let good = reconcile(&envoy, 104, &sums);
        assert!(good.is_sound());
        let surplus: Vec<_> = good.rows.iter().map(|row| row.unattributed).collect();
        assert_eq!(surplus, [0, 0, 2, 0, 5, 0], "a preflight, a usage page, five bad keys");
        assert!(!reconcile(&envoy, 107, &sums).is_sound(), "three are lost");
        assert_eq!(reconcile(&envoy, 107, &sums).lost, 3);
        assert_eq!(reconcile(&envoy, 100, &sums).lost, 0, "the filter updates once a second");
        sums.status[2] = 100;
        let bad = reconcile(&envoy, 104, &sums);
        assert_eq!((bad.is_sound(), bad.total.doubled, bad.rows[2].doubled), (false, 5, 10));
    }
}
