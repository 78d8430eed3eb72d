//! The counters of one VM: a small closed set, summed here and given to the host now and then, so
//! that no request costs a hostcall for them.

use super::Gate;
use crate::RefusalKind;
use crate::http::refusal::TABLE;

/// One counter; its place in [`METRICS`] is its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Metric {
    /// Requests seen.
    Requests,
    /// Requests forwarded to a tenant.
    Forwarded,
    /// Requests answered here with 2xx.
    Answered,
    /// Requests refused.
    Refused,
    /// Leases that were held when they were needed.
    LeaseHits,
    /// Verdicts found in this VM or in shared data.
    VerdictHits,
    /// Verdicts that were waited for.
    VerdictMisses,
    /// Questions to the relay.
    Verifies,
    /// Questions to the relay without an answer.
    VerifyFailures,
    /// Long polls without an answer.
    FeedFailures,
    /// Questions to the orchestrator for a request that waits.
    Leases,
    /// Questions to the orchestrator ahead of a lease's end.
    Renewals,
    /// Questions to the orchestrator without an answer.
    LeaseFailures,
    /// Requests put into usage reports: what the ledger must have of this Envoy, each once.
    Metered,
    /// Requests that no report will have, for there are more tenants than rows: see `usage.rs`.
    Uncounted,
    /// Usage reports without an answer.
    ReportFailures,
    /// Requests that shadow mode did not refuse.
    Shadowed,
}

/// Names, in the order of [`Metric`].
const METRICS: [&str; 17] = [
    "sq.requests",
    "sq.forwarded",
    "sq.answered",
    "sq.refused",
    "sq.lease_hits",
    "sq.verdict_hits",
    "sq.verdict_misses",
    "sq.verifies",
    "sq.verify_failures",
    "sq.feed_failures",
    "sq.leases",
    "sq.renewals",
    "sq.lease_failures",
    "sq.metered",
    "sq.uncounted",
    "sq.report_failures",
    "sq.shadowed",
];

/// What is counted of refusals: each kind by its name, after this.
const REFUSED_PREFIX: &str = "sq.refused.";

/// The names of all counters, in the order of the values of [`Gate::take_metrics`].
pub fn names() -> Vec<String> {
    let plain = METRICS.iter().map(|name| (*name).to_owned());
    let refused = TABLE.iter();
    plain.chain(refused.map(|row| format!("{REFUSED_PREFIX}{}", row.name))).collect()
}

/// Counts since they were taken last.
#[derive(Debug)]
pub(super) struct Counts {
    plain: [u64; METRICS.len()],
    refused: [u64; TABLE.len()],
}

impl Counts {
    pub(super) const ZERO: Self = Self { plain: [0; METRICS.len()], refused: [0; TABLE.len()] };

    pub(super) fn add(&mut self, metric: Metric) {
        self.plain[metric as usize] += 1;
    }

    pub(super) fn add_refusal(&mut self, kind: RefusalKind) {
        self.add(Metric::Refused);
        self.refused[kind as usize] += 1;
    }
}

impl Gate {
    /// Counters since the last time, in the order of [`names`].
    pub fn take_metrics(&mut self) -> impl Iterator<Item = u64> + use<> {
        let counts = std::mem::replace(&mut self.counts, Counts::ZERO);
        counts.plain.into_iter().chain(counts.refused)
    }
}
