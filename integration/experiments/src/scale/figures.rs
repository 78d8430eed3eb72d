//! The figures of each size and their table, goals beside them.

use super::population::Population;
use crate::bench::percentile;
use crate::columns::Columns;

/// Resident memory of the orchestrator, MB.
const GOAL_RSS_MB: f64 = 64.0;
/// CPU of the orchestrator without requests, percent of a core.
const GOAL_CPU_PERCENT: f64 = 1.0;
/// Time from kill -9 until the orchestrator is ready, ms.
const GOAL_RESTART_MS: f64 = 2_000.0;
/// Duration of a wake outside the runtime at p99, ms.
const GOAL_OWN_MS: f64 = 5.0;
/// Time from a request to a dozing tenant to its response at the median, ms.
const GOAL_DOZE_MS: f64 = 25.0;
/// Room for the longest title.
const TITLE_WIDTH: usize = 38;

/// The median and the 99th percentile of a sample.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Percentiles {
    p50: f64,
    p99: f64,
}

impl Percentiles {
    /// Computes the percentiles; NaN without values.
    pub(super) fn new(values: &[f64]) -> Self {
        let value = |percent| percentile(values, percent).unwrap_or(f64::NAN);
        Self { p50: value(50), p99: value(99) }
    }
}

/// The costs of one size.
#[derive(Debug, Clone)]
pub(super) struct Figures {
    population: Population,
    /// SQs started per second while the host was populated.
    pub(super) starts_per_s: f64,
    /// Resident memory of the orchestrator.
    pub(super) rss_mb: f64,
    /// CPU of the orchestrator without requests.
    pub(super) cpu_percent: f64,
    /// Resident memory of Envoy.
    pub(super) envoy_rss_mb: f64,
    /// CPU of Envoy without requests.
    pub(super) envoy_cpu_percent: f64,
    /// Duration of `orchestrator status`.
    pub(super) status_ms: f64,
    /// Time from kill -9 until the orchestrator is ready; the slowest restart.
    pub(super) restart_ms: f64,
    /// Time from kill -9 until a lease is granted; the slowest restart.
    pub(super) serving_ms: f64,
    /// Wake from a doze, time outside the runtime.
    pub(super) doze_own: Percentiles,
    /// Wake from a doze, time in the runtime.
    pub(super) doze_runtime: Percentiles,
    /// Start, time outside the runtime.
    pub(super) start_own: Percentiles,
    /// Start, time in the runtime.
    pub(super) start_runtime: Percentiles,
    /// Duration of a request to a dozing tenant.
    pub(super) doze_request: Percentiles,
    /// Duration of a request to a sleeping tenant.
    pub(super) start_request: Percentiles,
    /// Clusters that were sent to an Envoy without them.
    pub(super) pushed: usize,
    /// Time until that Envoy had all of them.
    pub(super) push_ms: f64,
    /// Resident memory of the orchestrator with all tenants awake.
    pub(super) all_rss_mb: f64,
    /// Resident memory of Envoy with all tenants awake.
    pub(super) all_envoy_rss_mb: f64,
    /// Time from kill -9 until the orchestrator is ready, with all tenants awake.
    pub(super) all_restart_ms: f64,
    /// Time from kill -9 until a lease is granted, with all tenants awake.
    pub(super) all_serving_ms: f64,
}

impl Figures {
    /// Creates figures without measurements, which are NaN.
    pub(super) fn new(population: Population) -> Self {
        let none = Percentiles { p50: f64::NAN, p99: f64::NAN };
        Self {
            population,
            starts_per_s: f64::NAN,
            rss_mb: f64::NAN,
            cpu_percent: f64::NAN,
            envoy_rss_mb: f64::NAN,
            envoy_cpu_percent: f64::NAN,
            status_ms: f64::NAN,
            // Maxima over several restarts.
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

/// The title, the goal and the figure of a row.
type Row = (&'static str, Option<f64>, fn(&Figures) -> f64);

const ROWS: &[Row] = &[
    ("orchestrator, resident MB", Some(GOAL_RSS_MB), |f| f.rss_mb),
    ("orchestrator idle, % of a core", Some(GOAL_CPU_PERCENT), |f| f.cpu_percent),
    ("Envoy, resident MB", None, |f| f.envoy_rss_mb),
    ("Envoy idle, % of a core", None, |f| f.envoy_cpu_percent),
    ("kill -9 → ready, slowest, ms", Some(GOAL_RESTART_MS), |f| f.restart_ms),
    ("kill -9 → lease, slowest, ms", None, |f| f.serving_ms),
    ("orchestrator status, ms", None, |f| f.status_ms),
    ("wake from doze, own part p50, ms", None, |f| f.doze_own.p50),
    ("wake from doze, own part p99, ms", Some(GOAL_OWN_MS), |f| f.doze_own.p99),
    ("wake from doze, runtime p50, ms", None, |f| f.doze_runtime.p50),
    ("start, own part p50, ms", None, |f| f.start_own.p50),
    ("start, own part p99, ms", Some(GOAL_OWN_MS), |f| f.start_own.p99),
    ("start, runtime p50, ms", None, |f| f.start_runtime.p50),
    ("doze → HTTPS response p50, ms", Some(GOAL_DOZE_MS), |f| f.doze_request.p50),
    ("doze → HTTPS response p99, ms", None, |f| f.doze_request.p99),
    ("asleep → HTTPS response p50, ms", None, |f| f.start_request.p50),
    ("asleep → HTTPS response p99, ms", None, |f| f.start_request.p99),
    ("starts per second", None, |f| f.starts_per_s),
    ("all awake: push, ms", None, |f| f.push_ms),
    ("all awake: kill -9 → ready, ms", None, |f| f.all_restart_ms),
    ("all awake: kill -9 → lease, ms", None, |f| f.all_serving_ms),
    ("all awake: orchestrator, MB", None, |f| f.all_rss_mb),
    ("all awake: Envoy, MB", None, |f| f.all_envoy_rss_mb),
];

/// Formats the table with one column per size. The goals apply to the last size.
pub(super) fn table(sizes: &[Figures]) -> String {
    let tenants = sizes.iter().map(|size| size.population.tenants.to_string());
    let columns = Columns::new(TITLE_WIDTH, std::iter::once("goal".to_owned()).chain(tenants));
    let row = |title: &str, goal: String, figure: &dyn Fn(&Figures) -> String| {
        let cells: Vec<String> = std::iter::once(goal).chain(sizes.iter().map(figure)).collect();
        columns.row(title, &cells)
    };
    let count_row = |title: &str, count: fn(&Figures) -> usize| {
        row(title, String::new(), &|size| count(size).to_string())
    };
    let mut lines = vec![
        columns.heading("tenants"),
        count_row("  awake", |size| size.population.awake),
        count_row("  dozing", |size| size.population.dozing),
        count_row("  asleep", |size| size.population.asleep()),
    ];
    for (title, goal, figure) in ROWS {
        let shown = goal.map_or_else(String::new, |goal| format!("≤ {goal}"));
        let mut line = row(title, shown, &|size| format!("{:.1}", figure(size)));
        if let (Some(goal), Some(last)) = (goal, sizes.last()) {
            line.push_str(if figure(last) <= *goal { "  met" } else { "  MISSED" });
        }
        lines.push(line);
    }
    lines.push(count_row("all awake: clusters pushed", |size| size.pushed));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_stand_beside_their_goals() {
        let population = Population { tenants: 100, awake: 2, dozing: 10 };
        let good = Figures { rss_mb: 20.0, cpu_percent: 3.0, ..Figures::new(population) };
        let table = table(&[good]);
        let row = |title: &str| table.lines().find(|line| line.starts_with(title)).unwrap();
        assert!(row("orchestrator, resident").ends_with("≤ 64      20.0  met"));
        assert!(row("orchestrator idle").ends_with("≤ 1       3.0  MISSED"));
        assert!(row("start, own part p99").ends_with("NaN  MISSED"));
    }
}
