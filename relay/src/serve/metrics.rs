//! What `/metrics` says, in the `OpenMetrics` text format. Label sets are closed.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Prefix of every metric name; the registry joins it to the rest with an underscore.
const PREFIX: &str = "sq_relay";

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Answers to verify.
    pub verifies: Family<Labels, Counter>,
    /// Answers to changes.
    pub changes: Family<Labels, Counter>,
    /// Looks at the source that brought something.
    pub loads: Family<Labels, Counter>,
    /// 1: what the source says is what is answered.
    pub source_good: Gauge,
    /// 1: what is answered is kept for the next start.
    pub kept: Gauge,
    /// The registry's revision; 0: none has been read.
    pub revision: Gauge,
    /// Tenants in it.
    pub tenants: Gauge,
    /// Keys in it that are good.
    pub keys: Gauge,
    /// When a registry was last taken over.
    pub loaded_s: Gauge<u64, AtomicU64>,
    /// Connections now, after their handshake.
    pub connections: Gauge,
    /// Connections closed because there was no room.
    pub connections_refused: Counter,
    /// Long polls waiting now.
    pub polls: Gauge,
    /// TLS handshakes that failed.
    pub handshakes_failed: Counter,
    /// Reloads of the certificates.
    pub certificates: Family<Labels, Counter>,
}

/// The one label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Labels {
    outcome: Outcome,
}

/// How something went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the label's text")]
pub enum Outcome {
    /// Verify: the key is good.
    active,
    /// Verify: its tenant is suspended.
    suspended,
    /// Verify: there is no such key.
    unknown,
    /// Verify, changes: no registry has been read yet.
    unavailable,
    /// Changes: with digests.
    changed,
    /// Changes: with none.
    unchanged,
    /// Changes: "ask everything anew".
    reset,
    /// Loads: it was taken over.
    good,
    /// Loads: it was not valid.
    refused,
    /// Loads: it looks cut.
    held,
    /// Loads: it could not be read.
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
            kept: Gauge::default(),
            revision: Gauge::default(),
            tenants: Gauge::default(),
            keys: Gauge::default(),
            loaded_s: Gauge::default(),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
            polls: Gauge::default(),
            handshakes_failed: Counter::default(),
            certificates: Family::default(),
        };
        let m = &metrics;
        let r = &mut Registry::with_prefix(PREFIX);
        r.register("verifies", "Answers to /v1/verify", m.verifies.clone());
        r.register("changes", "Answers to /v1/changes", m.changes.clone());
        r.register("registry_loads", "Looks at the source that brought news", m.loads.clone());
        r.register("registry_source_good", "1: the source is answered", m.source_good.clone());
        r.register("registry_kept", "1: it is kept for the next start", m.kept.clone());
        r.register("registry_revision", "Revision; 0: none was read", m.revision.clone());
        r.register("registry_tenants", "Tenants in the registry", m.tenants.clone());
        r.register("registry_keys", "Good keys in the registry", m.keys.clone());
        let help = "When a registry was last taken over, seconds since 1970 UTC";
        r.register("registry_loaded_timestamp_seconds", help, m.loaded_s.clone());
        r.register("connections", "Connections now", m.connections.clone());
        let refused = m.connections_refused.clone();
        r.register("connections_refused", "Connections closed for want of room", refused);
        r.register("long_polls", "Long polls waiting now", m.polls.clone());
        let failed = m.handshakes_failed.clone();
        r.register("tls_handshakes_failed", "TLS handshakes that failed", failed);
        r.register("certificate_loads", "Reloads of the certificates", m.certificates.clone());
        metrics.registry = std::mem::take(r);
        metrics
    }
}

impl Metrics {
    /// The whole text.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        // Writing into a String does not fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}

/// Counts one of a family.
pub fn count(family: &Family<Labels, Counter>, outcome: Outcome) {
    family.get_or_create(&Labels { outcome }).inc();
}

/// A gauge that counts while this lives.
#[derive(Debug)]
pub struct Gauged(Gauge);

impl Gauged {
    /// One more, until dropped.
    pub fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Gauged {
    fn drop(&mut self) {
        self.0.dec();
    }
}
