//! `integration scale`: the cost of 100, 1,000 and 10,000 tenants on one host.
//!
//! Of the tenants, 2 % are awake, 10 % doze and the others sleep. Each size is a new stack with
//! real relay, orchestrator, Envoy and SQs. The orchestrator knows the sleeping tenants from
//! instance records of an earlier boot, so that a restart processes each of them. Every tenant has
//! a folder with a phext and two weeks of rows in the ledger.
//!
//! ```text
//! populate ─► idle ─► status ─► restarts ─► wakes ─► requests ─► all tenants awake at once
//! ```
//!
//! An error means that a figure could not be measured. A missed goal is printed and is not an
//! error.

mod all_awake;
mod figures;
mod idle;
mod instance_record;
mod lease_client;
mod populated_host;
mod population;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use protocol::WakeKind;

use crate::bench::percentile;
use figures::{Figures, Percentiles};
use harness::host::tools;
use harness::{Client, Http};
use populated_host::{PopulatedHost, TEXT};
use population::{AWAKE_TENANT, AWAKE_TIER, Population, tenant_key};

/// Restarts per size. The slowest counts.
const RESTARTS: usize = 3;
/// Runs of `orchestrator status`. The median counts.
const STATUS_RUNS: usize = 5;
/// Requests for each figure: the number of unknown keys that a gateway may verify in a row.
const REQUESTS: usize = 100;
/// Longest wait for a state of the host.
const PATIENCE: Duration = Duration::from_mins(1);
/// The metric that counts wakes.
const WAKES_METRIC: &str = "sq_orchestrator_wake_seconds_count";

/// Measures every size up to `tenants` and prints the table.
pub async fn run(tenants: usize) -> Result<()> {
    let mut sizes = Vec::new();
    for size in [100, 1_000, 10_000, 100_000].into_iter().filter(|size| *size < tenants) {
        sizes.push(measure_size(size).await?);
    }
    sizes.push(measure_size(tenants).await?);
    println!("{}", figures::table(&sizes));
    Ok(())
}

async fn measure_size(tenants: usize) -> Result<Figures> {
    let host = PopulatedHost::start(Population::new(tenants)?).await?;
    let figures = measure(&host).await;
    figures.with_context(|| format!("{tenants} tenants\n{}", host.stack.log_tails()))
}

async fn measure(host: &PopulatedHost) -> Result<Figures> {
    let mut figures = Figures::new(host.population);
    let populating_s = host.populating.as_secs_f64();
    eprintln!("{} tenants: populated in {populating_s:.1} s", host.population.tenants);
    figures.starts_per_s = host.starts_per_s;
    idle::measure(host, &mut figures).await?;
    figures.status_ms = median_status_ms(host)?;
    measure_restarts(host, &mut figures).await?;
    measure_wakes(host, &mut figures).await?;
    measure_requests(host, &mut figures).await?;
    all_awake::measure(host, &mut figures).await?;
    Ok(figures)
}

/// Measures `orchestrator status` as an operator runs it.
fn median_status_ms(host: &PopulatedHost) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..STATUS_RUNS {
        let start = Instant::now();
        let output = Command::new(tools::workspace_binary("orchestrator")?)
            .args(["status", "--admin"])
            .arg(host.stack.orchestrator.socket("admin"))
            .stderr(Stdio::inherit())
            .output()?;
        times.push(ms(start.elapsed()));
        let lines = String::from_utf8_lossy(&output.stdout).lines().count();
        ensure!(output.status.success(), "orchestrator status: {}", output.status);
        ensure!(lines > host.population.tenants, "orchestrator status shows {lines} lines");
    }
    percentile(&times, 50).context("orchestrator status did not run")
}

/// Measures the time from kill -9 until the orchestrator is ready and until it grants a lease.
async fn measure_restarts(host: &PopulatedHost, figures: &mut Figures) -> Result<()> {
    for _ in 0..RESTARTS {
        let start = Instant::now();
        host.stack.orchestrator.service().kill();
        host.stack.orchestrator.start().await?;
        figures.restart_ms = figures.restart_ms.max(ms(start.elapsed()));
        host.leases.request_until_granted(AWAKE_TENANT, AWAKE_TIER).await?;
        figures.serving_ms = figures.serving_ms.max(ms(start.elapsed()));
    }
    Ok(())
}

/// Durations of wakes in milliseconds.
#[derive(Debug, Default)]
struct WakeSamples {
    /// Time outside the runtime.
    own: Vec<f64>,
    /// Time in the runtime.
    runtime: Vec<f64>,
}

impl WakeSamples {
    async fn add(&mut self, host: &PopulatedHost, tenant: &str, kind: WakeKind) -> Result<()> {
        let wake = host.leases.wake(tenant, kind).await?;
        self.own.push(ms(wake.total.saturating_sub(wake.runtime)));
        self.runtime.push(ms(wake.runtime));
        Ok(())
    }
}

/// Measures wakes by the lease API: the time that the orchestrator adds to the runtime's.
async fn measure_wakes(host: &PopulatedHost, figures: &mut Figures) -> Result<()> {
    let mut dozes = WakeSamples::default();
    let dozing = host.dozing_tenants();
    for (number, tenant) in dozing.iter().cycle().take(host.doze_samples()).enumerate() {
        if number % dozing.len() == 0 {
            host.wait_until_dozing().await?;
        }
        dozes.add(host, tenant, WakeKind::Doze).await?;
    }
    figures.doze_own = Percentiles::new(&dozes.own);
    figures.doze_runtime = Percentiles::new(&dozes.runtime);

    // Every second sleeping tenant; the others are for the requests.
    let mut starts = WakeSamples::default();
    for tenant in host.sleeping_tenants().step_by(2).take(host.start_samples()) {
        starts.add(host, &tenant, WakeKind::Start).await?;
    }
    figures.start_own = Percentiles::new(&starts.own);
    figures.start_runtime = Percentiles::new(&starts.runtime);
    Ok(())
}

/// Measures wakes by a client's request over HTTPS, on an open connection.
async fn measure_requests(host: &PopulatedHost, figures: &mut Figures) -> Result<()> {
    let client = host.stack.client(Http::One)?;
    let orchestrator = &host.stack.orchestrator;
    let wakes_before = orchestrator.metric(WAKES_METRIC).await?;

    let mut dozes = Vec::new();
    let dozing = host.dozing_tenants();
    for (number, tenant) in dozing.iter().rev().cycle().take(REQUESTS).enumerate() {
        if number % dozing.len() == 0 {
            host.wait_until_dozing().await?;
        }
        dozes.push(waking_request_ms(&client, tenant).await?);
    }

    let mut starts = Vec::new();
    let sleeping = host.sleeping_tenants().skip(1).step_by(2);
    for tenant in sleeping.take(host.start_samples().min(REQUESTS)) {
        starts.push(waking_request_ms(&client, &tenant).await?);
    }

    let wakes = orchestrator.metric(WAKES_METRIC).await? - wakes_before;
    #[allow(clippy::cast_precision_loss)] // some hundreds
    let requests = (dozes.len() + starts.len()) as f64;
    ensure!(wakes >= requests, "{requests} requests caused {wakes} wakes: some tenants were awake");
    figures.doze_request = Percentiles::new(&dozes);
    figures.start_request = Percentiles::new(&starts);
    Ok(())
}

/// Measures one request that wakes its tenant, in milliseconds.
async fn waking_request_ms(client: &Client, tenant: &str) -> Result<f64> {
    let client = client.key(&tenant_key(tenant)?);
    // Makes the gateway verify the key before the measurement; wakes no tenant.
    client.get("/api/v2/usage").await?;
    let start = Instant::now();
    let response = client.get("/api/v2/select?p=home&c=1.1.1/1.1.1/1.1.1").await?.expect_ok()?;
    ensure!(response.text() == TEXT, "{tenant}: {:?}", response.text());
    Ok(ms(start.elapsed()))
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
