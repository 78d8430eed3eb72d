//! The relay's metrics, in the `OpenMetrics` text format.
//!
//! Every name starts with [`PREFIX`], so that none is confused with one of another part. The only
//! label is `outcome`, from a closed set.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Prefix of every metric name; the registry joins it to the rest with an underscore.
const PREFIX: &str = "sq_relay";

/// All metrics, with the registry that encodes them.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) verifies: Family<OutcomeLabel, Counter>,
    pub(crate) changes: Family<OutcomeLabel, Counter>,
    pub(crate) loads: Family<OutcomeLabel, Counter>,
    /// 1 while verdicts come from the source's current text, else 0.
    pub(crate) source_good: Gauge,
    /// 1 if the last good copy was written, else 0.
    pub(crate) last_good_written: Gauge,
    pub(crate) revision: Gauge,
    pub(crate) tenants: Gauge,
    pub(crate) keys: Gauge,
    pub(crate) loaded_s: Gauge<u64, AtomicU64>,
    pub(crate) connections: Gauge,
    pub(crate) connections_refused: Counter,
    pub(crate) long_polls: Gauge,
    pub(crate) handshakes_failed: Counter,
    pub(crate) handshakes_displaced: Counter,
    pub(crate) certificate_loads: Family<OutcomeLabel, Counter>,
    pub(crate) certificate_end_s: Gauge<u64, AtomicU64>,
}

/// The label `outcome`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OutcomeLabel {
    outcome: Outcome,
}

/// The result of a request or load; variants are named like the label's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the encoder takes the label's text from the name")]
pub(crate) enum Outcome {
    /// Verify: the key is live and its tenant is active.
    active,
    /// Verify: the key's tenant is suspended.
    suspended,
    /// Verify: no live key has this digest.
    unknown,
    /// Verify and changes: no registry has been read yet.
    unavailable,
    /// Changes: some digests have changed.
    changed,
    /// Changes: no digest has changed.
    unchanged,
    /// Changes: the gateway must drop all its verdicts.
    reset,
    /// Loads: the registry or certificates were accepted.
    good,
    /// Loads: the registry or certificates are invalid.
    refused,
    /// Loads: the registry looks truncated.
    suspicious,
    /// Loads: the source can't be read.
    gone,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix(PREFIX),
            verifies: Family::default(),
            changes: Family::default(),
            loads: Family::default(),
            source_good: Gauge::default(),
            last_good_written: Gauge::default(),
            revision: Gauge::default(),
            tenants: Gauge::default(),
            keys: Gauge::default(),
            loaded_s: Gauge::default(),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
            long_polls: Gauge::default(),
            handshakes_failed: Counter::default(),
            handshakes_displaced: Counter::default(),
            certificate_loads: Family::default(),
            certificate_end_s: Gauge::default(),
        };
        metrics.register_requests();
        metrics.register_registry();
        metrics.register_connections();
        metrics.create_series();
        metrics
    }
}

impl Metrics {
    fn register_requests(&mut self) {
        let r = &mut self.registry;
        r.register("verifies", "Responses to /v1/verify", self.verifies.clone());
        r.register("changes", "Responses to /v1/changes", self.changes.clone());
        r.register("long_polls", "Long polls that are waiting", self.long_polls.clone());
    }

    fn register_registry(&mut self) {
        let r = &mut self.registry;
        r.register("registry_loads", "Changes of the source, by result", self.loads.clone());
        let source_good = "1 if verdicts come from the source's current text, else 0";
        r.register("registry_source_good", source_good, self.source_good.clone());
        let last_good = "1 if the last good copy was written for the next start, else 0";
        r.register("registry_last_good_written", last_good, self.last_good_written.clone());
        let revision = "Revision of the verdicts; 0 before the first registry";
        r.register("registry_revision", revision, self.revision.clone());
        r.register("registry_tenants", "Tenants in the registry", self.tenants.clone());
        r.register("registry_keys", "Live keys in the registry", self.keys.clone());
        let loaded = "Time of the last accepted registry, in seconds since 1970 UTC";
        r.register("registry_loaded_timestamp_seconds", loaded, self.loaded_s.clone());
    }

    fn register_connections(&mut self) {
        let r = &mut self.registry;
        r.register("connections", "Open connections", self.connections.clone());
        let refused = "Connections closed because all were in use";
        r.register("connections_refused", refused, self.connections_refused.clone());
        r.register(
            "tls_handshakes_failed",
            "Failed TLS handshakes",
            self.handshakes_failed.clone(),
        );
        let displaced = "Handshakes ended by newer connections because too many were in progress";
        r.register("tls_handshakes_displaced", displaced, self.handshakes_displaced.clone());
        let loads = "Reloads of the certificates, by result";
        r.register("certificate_loads", loads, self.certificate_loads.clone());
        let end = "End of the certificate in use, in seconds since 1970 UTC";
        r.register("certificate_end_timestamp_seconds", end, self.certificate_end_s.clone());
    }

    /// Creates every series with the value 0: a rate includes the first event of its kind, and a
    /// metric that has counted nothing yet is exported with its help text.
    fn create_series(&self) {
        use Outcome as O;
        for outcome in [O::active, O::suspended, O::unknown, O::unavailable] {
            drop(self.verifies.get_or_create(&OutcomeLabel { outcome }));
        }
        for outcome in [O::changed, O::unchanged, O::reset, O::unavailable] {
            drop(self.changes.get_or_create(&OutcomeLabel { outcome }));
        }
        for outcome in [O::good, O::refused, O::suspicious, O::gone] {
            drop(self.loads.get_or_create(&OutcomeLabel { outcome }));
        }
        for outcome in [O::good, O::refused] {
            drop(self.certificate_loads.get_or_create(&OutcomeLabel { outcome }));
        }
    }

    /// Encodes all metrics for a scrape.
    pub(crate) fn encode(&self) -> String {
        let mut out = String::new();
        // Writing to a String does not fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}

/// Increments the counter of `outcome`.
pub(crate) fn count(family: &Family<OutcomeLabel, Counter>, outcome: Outcome) {
    family.get_or_create(&OutcomeLabel { outcome }).inc();
}

/// Counts one in a gauge until dropped.
#[derive(Debug)]
pub(crate) struct GaugeGuard(Gauge);

impl GaugeGuard {
    pub(crate) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
