//! The figures and their table, goals beside them.

use std::fmt::Write as _;

use super::host::Shape;
use crate::bench::percentile;

/// Resident memory of the orchestrator, MB.
const GOAL_RSS_MB: f64 = 64.0;
/// Orchestrator at rest, percent of a core.
const GOAL_CPU_PERCENT: f64 = 1.0;
/// kill -9 → ready, ms.
const GOAL_RESTART_MS: f64 = 2_000.0;
/// A wake's part outside the runtime at p99, ms.
const GOAL_OWN_MS: f64 = 5.0;
/// Dozing → first byte through the gateway at the median, ms.
const GOAL_DOZE_MS: f64 = 25.0;

/// Median and 99th percentile.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spread {
    p50: f64,
    p99: f64,
}

impl Spread {
    /// Of values; not a number where there are none.
    pub fn of(values: &[f64]) -> Self {
        let at = |percent| percentile(values, percent).unwrap_or(f64::NAN);
        Self { p50: at(50), p99: at(99) }
    }
}

/// What one size costs.
#[derive(Debug, Clone)]
pub struct Figures {
    shape: Shape,
    /// SQs started per second while the host was populated.
    pub starts_per_s: f64,
    /// Orchestrator.
    pub rss_mb: f64,
    /// Orchestrator at rest.
    pub cpu_percent: f64,
    /// Envoy.
    pub envoy_rss_mb: f64,
    /// Envoy at rest.
    pub envoy_cpu_percent: f64,
    /// `orchestrator status`.
    pub status_ms: f64,
    /// kill -9 → ready, the slowest.
    pub restart_ms: f64,
    /// kill -9 → a lease is given again, the slowest.
    pub serving_ms: f64,
    /// A doze's end, outside the runtime.
    pub doze_own: Spread,
    /// A doze's end, in the runtime.
    pub doze_runtime: Spread,
    /// A start, outside the runtime.
    pub start_own: Spread,
    /// A start, in the runtime.
    pub start_runtime: Spread,
    /// A request to a dozing tenant.
    pub doze_request: Spread,
    /// A request to a sleeping tenant.
    pub start_request: Spread,
    /// Clusters that Envoy did not have.
    pub pushed: usize,
    /// Until it had them.
    pub push_ms: f64,
    /// Orchestrator with everyone awake.
    pub all_rss_mb: f64,
    /// Envoy with everyone awake.
    pub all_envoy_rss_mb: f64,
    /// kill -9 → ready with everyone awake.
    pub all_restart_ms: f64,
    /// kill -9 → a lease is given again with everyone awake.
    pub all_serving_ms: f64,
}

impl Figures {
    /// Nothing measured yet.
    pub fn new(shape: Shape) -> Self {
        let none = Spread { p50: f64::NAN, p99: f64::NAN };
        Self {
            shape,
            starts_per_s: f64::NAN,
            rss_mb: f64::NAN,
            cpu_percent: f64::NAN,
            envoy_rss_mb: f64::NAN,
            envoy_cpu_percent: f64::NAN,
            status_ms: f64::NAN,
            // The slowest of some.
            restart_ms: 0.0,
            serving_ms: 0.0,
            doze_own: none,
            doze_runtime: none,
            start_own: none,
            start_runtime: none,
            doze_request: none,
            start_request: none,
            pushed: 0,
            push_ms: f64::NAN,
            all_rss_mb: f64::NAN,
            all_envoy_rss_mb: f64::NAN,
            all_restart_ms: f64::NAN,
            all_serving_ms: f64::NAN,
        }
    }
}

/// A row: what it is, its goal, its figure.
type Row = (&'static str, Option<f64>, fn(&Figures) -> f64);

const ROWS: &[Row] = &[
    ("orchestrator, resident MB", Some(GOAL_RSS_MB), |f| f.rss_mb),
    ("orchestrator at rest, % of a core", Some(GOAL_CPU_PERCENT), |f| f.cpu_percent),
    ("Envoy, resident MB", None, |f| f.envoy_rss_mb),
    ("Envoy at rest, % of a core", None, |f| f.envoy_cpu_percent),
    ("kill -9 → ready, slowest, ms", Some(GOAL_RESTART_MS), |f| f.restart_ms),
    ("kill -9 → lease, slowest, ms", None, |f| f.serving_ms),
    ("orchestrator status, ms", None, |f| f.status_ms),
    ("wake of a doze, own part p50, ms", None, |f| f.doze_own.p50),
    ("wake of a doze, own part p99, ms", Some(GOAL_OWN_MS), |f| f.doze_own.p99),
    ("wake of a doze, runtime p50, ms", None, |f| f.doze_runtime.p50),
    ("start, own part p50, ms", None, |f| f.start_own.p50),
    ("start, own part p99, ms", Some(GOAL_OWN_MS), |f| f.start_own.p99),
    ("start, runtime p50, ms", None, |f| f.start_runtime.p50),
    ("doze → answer by HTTPS p50, ms", Some(GOAL_DOZE_MS), |f| f.doze_request.p50),
    ("doze → answer by HTTPS p99, ms", None, |f| f.doze_request.p99),
    ("stopped → answer by HTTPS p50, ms", None, |f| f.start_request.p50),
    ("stopped → answer by HTTPS p99, ms", None, |f| f.start_request.p99),
    ("starts per second", None, |f| f.starts_per_s),
    ("everyone awake: push, ms", None, |f| f.push_ms),
    ("everyone awake: kill -9 → ready, ms", None, |f| f.all_restart_ms),
    ("everyone awake: kill -9 → lease, ms", None, |f| f.all_serving_ms),
    ("everyone awake: orchestrator, MB", None, |f| f.all_rss_mb),
    ("everyone awake: Envoy, MB", None, |f| f.all_envoy_rss_mb),
];

/// The sizes side by side; the last one is judged.
pub fn table(sizes: &[Figures]) -> String {
    let mut text = format!("{:<38}{:>10}", "tenants", "goal");
    let count = |text: &mut String, title: &str, of: fn(&Figures) -> usize| {
        let _ = write!(text, "\n{title:<38}{:>10}", "");
        for size in sizes {
            let _ = write!(text, "{:>10}", of(size));
        }
    };
    for size in sizes {
        let _ = write!(text, "{:>10}", size.shape.tenants);
    }
    count(&mut text, "  awake", |f| f.shape.awake);
    count(&mut text, "  dozing", |f| f.shape.dozing);
    count(&mut text, "  asleep", |f| f.shape.asleep());
    for (title, goal, figure) in ROWS {
        let shown = goal.map_or_else(String::new, |goal| format!("≤ {goal}"));
        let _ = write!(text, "\n{title:<38}{shown:>10}");
        for size in sizes {
            let _ = write!(text, "{:>10.1}", figure(size));
        }
        if let (Some(goal), Some(last)) = (goal, sizes.last()) {
            let met = figure(last) <= *goal;
            text.push_str(if met { "  met" } else { "  MISSED" });
        }
    }
    count(&mut text, "everyone awake: clusters pushed", |f| f.pushed);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_stands_beside_its_goal() {
        let shape = Shape { tenants: 100, awake: 2, dozing: 10 };
        let good = Figures { rss_mb: 20.0, cpu_percent: 3.0, ..Figures::new(shape) };
        let table = table(&[good]);
        let row = |title: &str| table.lines().find(|line| line.starts_with(title)).unwrap();
        assert!(row("orchestrator, resident").ends_with("≤ 64      20.0  met"));
        assert!(row("orchestrator at rest").ends_with("≤ 1       3.0  MISSED"));
        assert!(row("start, own part p99").ends_with("NaN  MISSED"));
    }
}
