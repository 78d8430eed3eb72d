//! The counters of one VM: a small closed set, summed up here and flushed to the host once a second,
//! so that no request costs a hostcall for them.

use super::Gate;
use crate::RefusalKind;
use crate::http::refusal::TABLE;

/// A counter. Its number is its index in [`METRICS`], which describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Metric {
    Requests,
    Forwarded,
    Answered,
    Refused,
    LeaseHits,
    VerdictHits,
    VerdictMisses,
    Verifies,
    VerifyFailures,
    FeedFailures,
    Leases,
    Renewals,
    LeaseFailures,
    Metered,
    Uncounted,
    ReportFailures,
    QuarantinedRows,
    Shadowed,
}

/// Name and help text of each [`Metric`], in their order.
const METRICS: [(&str, &str); 18] = [
    ("sq_gate.requests", "Requests that arrived."),
    ("sq_gate.forwarded", "Requests forwarded to a tenant's SQ."),
    ("sq_gate.answered", "Requests that the gateway itself answered with 2xx."),
    ("sq_gate.refused", "Requests refused by the filter, of all kinds."),
    ("sq_gate.lease_hits", "Requests whose tenant had a lease when they arrived."),
    ("sq_gate.verdict_hits", "Requests whose verdict was cached, in this VM or in shared data."),
    ("sq_gate.verdict_misses", "Requests that waited for their verdict."),
    ("sq_gate.verifies", "Verify requests to the relay."),
    ("sq_gate.verify_failures", "Verify requests without a valid response."),
    ("sq_gate.feed_failures", "Long polls of the changes feed without a valid response."),
    ("sq_gate.leases", "Lease requests for a request that waits."),
    ("sq_gate.renewals", "Lease requests ahead of a lease's end, and repeated ones."),
    ("sq_gate.lease_failures", "Lease requests without a valid response."),
    ("sq_gate.metered", "Requests put into usage reports; the ledger must have each of them once."),
    (
        "sq_gate.uncounted",
        "Requests that no report will contain, because there are more tenants than rows.",
    ),
    ("sq_gate.report_failures", "Usage reports without a valid response."),
    (
        "sq_gate.quarantined_rows",
        "Reported usage rows that the ledger does not believe and keeps in its quarantine.",
    ),
    ("sq_gate.shadowed", "Requests that would have been refused without shadow mode."),
];

/// Name of the counter that the filter itself keeps, described here with the others.
pub const HOSTCALLS: &str = "sq_gate.hostcalls";
const HOSTCALLS_HELP: &str = "Calls of the filter into Envoy.";

/// Prefix of a counter per kind of refusal, followed by the kind's name.
const REFUSED_PREFIX: &str = "sq_gate.refused.";

/// The names of all counters of the gate, in the order of the values of [`Gate::take_metrics`].
pub fn names() -> Vec<String> {
    let plain = METRICS.iter().map(|(name, _)| (*name).to_owned());
    let refused = TABLE.iter();
    plain.chain(refused.map(|row| format!("{REFUSED_PREFIX}{}", row.name))).collect()
}

/// Name and help text of every counter that the filter defines: those of [`names`], in their order,
/// then [`HOSTCALLS`]. Envoy exports no help texts, so `docs/metrics.md` takes them from here.
pub fn descriptions() -> Vec<(String, String)> {
    let plain = METRICS.iter().map(|(_, help)| (*help).to_owned());
    let refused = TABLE.iter().map(|row| format!("Requests refused as `{}`.", row.name));
    let mut described: Vec<_> = names().into_iter().zip(plain.chain(refused)).collect();
    described.push((HOSTCALLS.to_owned(), HOSTCALLS_HELP.to_owned()));
    described
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
        self.add_many(metric, 1);
    }

    pub(super) fn add_many(&mut self, metric: Metric, count: u64) {
        let counter = &mut self.plain[metric as usize];
        *counter = counter.saturating_add(count);
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
