//! Usage for Prometheus. Labels come from closed sets; tenants are named only at the top.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::usage::ledger::{Condition, Counted, Ledger};

/// Tenants that get a label: enough to see who makes the load, few enough for any Prometheus.
pub const TOP_TENANTS: usize = 10;

/// Reads the ledger's numbers at each scrape. Counters start at 0 with the process.
#[derive(Debug)]
pub struct UsageCollector(pub Ledger);

/// One label's name and value, and the count.
type LabelledCount<'a> = (&'a str, &'a str, u64);

impl Collector for UsageCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Counted { sums, reports, commits, failures, refused_rows } = self.0.counted();
        let [none, x1, x2, x3, x4, x5] = sums.status;
        let reasons: Vec<_> =
            sums.reasons.iter().map(|(name, n)| ("reason", name.as_str(), *n)).collect();
        let requests = [
            ("class", "read", sums.reads),
            ("class", "write", sums.writes),
            ("class", "refused", sums.refused),
        ];
        let answers = [
            ("status", "none", none),
            ("status", "1xx", x1),
            ("status", "2xx", x2),
            ("status", "3xx", x3),
            ("status", "4xx", x4),
            ("status", "5xx", x5),
        ];
        let bytes = [("direction", "in", sums.bytes_in), ("direction", "out", sums.bytes_out)];
        let families: [(&str, &str, &[LabelledCount<'_>]); 4] = [
            ("sq_usage_requests", "Tenants' requests by class, as new in the ledger", &requests),
            ("sq_usage_answers", "Answers to tenants by class of status", &answers),
            ("sq_usage_refused", "Refused requests by problem", &reasons),
            ("sq_usage_bytes", "Bytes of bodies by direction", &bytes),
        ];
        for (name, help, counts) in families {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (label, value, count) in counts {
                let labels = [(*label, *value)];
                ConstCounter::new(*count).encode(metric.encode_family(&labels)?)?;
            }
        }
        for (name, help, count) in [
            ("sq_usage_service_milliseconds", "Time tenants' requests took", sums.service_ms),
            ("sq_ledger_reports", "Usage reports taken", reports),
            ("sq_ledger_commits", "Transactions of the ledger", commits),
            ("sq_ledger_failures", "Transactions that failed", failures),
            ("sq_ledger_refused_rows", "Rows too late or too far ahead to be taken", refused_rows),
        ] {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(count).encode(metric)?;
        }
        let help = "1 for what the ledger is";
        let mut metric =
            encoder.encode_descriptor("sq_ledger_condition", help, None, MetricType::Gauge)?;
        let condition = self.0.condition().label();
        for label in Condition::LABELS {
            let gauge = ConstGauge::new(i64::from(label == condition));
            gauge.encode(metric.encode_family(&[("condition", label)])?)?;
        }
        let help = "Requests of this UTC day of the busiest tenants";
        let name = "sq_usage_top_requests_today";
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (tenant, requests) in self.0.top(TOP_TENANTS) {
            let gauge = ConstGauge::new(i64::try_from(requests).unwrap_or(i64::MAX));
            gauge.encode(metric.encode_family(&[("tenant", tenant.as_str())])?)?;
        }
        Ok(())
    }
}
