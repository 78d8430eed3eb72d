//! Prometheus metrics of the orchestrator.
//!
//! Every name starts with [`PREFIX`], so that none is confused with one that Envoy exports for the
//! filter. Labels come from closed sets, which bounds the number of series: no tenant, key or path is
//! ever a label, because every user of the host may read the metrics.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use protocol::WakeKind;
use protocol::lease::LeaseRefusalKind;

use crate::api::lease::claims::Claim;
use crate::runtime::ExitKind;
use crate::storage::vault::Damage;
use crate::tenants::lifecycle::State;

/// Prefix of every metric name; the registry joins it to the rest with an underscore.
pub(crate) const PREFIX: &str = "sq_orchestrator";

/// Upper bounds of wake times in seconds: resuming from doze takes 15 ms, a start 0.3 s.
const WAKE_BOUNDS_S: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Outcomes of a lease request.
const LEASE_LABELS: [&str; 9] = [
    "granted",
    "queue",
    "failing",
    "damaged",
    "wake_budget",
    "quota",
    "gateway",
    "unavailable",
    "asleep",
];

/// Kinds of exit of an instance that was not stopped.
const DEATH_LABELS: [&str; 4] = ["clean", "crashed", "out_of_memory", "gone"];

/// States in which a tenant has no instance, not even a paused one.
const AT_REST: [&str; 4] = ["asleep", "queued", "failing", "damaged"];

/// The label `kind`, whose values are fixed at compile time.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Debug, Clone)]
struct WakeHistogram;

impl MetricConstructor<Histogram> for WakeHistogram {
    fn new_metric(&self) -> Histogram {
        Histogram::new(WAKE_BOUNDS_S)
    }
}

/// All metrics that are counted as events happen; usage is collected at each scrape instead.
#[derive(Debug)]
pub struct Metrics {
    tenants: Family<Kind, Gauge>,
    wakes: Family<Kind, Histogram, WakeHistogram>,
    leases: Family<Kind, Counter>,
    deaths: Family<Kind, Counter>,
    streams: Gauge,
    queued: Gauge,
    rejected: Counter,
    ready: Gauge<i64>,
    firewall: Gauge<i64>,
    copies: Counter,
    failed_copies: Counter,
    uncopied: Gauge<f64, AtomicU64>,
    slowest_copy: Gauge<f64, AtomicU64>,
    restored: Family<Kind, Counter>,
    memory_available: Gauge<u64, AtomicU64>,
    refused_peers: Family<Kind, Counter>,
    refused_claims: Family<Kind, Counter>,
    registry: Registry,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Metrics {
    /// Registers the metrics, and a collector of further ones where there is one.
    pub fn new(collector: Option<Box<dyn Collector>>) -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        if let Some(collector) = collector {
            registry.register_collector(collector);
        }
        let mut metrics = Self {
            tenants: Family::default(),
            wakes: Family::new_with_constructor(WakeHistogram),
            leases: Family::default(),
            deaths: Family::default(),
            streams: Gauge::default(),
            queued: Gauge::default(),
            rejected: Counter::default(),
            ready: Gauge::default(),
            firewall: Gauge::default(),
            copies: Counter::default(),
            failed_copies: Counter::default(),
            uncopied: Gauge::default(),
            slowest_copy: Gauge::default(),
            restored: Family::default(),
            memory_available: Gauge::default(),
            refused_peers: Family::default(),
            refused_claims: Family::default(),
            registry,
        };
        metrics.register_tenants();
        metrics.register_host();
        metrics.register_vault();
        metrics.create_series();
        metrics
    }

    /// Creates every series of a closed label set with the value 0: a rate includes the first event
    /// of its kind, and a metric that has counted nothing yet is exported with its help text.
    fn create_series(&self) {
        self.set_counts([0; State::COUNT], 0, 0);
        for wake in [WakeKind::Doze, WakeKind::Start, WakeKind::Create] {
            drop(self.wakes.get_or_create(&Kind { kind: wake.as_str() }));
        }
        for kind in LEASE_LABELS {
            drop(self.leases.get_or_create(&Kind { kind }));
        }
        for kind in DEATH_LABELS {
            drop(self.deaths.get_or_create(&Kind { kind }));
        }
        for kind in Claim::KINDS {
            drop(self.refused_claims.get_or_create(&Kind { kind }));
        }
        for damage in Damage::ALL {
            drop(self.restored.get_or_create(&Kind { kind: damage.as_str() }));
        }
    }

    // The registry ends each help text with a full stop.
    fn register_tenants(&mut self) {
        let r = &mut self.registry;
        r.register("tenants", "Number of known tenants by lifecycle state", self.tenants.clone());
        r.register(
            "wake_seconds",
            "Time in seconds that the runtime took for a wake, by the depth of the sleep",
            self.wakes.clone(),
        );
        r.register(
            "lease_requests",
            "Number of lease requests by outcome: granted, or the reason of the refusal",
            self.leases.clone(),
        );
        r.register(
            "deaths",
            "Number of instances that ended without having been stopped, by the kind of exit",
            self.deaths.clone(),
        );
        r.register(
            "start_queue",
            "Number of tenants that wait for a start permit",
            self.queued.clone(),
        );
    }

    fn register_host(&mut self) {
        let r = &mut self.registry;
        r.register("ready", "1 once adoption has finished, 0 before", self.ready.clone());
        r.register(
            "firewall_in_force",
            "1 while firewall rules separate tenants from this host, 0 if there are none",
            self.firewall.clone(),
        );
        r.register("xds_streams", "Number of connected Envoys", self.streams.clone());
        r.register(
            "xds_rejected",
            "Number of cluster updates that an Envoy rejected",
            self.rejected.clone(),
        );
        r.register(
            "host_memory_available_bytes",
            "Memory in bytes that the host can hand out without swapping",
            self.memory_available.clone(),
        );
        r.register(
            "refused_peers",
            "Number of connections refused because of the peer's user, by socket",
            self.refused_peers.clone(),
        );
        r.register(
            "refused_claims",
            "Number of lease requests that claimed more than the host allows, by what they claimed",
            self.refused_claims.clone(),
        );
    }

    fn register_vault(&mut self) {
        let r = &mut self.registry;
        r.register("vault_copies", "Number of good copies taken of phexts", self.copies.clone());
        r.register(
            "vault_failed",
            "Number of copy rounds in which at least one copy failed",
            self.failed_copies.clone(),
        );
        r.register(
            "vault_oldest_uncopied_seconds",
            "Age in seconds of the oldest write of an awake tenant that may have no copy; above 5 \
             the promised window does not hold",
            self.uncopied.clone(),
        );
        r.register(
            "vault_slowest_copy_seconds",
            "Time in seconds of the slowest copy since the orchestrator started",
            self.slowest_copy.clone(),
        );
        r.register(
            "vault_restored",
            "Number of truncated phexts replaced by their good copy, by how it was noticed",
            self.restored.clone(),
        );
    }

    /// Counter of the connections to a socket that were refused because of the peer's user.
    pub fn refused_peers(&self, socket: &'static str) -> Counter {
        self.refused_peers.get_or_create(&Kind { kind: socket }).clone()
    }

    /// Sets the number of tenants per state, in the order of [`State::LABELS`], of connected
    /// Envoys, and of tenants that wait for a start permit.
    pub fn set_counts(&self, tenants: [usize; State::COUNT], streams: usize, queued: usize) {
        for (kind, count) in State::LABELS.into_iter().zip(tenants) {
            self.tenants.get_or_create(&Kind { kind }).set(saturating_i64(count));
        }
        self.streams.set(saturating_i64(streams));
        self.queued.set(saturating_i64(queued));
    }

    /// Tenants that have an instance, as of the last [`Self::set_counts`].
    pub fn instances(&self) -> usize {
        let mut instances = 0;
        for kind in State::LABELS {
            if !AT_REST.contains(&kind) {
                instances += self.tenants.get_or_create(&Kind { kind }).get();
            }
        }
        usize::try_from(instances).unwrap_or(0)
    }

    /// Observes the time that the runtime took for a wake.
    pub fn observe_wake(&self, kind: WakeKind, took: Duration) {
        self.wakes.get_or_create(&Kind { kind: kind.as_str() }).observe(took.as_secs_f64());
    }

    /// Counts a lease request that was answered; `None` means that the lease was granted.
    pub fn count_lease_request(&self, refusal: Option<LeaseRefusalKind>) {
        let kind = match refusal {
            None => "granted",
            Some(LeaseRefusalKind::Queue) => "queue",
            Some(LeaseRefusalKind::Failing) => "failing",
            Some(LeaseRefusalKind::Damaged) => "damaged",
            Some(LeaseRefusalKind::WakeBudget) => "wake_budget",
            Some(LeaseRefusalKind::Quota) => "quota",
            Some(LeaseRefusalKind::Gateway) => "gateway",
            Some(LeaseRefusalKind::Unavailable) => "unavailable",
            Some(LeaseRefusalKind::Asleep) => "asleep",
        };
        self.leases.get_or_create(&Kind { kind }).inc();
    }

    /// Counts a lease request that claimed too much.
    pub fn count_refused_claim(&self, kind: &'static str) {
        self.refused_claims.get_or_create(&Kind { kind }).inc();
    }

    /// Counts an instance that ended without having been stopped.
    pub fn count_death(&self, exit: ExitKind) {
        let kind = match exit {
            ExitKind::Clean => "clean",
            ExitKind::Crashed(_) => "crashed",
            ExitKind::OutOfMemory => "out_of_memory",
            ExitKind::Gone => "gone",
        };
        self.deaths.get_or_create(&Kind { kind }).inc();
    }

    /// Counts clusters that an Envoy rejected.
    pub fn count_rejected(&self, clusters: usize) {
        self.rejected.inc_by(clusters as u64);
    }

    /// Counts good copies that were taken.
    pub fn count_copies(&self, phexts: u32) {
        self.copies.inc_by(phexts.into());
    }

    /// Counts a round in which a good copy could not be taken.
    pub fn count_failed_copy(&self) {
        self.failed_copies.inc();
    }

    /// Sets the age of the oldest write that may have no copy.
    pub fn set_uncopied(&self, age: Duration) {
        self.uncopied.set(age.as_secs_f64());
    }

    /// Raises the time of the slowest copy if this one took longer.
    pub fn observe_copy(&self, took: Duration) {
        if took.as_secs_f64() > self.slowest_copy.get() {
            self.slowest_copy.set(took.as_secs_f64());
        }
    }

    /// Counts a truncated phext that was replaced by its good copy; `kind` says how it was noticed.
    pub fn count_restored(&self, kind: &'static str) {
        self.restored.get_or_create(&Kind { kind }).inc();
    }

    /// Records whether the firewall rules are in force.
    pub fn set_firewall(&self, in_force: bool) {
        self.firewall.set(in_force.into());
    }

    /// Marks adoption as finished.
    pub fn set_ready(&self) {
        self.ready.set(1);
    }

    /// Returns true once adoption has finished.
    pub fn is_ready(&self) -> bool {
        self.ready.get() == 1
    }

    /// Sets the memory that the host can hand out without swapping.
    pub fn set_memory_available(&self, bytes: u64) {
        self.memory_available.set(bytes);
    }

    /// Encodes all metrics as `OpenMetrics` text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

fn saturating_i64(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_prefix_and_sentence() {
        let metrics = Metrics::default();
        let text = metrics.encode();
        let mut helps = 0;
        for line in text.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
            assert!(line.starts_with(PREFIX) && line.ends_with('.'), "{line}");
            helps += 1;
        }
        assert_eq!(helps, 16);
    }

    #[test]
    fn tenants_at_rest_have_no_instance() {
        let metrics = Metrics::default();
        metrics.set_counts([1; State::COUNT], 0, 0);
        assert_eq!(metrics.instances(), State::COUNT - AT_REST.len());
    }

    #[test]
    fn counted_events_use_the_series_created_at_start() {
        let metrics = Metrics::default();
        let series = |metrics: &Metrics| metrics.encode().lines().count();
        let before = series(&metrics);
        let refusals = [
            LeaseRefusalKind::Queue,
            LeaseRefusalKind::Failing,
            LeaseRefusalKind::Damaged,
            LeaseRefusalKind::WakeBudget,
            LeaseRefusalKind::Quota,
            LeaseRefusalKind::Gateway,
            LeaseRefusalKind::Unavailable,
            LeaseRefusalKind::Asleep,
        ];
        metrics.count_lease_request(None);
        for refusal in refusals {
            metrics.count_lease_request(Some(refusal));
        }
        for exit in [ExitKind::Clean, ExitKind::Crashed(1), ExitKind::OutOfMemory, ExitKind::Gone] {
            metrics.count_death(exit);
        }
        for kind in Claim::KINDS {
            metrics.count_refused_claim(kind);
        }
        assert_eq!(series(&metrics), before);
    }
}
