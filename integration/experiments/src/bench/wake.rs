//! The first request to a sleeping tenant.
//!
//! Requests through the whole gateway alternate with bare starts of the same SQ by the same
//! runtime, each while the Docker daemon is idle. Afterwards, requests to many tenants arrive at
//! twenty per second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::task::JoinSet;

use super::bare_start::{BareStart, PATIENCE};
use super::{BenchSize, compare_with_goal, percentile};
use crate::columns::Columns;
use harness::host::docker;
use harness::{Lifecycle, Runtime, Stack, until};

/// Time through the gateway as a multiple of a bare start, at the median and at p99.
const GOAL: f64 = 1.15;
/// The same with prepared networks, at the median.
const GOAL_PREPARED: f64 = 0.5;
/// The 99th percentile at twenty wakes per second, as a multiple of the median of single wakes.
const GOAL_RUSH: f64 = 3.0;
/// Interval between two wakes at twenty per second.
const RUSH_INTERVAL: Duration = Duration::from_millis(50);
/// Prepared networks in the pool, by the orchestrator's default.
const PREPARED_NETWORKS: usize = 4;
/// Room for the longest title.
const TITLE_WIDTH: usize = 34;
/// The tenant of the single wakes.
const TENANT: &str = "bench";

/// Measures and prints the table.
pub(super) async fn print(runtime: Option<Runtime>, size: &BenchSize) -> Result<()> {
    let runtime = Runtime::resolve(runtime)?;
    let builder =
        Stack::builder().runtime(runtime).tenant(TENANT).lifecycle(Lifecycle::short_leases());
    let builder = (0..size.rush).fold(builder, |builder, n| builder.tenant(&rush_tenant(n)));
    let stack = Arc::new(builder.start().await?);
    let times = measure_single_wakes(&stack, size.wakes).await?;

    println!(
        "First request to a sleeping tenant, {} runtime, {} wakes",
        runtime.name(),
        size.wakes
    );
    let columns = Columns::new(TITLE_WIDTH, ["p50 ms", "p99 ms", "max ms"]);
    println!("{}", columns.heading(""));
    let bare = Summary::new(&times.bare).context("no bare start")?;
    let gateway = Summary::new(&times.gateway).context("no wake")?;
    let bare_title = match runtime {
        Runtime::Docker => "docker start → first HTTP response",
        Runtime::Process => "exec → first HTTP response",
    };
    bare.print(&columns, bare_title);
    gateway.print(&columns, "through the gateway");
    let p50_ratio = gateway.p50 / bare.p50;
    let p99_ratio = gateway.p99 / bare.p99;
    println!("p50 is {p50_ratio:.2} × bare  {}", compare_with_goal(p50_ratio, GOAL));
    println!("p99 is {p99_ratio:.2} × bare  {}", compare_with_goal(p99_ratio, GOAL));
    if runtime == Runtime::Docker {
        println!("p50 with prepared networks: {}", compare_with_goal(p50_ratio, GOAL_PREPARED));
    }

    let rush_times = wake_many(&stack, size.rush).await;
    let refused = size.rush - rush_times.len();
    let rush = Summary::new(&rush_times).context("no wake of many tenants succeeded")?;
    rush.print(&columns, "many tenants, 20 wakes per second");
    println!("{refused} of {} wakes were refused", size.rush);
    let rush_ratio = if refused == 0 { rush.p99 / gateway.p50 } else { f64::INFINITY };
    println!(
        "p99 at 20 per second is {rush_ratio:.2} × p50 of single wakes  {}",
        compare_with_goal(rush_ratio, GOAL_RUSH)
    );
    Ok(())
}

/// The durations of single wakes and bare starts in milliseconds.
#[derive(Default)]
struct WakeTimes {
    gateway: Vec<f64>,
    bare: Vec<f64>,
}

async fn measure_single_wakes(stack: &Stack, wakes: usize) -> Result<WakeTimes> {
    let mut times = WakeTimes::default();
    let mut bare = BareStart::new(stack)?;
    // The first wake creates the container and caches the verdict; it is not counted.
    wake_ms(stack, TENANT).await?;
    for _ in 0..wakes {
        stack.orchestrator.put_to_sleep(TENANT, PATIENCE).await?;
        wait_for_idle_daemon(stack).await?;
        times.gateway.push(wake_ms(stack, TENANT).await?);
        wait_for_idle_daemon(stack).await?;
        times.bare.push(bare.start_ms().await?);
    }
    Ok(times)
}

/// Percentiles of a sample.
struct Summary {
    p50: f64,
    p99: f64,
    max: f64,
}

impl Summary {
    fn new(values: &[f64]) -> Option<Self> {
        Some(Self {
            p50: percentile(values, 50)?,
            p99: percentile(values, 99)?,
            max: percentile(values, 100)?,
        })
    }

    fn print(&self, columns: &Columns, title: &str) {
        let cells = [self.p50, self.p99, self.max].map(|ms| format!("{ms:.1}"));
        println!("{}", columns.row(title, &cells));
    }
}

/// Waits until the Docker daemon has no work: a new prepared network has replaced the one used.
async fn wait_for_idle_daemon(stack: &Stack) -> Result<()> {
    if stack.runtime == Runtime::Process {
        return Ok(());
    }
    until("a complete network pool", PATIENCE, || async {
        let joined = docker::containers(&stack.labels()).ok()?.len();
        let networks = docker::running_containers(&stack.prepared_network_labels()).ok()?.len();
        (networks == joined + PREPARED_NETWORKS).then_some(())
    })
    .await
}

/// Measures one request in milliseconds.
async fn wake_ms(stack: &Stack, tenant: &str) -> Result<f64> {
    let client = stack.tenant(tenant)?;
    let start = Instant::now();
    client.get("/api/v2/toc?p=bench").await?.expect_ok()?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

fn rush_tenant(number: usize) -> String {
    format!("rush-{number}")
}

/// Sends one request to each of many tenants at a fixed rate, without waiting for earlier
/// responses. Returns the times of the successful requests.
async fn wake_many(stack: &Arc<Stack>, tenants: usize) -> Vec<f64> {
    let mut wakes = JoinSet::new();
    let mut interval = tokio::time::interval(RUSH_INTERVAL);
    for number in 0..tenants {
        interval.tick().await;
        let stack = stack.clone();
        wakes.spawn(async move { wake_ms(&stack, &rush_tenant(number)).await });
    }
    wakes.join_all().await.into_iter().filter_map(Result::ok).collect()
}
