//! Each request is counted once. Its tenant sees its own usage without being woken, and the
//! operator sees all of it.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use experiments::reconcile;
use harness::client::TOC;
use harness::host::tools;
use harness::parts::orchestrator::responses::{MonthUsage, TenantUsage};
use harness::{Http, Lifecycle, Runtime, Stack, StackBuilder, Tier, until};
use hyper::Method;
use protocol::ByteLimit;

use crate::suite::{Case, On, case};

/// Deadline for reports to be in the ledger, which takes a second or two.
const REPORTED: Duration = Duration::from_secs(10);
/// Deadline for a tenant to fall asleep.
const PATIENCE: Duration = Duration::from_secs(20);
/// Requests of the short form; `integration reconcile` sends ten times as many.
const REQUESTS: u64 = 10_000;

fn metered() -> StackBuilder {
    let paid =
        Tier::new("pro").set("price-usd-month", 19).set("requests-per-s", 1000).set("burst", 1000);
    Stack::builder()
        .workers(4)
        .lifecycle(Lifecycle::short_leases())
        .tier(paid)
        .tenant_in_tier("sleeper", "pro")
        .tenant_in_tier("counted", "pro")
        .tenant_in_tier("shown", "pro")
        .tenant_in_tier("timed", "pro")
}

fn two_workers() -> StackBuilder {
    metered().workers(2)
}

fn reconciled() -> StackBuilder {
    // The suite sets the runtime of the case.
    reconcile::builder(Runtime::Process)
}

pub(crate) fn cases() -> Vec<Case> {
    let metered = On::Shared("metered", metered);
    vec![
        case!(metered, usage_request_neither_wakes_nor_counts),
        case!(metered, each_request_is_counted_once_by_outcome),
        case!(metered, short_request_times_add_up),
        case!(metered, operator_reads_usage_revenue_metrics_and_backup),
        case!(On::Own(two_workers), damaged_ledger_stops_no_tenant_and_bills_later),
        case!(On::Own(reconciled), ledger_matches_envoy_and_clients_through_kills),
    ]
}

/// Waits for the next hour if the present one is about to end. A test that counts within an hour,
/// day or month calls this first.
async fn well_before_the_hour_ends() -> Result<()> {
    let now_s = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let enough = || now_s() % 3_600 < 3_600 - 60;
    until("the hour to pass", Duration::from_secs(90), || async { enough().then_some(()) }).await
}

/// The usage that a tenant sees of itself.
async fn usage(stack: &Stack, tenant: &str) -> Result<TenantUsage> {
    let response = stack.tenant(tenant)?.get("/api/v2/usage").await?.expect_ok()?;
    ensure!(response.header("content-type") == "application/json", "{response:?}");
    response.json()
}

/// Waits until the ledger has counted this many requests of the tenant, and returns its usage.
async fn usage_after(stack: &Stack, tenant: &str, requests: u64) -> Result<TenantUsage> {
    until(format!("{requests} requests of {tenant} in the ledger"), REPORTED, || async {
        let usage = usage(stack, tenant).await.ok()?;
        (usage.month.requests() >= requests).then_some(usage)
    })
    .await
}

async fn usage_request_neither_wakes_nor_counts(stack: Arc<Stack>) -> Result<()> {
    well_before_the_hour_ends().await?;
    // Before the tenant's first request only its limits are known.
    let new = usage(&stack, "sleeper").await?;
    let burst = new.limits.as_ref().map(|limits| &limits["burst"]);
    ensure!(new.state == "asleep" && burst == Some(&1000.into()), "{new:?}");
    stack.tenant("sleeper")?.update("index", "x").await?.expect_ok()?;
    let awake = usage_after(&stack, "sleeper", 1).await?;
    ensure!(awake.state == "awake" && awake.last_wake.is_some(), "{awake:?}");
    until("its storage to be measured", PATIENCE, || async {
        let measured = usage(&stack, "sleeper").await.ok()?;
        (measured.storage.used_bytes > 0).then_some(())
    })
    .await?;
    stack.orchestrator.put_to_sleep("sleeper", PATIENCE).await?;
    for _ in 0..20 {
        let asleep = usage(&stack, "sleeper").await?;
        ensure!(asleep.state == "asleep", "it was woken: {asleep:?}");
        for sums in [&asleep.hour, &asleep.day, &asleep.month] {
            ensure!(sums.writes == 1 && sums.reads == 0, "{asleep:?}");
        }
        let quota = asleep.quotas.get("requests_day").context("no quota requests_day")?;
        ensure!(quota.used == 1 && quota.limit == Some(ByteLimit::Bytes(10_000)), "{asleep:?}");
    }
    let state = stack.orchestrator.state_of("sleeper").await?;
    ensure!(state.as_deref() == Some("asleep"), "{state:?}");
    Ok(())
}

async fn each_request_is_counted_once_by_outcome(stack: Arc<Stack>) -> Result<()> {
    well_before_the_hour_ends().await?;
    let client = stack.client(Http::Two)?.key(stack.key("counted")?);
    let first_scroll = "p=index&c=1.1.1/1.1.1/1.1.1";
    let text = "x".repeat(1000);
    let mut timings = Vec::new();
    for (method, path, body, status) in [
        (Method::GET, TOC, "", 200),
        (Method::HEAD, TOC, "", 200),
        (Method::POST, &*format!("/api/v2/update?{first_scroll}"), &*text, 200),
        (Method::GET, &*format!("/api/v2/delete?{first_scroll}"), "", 200),
        (Method::GET, "/api/v2/nonsense", "", 404),
        (Method::GET, "/api/v2/select?p=index&c=0", "", 400),
        (Method::PATCH, TOC, "", 405),
    ] {
        let response = client.send(method, path, &[], body.to_owned().into()).await?;
        let response = response.expect_status(status)?;
        timings.push(response.header("server-timing").to_owned());
    }
    let month = usage_after(&stack, "counted", 7).await?.month;
    ensure!(month.reads == 2 && month.writes == 2, "{month:?}");
    let unknown_endpoint = month.reasons.get("unknown-endpoint").copied();
    ensure!(month.refused == 3 && unknown_endpoint == Some(1), "{month:?}");
    ensure!(month.status == [0, 0, 4, 0, 3, 0], "{month:?}");
    ensure!(month.bytes_in >= 1000 && month.bytes_out > 0, "{month:?}");
    let starts = month.wakes.get("start").copied().unwrap_or_default();
    let creations = month.wakes.get("create").copied().unwrap_or_default();
    ensure!(starts + creations == 1, "{month:?} {timings:?}");
    Ok(())
}

async fn short_request_times_add_up(stack: Arc<Stack>) -> Result<()> {
    const SHORT_REQUESTS: u64 = 600;
    // One connection, so one worker: each request takes much less than a tick of the filter's clock.
    let client = stack.client(Http::Two)?.key(stack.key("timed")?);
    client.get(TOC).await?.expect_ok()?;
    let start = Instant::now();
    for _ in 0..SHORT_REQUESTS {
        client.get(TOC).await?.expect_ok()?;
    }
    let client_ms = u64::try_from(start.elapsed().as_millis())?;
    let month = usage_after(&stack, "timed", SHORT_REQUESTS + 1).await?.month;
    let service_ms = month.service_ms;
    println!("{SHORT_REQUESTS} requests: {client_ms} ms at the client, {service_ms} ms counted");
    // The counted time includes the first request. The client's includes TLS and HTTP at both ends.
    ensure!((client_ms / 10..client_ms + 1_000).contains(&service_ms), "{service_ms} ms");
    Ok(())
}

/// Runs `orchestrator usage …` as an operator would.
fn operator(stack: &Stack, args: &[&str]) -> Result<String> {
    let output = Command::new(tools::workspace_binary("orchestrator")?)
        .arg("usage")
        .args(args)
        .env("SQ_ADMIN", stack.orchestrator.socket("admin"))
        .output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "usage {args:?}: {} {stderr}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

async fn operator_reads_usage_revenue_metrics_and_backup(stack: Arc<Stack>) -> Result<()> {
    well_before_the_hour_ends().await?;
    let shown = stack.tenant("shown")?;
    for _ in 0..3 {
        shown.get(TOC).await?.expect_ok()?;
    }
    usage_after(&stack, "shown", 3).await?;
    let table = operator(&stack, &[])?;
    ensure!(table.contains("shown") && table.contains("of 380.00 USD a month"), "{table}");
    let csv = operator(&stack, &["--format", "csv"])?;
    ensure!(csv.lines().any(|line| line.starts_with("shown,pro,19.00,3,3,0,0,3,")), "{csv}");
    let json = operator(&stack, &["--tenant", "shown", "--format", "json"])?;
    let month: MonthUsage = serde_json::from_str(&json)?;
    ensure!(month.total.reads == 3 && month.revenue.cents == 1900, "{json}");
    let metrics = stack.orchestrator.metrics().get("/metrics").await?.text();
    let metric = "sq_orchestrator_usage_requests_total{class=\"read\"}";
    ensure!(metrics.contains(metric), "no {metric} in\n{metrics}");
    ensure!(!metrics.contains("shown"), "a tenant is named in\n{metrics}");
    let copy = stack.dir.join("ledger-copy.sqlite").display().to_string();
    let output = operator(&stack, &["backup", &copy])?;
    ensure!(output.contains("is checked"), "{output}");
    Ok(())
}

async fn ledger_matches_envoy_and_clients_through_kills(stack: Arc<Stack>) -> Result<()> {
    let balance = reconcile::compare_counts(&stack, REQUESTS).await?;
    println!("{balance:?}");
    Ok(())
}

async fn damaged_ledger_stops_no_tenant_and_bills_later(stack: Arc<Stack>) -> Result<()> {
    well_before_the_hour_ends().await?;
    let orchestrator = &stack.orchestrator;
    let ledger = orchestrator.state().join("ledger.sqlite");
    orchestrator.service().stop();
    // If the ledger was not closed, its log still has all of a small ledger and would repair it.
    let log = ledger.with_file_name("ledger.sqlite-wal");
    if log.exists() {
        fs::remove_file(log)?;
    }
    fs::write(&ledger, "no database, whatever its name says".repeat(1_000))?;
    orchestrator.start().await?;
    // A sleeping tenant is woken: leases do not wait for the ledger.
    let counted = stack.tenant("counted")?;
    for _ in 0..5 {
        counted.get(TOC).await?.expect_ok()?;
    }
    until("the metric to say that the ledger failed", REPORTED, || async {
        let failed = "sq_orchestrator_ledger_condition{condition=\"failed\"}";
        (orchestrator.labelled_metric(failed).await.ok()? > 0.0).then_some(())
    })
    .await?;
    let ready = orchestrator.admin().get("/readyz").await?.expect_ok()?;
    ensure!(ready.text().contains("is damaged"), "{}", ready.text());
    let usage = counted.get("/api/v2/usage").await?.expect_status(503)?;
    ensure!(!usage.text().contains("ledger"), "{}", usage.text());
    orchestrator.service().stop();
    fs::remove_file(&ledger)?;
    orchestrator.start().await?;
    let month = usage_after(&stack, "counted", 5).await?.month;
    ensure!(month.reads == 5, "{month:?}");
    Ok(())
}
