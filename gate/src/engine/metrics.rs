//! The counters of one VM: a small closed set, summed up here and flushed to the host once a second,
//! so that no request costs a hostcall for them.

use super::Gate;
use crate::RefusalKind;
use crate::http::refusal::TABLE;

/// A counter. Its number is its index in [`METRICS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Metric {
    /// Requests that came.
    Requests,
    /// Requests forwarded to a tenant.
    Forwarded,
    /// Requests that the gateway answered itself with 2xx.
    Answered,
    /// Refused requests of all kinds.
    Refused,
    /// Requests whose tenant had a lease when they came.
    LeaseHits,
    /// Requests whose verdict was cached, in this VM or in shared data.
    VerdictHits,
    /// Requests that waited for their verdict.
    VerdictMisses,
    /// Verify requests to the relay.
    Verifies,
    /// Verify requests without a valid response.
    VerifyFailures,
    /// Long polls for changes without a valid response.
    FeedFailures,
    /// Lease requests for a stream that waits.
    Leases,
    /// Lease requests ahead of a lease's end, and repeated ones.
    Renewals,
    /// Lease requests without a valid response.
    LeaseFailures,
    /// Requests counted as usage: the ledger must have each of them once.
    Metered,
    /// Requests that no report will contain, because there are more tenants than rows.
    Uncounted,
    /// Usage reports without a valid response.
    ReportFailures,
    /// Requests that only shadow mode has saved from a refusal.
    Shadowed,
}

/// Names in the order of [`Metric`].
const METRICS: [&str; 17] = [
    "sq_gate.requests",
    "sq_gate.forwarded",
    "sq_gate.answered",
    "sq_gate.refused",
    "sq_gate.lease_hits",
    "sq_gate.verdict_hits",
    "sq_gate.verdict_misses",
    "sq_gate.verifies",
    "sq_gate.verify_failures",
    "sq_gate.feed_failures",
    "sq_gate.leases",
    "sq_gate.renewals",
    "sq_gate.lease_failures",
    "sq_gate.metered",
    "sq_gate.uncounted",
    "sq_gate.report_failures",
    "sq_gate.shadowed",
];

/// Followed by the name of a kind of refusal.
const REFUSED_PREFIX: &str = "sq_gate.refused.";

/// The names of all counters, in the order of the values of [`Gate::take_metrics`].
pub fn names() -> Vec<String> {
    let plain = METRICS.iter().map(|name| (*name).to_owned());
    let refused = TABLE.iter();
    plain.chain(refused.map(|row| format!("{REFUSED_PREFIX}{}", row.name))).collect()
}

/// Counts since the last flush.
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
    /// The counts since the last call, in the order of [`names`].
    pub fn take_metrics(&mut self) -> impl Iterator<Item = u64> + use<> {
        let counts = std::mem::replace(&mut self.counts, Counts::ZERO);
        counts.plain.into_iter().chain(counts.refused)
    }
}
