//! The ledger against Envoy's own counters, over one life of one Envoy.
//!
//! Two things are compared. Envoy counts every request of the listener by class of status, also those
//! that are nobody's: no or unknown key (401), preflights and a tenant's own usage page (2xx),
//! requests that Envoy refused before the filter saw them (400, 413, 431 …), 503 while the filter
//! starts anew. The ledger counts tenants' requests only, so Envoy must have at least what the ledger
//! has: if it has less, requests were counted twice. And the filter's own counter in Envoy's stats
//! says how many requests it has put into reports: if the ledger has fewer, requests were lost.
//!
//! Requests whose client went away before any answer have no class in Envoy: they are the
//! difference of `downstream_rq_total`, `downstream_rq_completed` and `downstream_rq_active`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::usage::sums::Sums;

/// Envoy's counters of one listener: `http.<stat_prefix>.downstream_rq_*`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvoyCounters {
    /// `downstream_rq_total`.
    pub total: u64,
    /// `downstream_rq_active`.
    pub active: u64,
    /// `downstream_rq_1xx` … `downstream_rq_5xx`.
    pub status: [u64; 5],
}

/// One class of status, or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// `2xx`, `no answer` and so on.
    pub class: &'static str,
    /// Envoy's.
    pub envoy: u64,
    /// The ledger's.
    pub ledger: u64,
    /// Envoy has more: nobody's requests, those that came while it was looked, lost ones.
    pub nobodys: u64,
    /// The ledger has more: counted twice.
    pub doubled: u64,
}

/// The comparison.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reconciliation {
    /// By class.
    pub rows: Vec<Row>,
    /// All.
    pub total: Row,
    /// What the filter had put into reports; it says so once a second, so it may say less than the
    /// ledger has.
    pub metered: u64,
    /// Of these, missing in the ledger.
    pub lost: u64,
}

const CLASSES: [&str; 6] = ["no answer", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// Compares. `metered` is what the filter had put into reports some time before the ledger was asked,
/// long enough for a report to arrive; `envoy` is from after that.
pub fn reconcile(envoy: &EnvoyCounters, metered: u64, ledger: &Sums) -> Reconciliation {
    let answered: u64 = envoy.status.iter().sum();
    let unanswered = envoy.total.saturating_sub(answered).saturating_sub(envoy.active);
    let [x1, x2, x3, x4, x5] = envoy.status;
    let theirs = [unanswered, x1, x2, x3, x4, x5];
    let rows: Vec<Row> = CLASSES
        .into_iter()
        .zip(theirs)
        .zip(ledger.status)
        .map(|((class, envoy), ledger)| row(class, envoy, ledger))
        .collect();
    let total = row("total", theirs.iter().sum(), ledger.status.iter().sum());
    let lost = metered.saturating_sub(total.ledger);
    Reconciliation { rows, total, metered, lost }
}

fn row(class: &'static str, envoy: u64, ledger: u64) -> Row {
    let (nobodys, doubled) = (envoy.saturating_sub(ledger), ledger.saturating_sub(envoy));
    Row { class, envoy, ledger, nobodys, doubled }
}

impl Reconciliation {
    /// Nothing was counted twice, nothing was lost.
    ///
    /// Judged by the total: a client that goes away in the middle of an answer may be in a class for
    /// one and in none for the other.
    pub fn is_sound(&self) -> bool {
        self.total.doubled == 0 && self.lost == 0
    }
}

impl fmt::Display for Reconciliation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles = ["class", "envoy", "ledger", "nobody's", "doubled"];
        let [class, envoy, ledger, nobodys, doubled] = titles;
        writeln!(f, "{class:<10}{envoy:>14}{ledger:>14}{nobodys:>14}{doubled:>10}")?;
        for row in self.rows.iter().chain([&self.total]) {
            let Row { class, envoy, ledger, nobodys, doubled } = row;
            writeln!(f, "{class:<10}{envoy:>14}{ledger:>14}{nobodys:>14}{doubled:>10}")?;
        }
        let Self { metered, lost, .. } = self;
        writeln!(f, "lost {lost}: the filter had put {metered} requests into reports")
    }
}
