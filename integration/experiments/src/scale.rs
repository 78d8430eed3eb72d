//! `integration scale`: what one host pays for its tenants, at 100, 1,000 and 10,000 of them.
//!
//! Of the tenants 2 % are awake, 10 % doze and the rest sleep. Each size is a stack of its own: real
//! relay, orchestrator, Envoy and SQs. Sleeping tenants are known from records of instances that a
//! boot ended, so that a restart has to take up every one of them. Each has a folder with a phext
//! and a month's rows in the ledger.
//!
//! ```text
//! populate ─► rest ─► status ─► restarts ─► wakes ─► everyone awake at once
//! ```
//!
//! An error means that a figure could not be taken; a missed goal is shown and is no error.

pub mod everyone;
pub mod figures;
pub mod host;
pub mod leases;
pub mod rest;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::bench::percentile;
use figures::{Figures, Spread};
use harness::Http;
use harness::host::tools;
use host::{Host, Shape};

/// Restarts per size; the slowest counts.
const RESTARTS: usize = 3;
/// Runs of `orchestrator status`; the median counts.
const STATUS_RUNS: usize = 5;
/// Requests for each figure: a gateway asks the relay for so many unknown keys in a row.
const REQUESTS: usize = 100;
/// Longest wait for anything to come about.
const PATIENCE: Duration = Duration::from_mins(1);

/// Measures every size up to `tenants` and prints the table.
pub async fn run(tenants: usize) -> Result<()> {
    let mut all = Vec::new();
    for size in [100, 1_000, 10_000, 100_000].into_iter().filter(|size| *size < tenants) {
        all.push(one(size).await?);
    }
    all.push(one(tenants).await?);
    println!("{}", figures::table(&all));
    Ok(())
}

/// Measures one size.
pub async fn one(tenants: usize) -> Result<Figures> {
    let shape = Shape::of(tenants)?;
    let host = Host::start(shape).await?;
    let figures = measure(&host).await;
    figures.with_context(|| format!("{tenants} tenants\n{}", host.stack.log_tails()))
}

async fn measure(host: &Host) -> Result<Figures> {
    let mut figures = Figures::new(host.shape);
    eprintln!("{} tenants: {:.1} s to populate", host.shape.tenants, host.took.as_secs_f64());
    figures.starts_per_s = host.starts_per_s;
    rest::measure(host, &mut figures).await?;
    figures.status_ms = status(host)?;
    restarts(host, &mut figures).await?;
    wakes(host, &mut figures).await?;
    requests(host, &mut figures).await?;
    everyone::measure(host, &mut figures).await?;
    Ok(figures)
}

/// `orchestrator status` as an operator calls it.
fn status(host: &Host) -> Result<f64> {
    let mut took = Vec::new();
    for _ in 0..STATUS_RUNS {
        let start = Instant::now();
        let output = Command::new(tools::workspace_binary("orchestrator")?)
            .args(["status", "--admin", host.stack.orchestrator.admin_url()])
            .stderr(Stdio::inherit())
            .output()?;
        took.push(ms(start.elapsed()));
        let lines = String::from_utf8_lossy(&output.stdout).lines().count();
        ensure!(output.status.success(), "orchestrator status: {}", output.status);
        ensure!(lines > host.shape.tenants, "orchestrator status shows {lines} lines");
    }
    percentile(&took, 50).context("no status")
}

/// kill -9 → ready, and until the next lease is given.
async fn restarts(host: &Host, figures: &mut Figures) -> Result<()> {
    for _ in 0..RESTARTS {
        let start = Instant::now();
        host.stack.orchestrator.service().kill();
        host.stack.orchestrator.start().await?;
        let ready = ms(start.elapsed());
        figures.restart_ms = figures.restart_ms.max(ready);
        host.leases.granted(host.awake(), host::AWAKE).await?;
        figures.serving_ms = figures.serving_ms.max(ms(start.elapsed()));
    }
    Ok(())
}

/// Wakes by the lease API: what the orchestrator adds to the runtime's part.
async fn wakes(host: &Host, figures: &mut Figures) -> Result<()> {
    let (mut own, mut runtime) = (Vec::new(), Vec::new());
    let dozing: Vec<_> = host.dozing().collect();
    for (number, tenant) in dozing.iter().cycle().take(host.dozes()).enumerate() {
        if number % dozing.len() == 0 {
            host.until_dozing().await?;
        }
        let wake = host.leases.wake(tenant, protocol::WakeKind::Doze).await?;
        own.push(ms(wake.total.saturating_sub(wake.runtime)));
        runtime.push(ms(wake.runtime));
    }
    figures.doze_own = Spread::of(&own);
    figures.doze_runtime = Spread::of(&runtime);
    let (mut own, mut runtime) = (Vec::new(), Vec::new());
    for tenant in host.asleep().step_by(2).take(host.samples()) {
        let wake = host.leases.wake(&tenant, protocol::WakeKind::Start).await?;
        own.push(ms(wake.total.saturating_sub(wake.runtime)));
        runtime.push(ms(wake.runtime));
    }
    figures.start_own = Spread::of(&own);
    figures.start_runtime = Spread::of(&runtime);
    Ok(())
}

/// Wakes by a client's request over HTTPS, on a connection that stands.
async fn requests(host: &Host, figures: &mut Figures) -> Result<()> {
    let client = host.stack.client(Http::One)?;
    let first = async |tenant: &str| {
        let client = client.key(&host::key(tenant)?);
        // Whose key it is, is known then; it wakes nobody.
        client.get("/api/v2/usage").await?;
        let start = Instant::now();
        let answer = client.get("/api/v2/select?p=home&c=1.1.1/1.1.1/1.1.1").await?.expect_ok()?;
        ensure!(answer.text() == host::TEXT, "{tenant}: {:?}", answer.text());
        Ok(ms(start.elapsed()))
    };
    let (mut doze, mut start) = (Vec::new(), Vec::new());
    let orchestrator = &host.stack.orchestrator;
    let woken = orchestrator.metric("sq_orchestrator_wake_seconds_count").await?;
    let dozing: Vec<_> = host.dozing().collect();
    for (number, tenant) in dozing.iter().rev().cycle().take(REQUESTS).enumerate() {
        if number % dozing.len() == 0 {
            host.until_dozing().await?;
        }
        doze.push(first(tenant).await?);
    }
    for tenant in host.asleep().skip(1).step_by(2).take(host.samples().min(REQUESTS)) {
        start.push(first(&tenant).await?);
    }
    let woken = orchestrator.metric("sq_orchestrator_wake_seconds_count").await? - woken;
    #[allow(clippy::cast_precision_loss)] // some hundreds
    let asked = (doze.len() + start.len()) as f64;
    ensure!(woken >= asked, "{asked} requests woke {woken} tenants: some were not asleep");
    figures.doze_request = Spread::of(&doze);
    figures.start_request = Spread::of(&start);
    Ok(())
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
