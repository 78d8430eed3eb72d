//! Usage and the ledger's condition, collected for Prometheus at each scrape.
//!
//! Labels come from closed sets. No tenant is named: every user of the host may read the metrics.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::usage::ledger::{Condition, Counted, Ledger};
use crate::usage::suspicion::Suspicion;

/// Reads the ledger's counters at each scrape. They start at 0 with the process.
#[derive(Debug)]
pub(crate) struct UsageCollector(pub Ledger);

impl Collector for UsageCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let counted = self.0.counted();
        encode_usage(&mut encoder, &counted)?;
        encode_ledger(&mut encoder, &counted)?;
        encode_condition(&mut encoder, &self.0.condition())
    }
}

fn encode_usage(encoder: &mut DescriptorEncoder<'_>, counted: &Counted) -> Result<(), fmt::Error> {
    let sums = &counted.sums;
    encode_labelled(
        encoder,
        "usage_requests",
        "Number of tenants' requests that were new in the ledger, by class.",
        "class",
        [("read", sums.reads), ("write", sums.writes), ("refused", sums.refused)],
    )?;
    let classes = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
    encode_labelled(
        encoder,
        "usage_responses",
        "Number of responses to tenants' requests by status class; none: the client left first.",
        "status",
        classes.into_iter().zip(sums.status),
    )?;
    encode_labelled(
        encoder,
        "usage_refused",
        "Number of refused requests by problem type.",
        "reason",
        sums.reasons.iter().map(|(reason, count)| (reason.as_str(), *count)),
    )?;
    encode_labelled(
        encoder,
        "usage_bytes",
        "Number of bytes of request and response bodies by direction.",
        "direction",
        [("in", sums.bytes_in), ("out", sums.bytes_out)],
    )?;
    let help = "Time in milliseconds that tenants' requests took.";
    encode_counter(encoder, "usage_service_milliseconds", help, sums.service_ms)
}

fn encode_ledger(encoder: &mut DescriptorEncoder<'_>, counted: &Counted) -> Result<(), fmt::Error> {
    let Counted { reports, commits, failures, released, dropped, .. } = *counted;
    let help = "Number of usage reports accepted.";
    encode_counter(encoder, "ledger_reports", help, reports)?;
    let help = "Number of committed ledger transactions.";
    encode_counter(encoder, "ledger_commits", help, commits)?;
    let help = "Number of ledger transactions that failed.";
    encode_counter(encoder, "ledger_failures", help, failures)?;
    encode_labelled(
        encoder,
        "ledger_quarantined_rows",
        "Number of times that a usage row went to the quarantine, by the reason of disbelief.",
        "reason",
        Suspicion::ALL.map(|reason| {
            (reason.as_str(), counted.quarantined.get(&reason).copied().unwrap_or(0))
        }),
    )?;
    let help = "Number of usage rows that left the quarantine for the ledger.";
    encode_counter(encoder, "ledger_released_rows", help, released)?;
    let help = "Number of usage rows that left the quarantine because it was full.";
    encode_counter(encoder, "ledger_dropped_rows", help, dropped)
}

fn encode_condition(
    encoder: &mut DescriptorEncoder<'_>,
    condition: &Condition,
) -> Result<(), fmt::Error> {
    let help = "1 for the ledger's present condition, 0 for the others.";
    let mut metric =
        encoder.encode_descriptor("ledger_condition", help, None, MetricType::Gauge)?;
    for label in Condition::LABELS {
        let gauge = ConstGauge::new(i64::from(label == condition.label()));
        gauge.encode(metric.encode_family(&[("condition", label)])?)?;
    }
    Ok(())
}

fn encode_counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    count: u64,
) -> Result<(), fmt::Error> {
    let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    ConstCounter::new(count).encode(metric)
}

/// Encodes one counter per value of `label`.
fn encode_labelled<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &str,
    counts: impl IntoIterator<Item = (&'a str, u64)>,
) -> Result<(), fmt::Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (value, count) in counts {
        ConstCounter::new(count).encode(metric.encode_family(&[(label, value)])?)?;
    }
    Ok(())
}
