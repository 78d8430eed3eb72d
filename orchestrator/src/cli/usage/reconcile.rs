//! `orchestrator usage reconcile`: reads the counters of both sides and prints the comparison.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use protocol::GatewayId;
use serde::Deserialize;

use crate::cli::client::AdminClient;
use crate::cli::table;
use crate::host;
use crate::usage::reconcile::{EnvoyCounters, Reconciliation, reconcile};
use crate::usage::sums::{Sums, capped_total};

/// Time for which the ledger may lack what the filter has put into a report: reports are sent once
/// a second, and each is given up for the next after two.
pub(super) const REPORTED: Duration = Duration::from_secs(10);
/// Interval of the queries while reports are missing.
const POLL: Duration = Duration::from_millis(500);

/// The part of Envoy's `GET /server_info` that is used here.
#[derive(Debug, Deserialize)]
struct ServerInfo {
    node: Node,
    uptime_all_epochs: String,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
}

/// Envoy's `GET /stats?format=json`.
#[derive(Debug, Deserialize)]
struct Stats {
    stats: Vec<Stat>,
}

/// A counter or gauge; histograms have neither field.
#[derive(Debug, Deserialize)]
struct Stat {
    name: Option<String>,
    value: Option<serde_json::Value>,
}

impl Stats {
    /// Returns a counter or gauge; `None` until something was counted.
    fn value(&self, name: &str) -> Option<u64> {
        let stat = self.stats.iter().find(|stat| stat.name.as_deref() == Some(name))?;
        stat.value.as_ref().and_then(serde_json::Value::as_u64)
    }

    fn listener(&self, stat_prefix: &str) -> EnvoyCounters {
        EnvoyCounters {
            total: self.requests(stat_prefix, "total"),
            active: self.requests(stat_prefix, "active"),
            status: ["1xx", "2xx", "3xx", "4xx", "5xx"]
                .map(|class| self.requests(stat_prefix, class)),
        }
    }

    fn requests(&self, stat_prefix: &str, kind: &str) -> u64 {
        self.value(&format!("http.{stat_prefix}.downstream_rq_{kind}")).unwrap_or(0)
    }
}

/// Compares one Envoy with the ledger. Waits up to `patience` for reports on their way.
pub(super) async fn run(
    orchestrator: &AdminClient,
    envoy: &AdminClient,
    stat_prefix: &str,
    patience: Duration,
) -> anyhow::Result<String> {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if stat_prefix.is_empty() || !stat_prefix.bytes().all(is_plain) {
        bail!("invalid --stat-prefix {stat_prefix:?}: use letters, digits, `_` and `-`");
    }
    let info: ServerInfo = envoy.get("/server_info").await?;
    let gateway = GatewayId::parse(&info.node.id).with_context(|| {
        format!("invalid node.id {:?} of Envoy at {}", info.node.id, envoy.socket().display())
    })?;
    let uptime = info.uptime_all_epochs.trim_end_matches('s');
    let uptime_s: u64 = uptime.parse().with_context(|| format!("invalid uptime {uptime:?}"))?;
    // Envoy's start by our clock, less a second for rounding: its VMs begin later than that.
    let since_s = host::now_s().saturating_sub(uptime_s + 1);

    // The order matters: first the filter, then the ledger, then Envoy. Requests that arrive
    // between these reads become Envoy's surplus, and neither a loss nor a double.
    let stats: Stats = envoy.get("/stats?format=json&filter=^wasmcustom%5C.sq_gate%5C.").await?;
    let Some(metered) = stats.value("wasmcustom.sq_gate.metered") else {
        bail!(
            "Envoy at {} has no counter wasmcustom.sq_gate.metered: its filter is older than this \
             command",
            envoy.socket().display()
        );
    };
    let sums = query_ledger(orchestrator, &gateway, since_s, metered, patience).await?;
    let path = format!("/stats?format=json&filter=^http%5C.{stat_prefix}%5C.downstream_rq_");
    let stats: Stats = envoy.get(&path).await?;
    let reconciliation = reconcile(&stats.listener(stat_prefix), metered, &sums);

    let text =
        format!("Envoy {gateway} since its start {uptime_s} s ago\n{}", render(&reconciliation));
    if reconciliation.is_sound() {
        return Ok(text);
    }
    bail!("{text}{}", faults(&reconciliation).join("; "))
}

/// Queries the ledger until it has all metered requests or patience ends.
async fn query_ledger(
    orchestrator: &AdminClient,
    gateway: &GatewayId,
    since_s: u64,
    metered: u64,
    patience: Duration,
) -> anyhow::Result<Sums> {
    let path = format!("/v1/usage/gateways/{gateway}?since_s={since_s}");
    let started = Instant::now();
    loop {
        let sums: Sums = orchestrator.get(&path).await?;
        if capped_total(&sums.status) >= metered || started.elapsed() >= patience {
            return Ok(sums);
        }
        tokio::time::sleep(POLL).await;
    }
}

fn render(reconciliation: &Reconciliation) -> String {
    let mut table = table::new(&["class", "envoy", "ledger", "unattributed", "doubled"], 1);
    for row in reconciliation.rows.iter().chain([&reconciliation.total]) {
        let counts = [row.envoy, row.ledger, row.unattributed, row.doubled];
        let mut cells = vec![row.class.to_owned()];
        cells.extend(counts.map(|count| count.to_string()));
        table.add_row(cells);
    }
    let Reconciliation { metered, lost, .. } = reconciliation;
    let metered = table::count(*metered, "request");
    table::render(&table) + &format!("lost {lost}: the filter had put {metered} into reports\n")
}

fn faults(reconciliation: &Reconciliation) -> Vec<String> {
    let mut faults = Vec::new();
    let doubled = reconciliation.total.doubled;
    if doubled > 0 {
        let requests = table::count(doubled, "request");
        faults.push(format!("the ledger has {requests} more than Envoy"));
    }
    if reconciliation.lost > 0 {
        faults.push(format!(
            "the ledger lacks {}. Causes: a worker crashed within a second of them, had more \
             tenants than it can count, reported weeks late, or cannot reach the orchestrator \
             now",
            table::count(reconciliation.lost, "request")
        ));
    }
    faults
}
