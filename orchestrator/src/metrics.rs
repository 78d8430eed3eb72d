//! What Prometheus sees. Labels come from closed sets: no tenant, key or path is ever one.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use protocol::WakeKind;
use protocol::lease::LeaseRefusalKind;

use crate::runtime::ExitKind;
use crate::tenants::lifecycle::State;

/// Upper bounds of wake times in seconds: a doze takes 15 ms, a start 0.3 s.
const WAKE_BOUNDS_S: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// States of tenants of whom nothing runs, not even frozen.
const AT_REST: [&str; 4] = ["asleep", "queued", "failing", "damaged"];

/// One label with one of a few words.
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

/// All metrics of the lifecycle.
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
    copies: Counter,
    copies_failed: Counter,
    uncopied: Gauge<f64, AtomicU64>,
    slowest_copy: Gauge<f64, AtomicU64>,
    restored: Family<Kind, Counter>,
    memory_available: Gauge<u64, AtomicU64>,
    registry: Registry,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(Registry::default())
    }
}

impl Metrics {
    /// Metrics in a registry that others may have put theirs into.
    pub fn new(registry: Registry) -> Self {
        let mut metrics = Self {
            tenants: Family::default(),
            wakes: Family::new_with_constructor(WakeHistogram),
            leases: Family::default(),
            deaths: Family::default(),
            streams: Gauge::default(),
            queued: Gauge::default(),
            rejected: Counter::default(),
            ready: Gauge::default(),
            copies: Counter::default(),
            copies_failed: Counter::default(),
            uncopied: Gauge::default(),
            slowest_copy: Gauge::default(),
            restored: Family::default(),
            memory_available: Gauge::default(),
            registry,
        };
        let r = &mut metrics.registry;
        r.register("sq_tenants", "Tenants by state", metrics.tenants.clone());
        r.register("sq_wake_seconds", "Time a wake took in the runtime", metrics.wakes.clone());
        r.register("sq_leases", "Askers of leases by answer", metrics.leases.clone());
        r.register("sq_deaths", "Tenants that died by themselves", metrics.deaths.clone());
        r.register("sq_xds_streams", "Connected Envoys", metrics.streams.clone());
        r.register("sq_start_queue", "Tenants that wait to start", metrics.queued.clone());
        r.register("sq_xds_rejected", "Clusters refused by an Envoy", metrics.rejected.clone());
        r.register("sq_vault_copies", "Good copies taken of phexts", metrics.copies.clone());
        r.register(
            "sq_vault_failed",
            "Rounds of copies with one that could not be made",
            metrics.copies_failed.clone(),
        );
        r.register(
            "sq_vault_oldest_uncopied_seconds",
            "Age of the oldest write of an awake tenant that may have no copy; beyond 5 the stated \
             window does not hold",
            metrics.uncopied.clone(),
        );
        r.register(
            "sq_vault_slowest_copy_seconds",
            "The longest that one copy took since the start",
            metrics.slowest_copy.clone(),
        );
        r.register("sq_vault_restored", "Cut phexts put back", metrics.restored.clone());
        r.register("sq_ready", "1 when tenants are adopted", metrics.ready.clone());
        r.register(
            "sq_host_memory_available_bytes",
            "Memory that can be had without swapping",
            metrics.memory_available.clone(),
        );
        metrics
    }

    /// How many tenants are in each state, in the order of [`State::LABELS`]; and the rest.
    pub fn set_counts(&self, tenants: [usize; State::COUNT], streams: usize, queued: usize) {
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        for (kind, n) in State::LABELS.into_iter().zip(tenants) {
            self.tenants.get_or_create(&Kind { kind }).set(number(n));
        }
        self.streams.set(number(streams));
        self.queued.set(number(queued));
    }

    /// Tenants that have an instance, as of the last [`Self::set_counts`].
    pub fn instances(&self) -> usize {
        let there = State::LABELS.into_iter().filter(|kind| !AT_REST.contains(kind));
        let count = |kind| self.tenants.get_or_create(&Kind { kind }).get();
        usize::try_from(there.map(count).sum::<i64>()).unwrap_or(0)
    }

    /// A tenant was woken.
    pub fn woke(&self, kind: WakeKind, took: Duration) {
        let kind = match kind {
            WakeKind::None => "none",
            WakeKind::Doze => "doze",
            WakeKind::Start => "start",
            WakeKind::Create => "create",
        };
        self.wakes.get_or_create(&Kind { kind }).observe(took.as_secs_f64());
    }

    /// An asker was answered; `None`: with a lease.
    pub fn answered(&self, refusal: Option<LeaseRefusalKind>) {
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

    /// A tenant died by itself.
    pub fn died(&self, exit: ExitKind) {
        let kind = match exit {
            ExitKind::Clean => "clean",
            ExitKind::Crashed(_) => "crashed",
            ExitKind::OutOfMemory => "out_of_memory",
            ExitKind::Gone => "gone",
        };
        self.deaths.get_or_create(&Kind { kind }).inc();
    }

    /// An Envoy refused clusters.
    pub fn rejected(&self, clusters: usize) {
        self.rejected.inc_by(clusters as u64);
    }

    /// Good copies were taken.
    pub fn copied(&self, phexts: u32) {
        self.copies.inc_by(phexts.into());
    }

    /// A good copy could not be taken.
    pub fn copy_failed(&self) {
        self.copies_failed.inc();
    }

    /// How old the oldest write is that may have no copy.
    pub fn set_uncopied(&self, age: Duration) {
        self.uncopied.set(age.as_secs_f64());
    }

    /// A copy took so long.
    pub fn copy_took(&self, took: Duration) {
        if took.as_secs_f64() > self.slowest_copy.get() {
            self.slowest_copy.set(took.as_secs_f64());
        }
    }

    /// A cut phext was put back; `kind` is how it showed.
    pub fn restored(&self, kind: &'static str) {
        self.restored.get_or_create(&Kind { kind }).inc();
    }

    /// Tenants are adopted.
    pub fn set_ready(&self) {
        self.ready.set(1);
    }

    /// Whether tenants are adopted.
    pub fn is_ready(&self) -> bool {
        self.ready.get() == 1
    }

    /// Memory that can be had.
    pub fn set_memory_available(&self, bytes: u64) {
        self.memory_available.set(bytes);
    }

    /// `OpenMetrics` text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
