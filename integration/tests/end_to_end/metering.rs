//! What is served is counted once, shown to its tenant without waking it, and to the operator.

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

use crate::suite::{Case, On, case};

/// Longest wait for reports to be in the ledger, which takes a second or two.
const REPORTED: Duration = Duration::from_secs(10);
/// Longest wait for a tenant to sleep.
const PATIENCE: Duration = Duration::from_secs(20);
/// Of the short form; `integration reconcile` does ten times as many.
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

/// One whose orchestrator a test ends.
fn endable() -> StackBuilder {
    metered().workers(2)
}

fn books() -> StackBuilder {
    // The suite sets the case's runtime.
    reconcile::builder(Runtime::Process)
}

pub(crate) fn cases() -> Vec<Case> {
    let metered = On::Shared("metered", metered);
    vec![
        case!(metered, usage_is_answered_without_waking_and_is_not_counted),
        case!(metered, every_request_is_counted_once_by_how_it_ended),
        case!(metered, the_time_that_quick_requests_take_adds_up),
        case!(metered, the_operator_sees_usage_revenue_and_metrics_and_backs_it_up),
        case!(
            On::Own(endable),
            a_damaged_ledger_stops_no_tenant_and_what_was_served_is_billed_later
        ),
        case!(On::Own(books), the_ledger_agrees_with_envoy_and_clients_through_kills_and_restarts),
    ]
}

const AT: &str = "p=index&c=1.1.1/1.1.1/1.1.1";

/// A test that counts within an hour, day or month waits for the end of one that is near.
async fn well_before_the_hour_ends() -> Result<()> {
    let now_s = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let enough = || now_s() % 3_600 < 3_600 - 60;
    until("the hour to pass", Duration::from_secs(90), || async { enough().then_some(()) }).await
}

/// A tenant's page.
async fn page(stack: &Stack, tenant: &str) -> Result<TenantUsage> {
    let response = stack.tenant(tenant)?.get("/api/v2/usage").await?.expect_ok()?;
    ensure!(response.header("content-type") == "application/json", "{response:?}");
    response.json()
}

/// Waits until the ledger has so many requests of the tenant, and gives its page.
async fn counted(stack: &Stack, tenant: &str, requests: u64) -> Result<TenantUsage> {
    until(format!("{requests} requests of {tenant} in the ledger"), REPORTED, || async {
        let page = page(stack, tenant).await.ok()?;
        (page.month.requests() >= requests).then_some(page)
    })
    .await
}

async fn usage_is_answered_without_waking_and_is_not_counted(stack: Arc<Stack>) -> Result<()> {
    well_before_the_hour_ends().await?;
    // Before its first request: nothing is known but the limits.
    let new = page(&stack, "sleeper").await?;
    let burst = new.limits.as_ref().map(|limits| &limits["burst"]);
    ensure!(new.state == "asleep" && burst == Some(&1000.into()), "{new:?}");
    let sleeper = stack.tenant("sleeper")?;
    sleeper.get(&format!("/api/v2/update?{AT}&s=x")).await?.expect_ok()?;
    let awake = counted(&stack, "sleeper", 1).await?;
    ensure!(awake.state == "awake" && awake.last_wake.is_some(), "{awake:?}");
    until("its storage to be measured", PATIENCE, || async {
        let measured = page(&stack, "sleeper").await.ok()?;
        (measured.storage.used_bytes > 0).then_some(())
    })
    .await?;
    stack.orchestrator.put_to_sleep("sleeper", PATIENCE).await?;
    for _ in 0..20 {
        let asleep = page(&stack, "sleeper").await?;
        ensure!(asleep.state == "asleep", "it was woken: {asleep:?}");
        for sums in [&asleep.hour, &asleep.day, &asleep.month] {
            ensure!(sums.writes == 1 && sums.reads == 0, "{asleep:?}");
        }
        let quota = asleep.quotas.get("requests_day").context("no quota requests_day")?;
        ensure!(quota.used == 1 && quota.limit == Some(10_000), "{asleep:?}");
    }
    let state = stack.orchestrator.state_of("sleeper").await?;
    ensure!(state.as_deref() == Some("asleep"), "{state:?}");
    Ok(())
}

async fn every_request_is_counted_once_by_how_it_ended(stack: Arc<Stack>) -> Result<()> {
    well_before_the_hour_ends().await?;
    let client = stack.client(Http::Two)?.key(stack.key("counted")?);
    let text = "x".repeat(1000);
    let mut timings = Vec::new();
    for (method, path, body, status) in [
        (Method::GET, TOC, "", 200),
        (Method::HEAD, TOC, "", 200),
        (Method::POST, &*format!("/api/v2/update?{AT}"), &*text, 200),
        (Method::GET, &*format!("/api/v2/delete?{AT}"), "", 200),
        (Method::GET, "/api/v2/nonsense", "", 404),
        (Method::GET, "/api/v2/select?p=index&c=0", "", 400),
        (Method::PATCH, TOC, "", 405),
    ] {
        let answer =
            client.send(method, path, &[], body.to_owned().into()).await?.expect_status(status)?;
        timings.push(answer.header("server-timing").to_owned());
    }
    let month = counted(&stack, "counted", 7).await?.month;
    ensure!(month.reads == 2 && month.writes == 2, "{month:?}");
    let unknown_endpoint = month.reasons.get("unknown-endpoint").copied();
    ensure!(month.refused == 3 && unknown_endpoint == Some(1), "{month:?}");
    ensure!(month.status == [0, 0, 4, 0, 3, 0], "{month:?}");
    ensure!(month.bytes_in >= 1000 && month.bytes_out > 0, "{month:?}");
    let wakes = |kind| month.wakes.get(kind).copied().unwrap_or_default();
    ensure!(wakes("start") + wakes("create") == 1, "{month:?} {timings:?}");
    Ok(())
}

async fn the_time_that_quick_requests_take_adds_up(stack: Arc<Stack>) -> Result<()> {
    // Nothing else goes on at their worker, and each takes much less than a tick of its clock.
    let client = stack.client(Http::Two)?.key(stack.key("timed")?);
    client.get(TOC).await?.expect_ok()?;
    let (requests, start) = (600, Instant::now());
    for _ in 0..requests {
        client.get(TOC).await?.expect_ok()?;
    }
    let seen_ms = u64::try_from(start.elapsed().as_millis())?;
    let month = counted(&stack, "timed", requests + 1).await?.month;
    let service_ms = month.service_ms;
    println!("{requests} requests took their client {seen_ms} ms, and the tenant {service_ms} ms");
    // The first one's is in it too; the rest of the client's is TLS and both ends of HTTP.
    ensure!((seen_ms / 10..seen_ms + 1_000).contains(&service_ms), "{service_ms} of {seen_ms} ms");
    Ok(())
}

/// `orchestrator usage …`, as an operator types it.
fn operator(stack: &Stack, args: &[&str]) -> Result<String> {
    let output = Command::new(tools::workspace_binary("orchestrator")?)
        .arg("usage")
        .args(args)
        .env("SQ_ADMIN", stack.orchestrator.admin_url())
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "usage {args:?}: {} {said}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

async fn the_operator_sees_usage_revenue_and_metrics_and_backs_it_up(
    stack: Arc<Stack>,
) -> Result<()> {
    well_before_the_hour_ends().await?;
    let shown = stack.tenant("shown")?;
    for _ in 0..3 {
        shown.get(TOC).await?.expect_ok()?;
    }
    counted(&stack, "shown", 3).await?;
    let table = operator(&stack, &[])?;
    ensure!(table.contains("shown") && table.contains("of 380.00 USD a month"), "{table}");
    let csv = operator(&stack, &["--format", "csv"])?;
    ensure!(csv.lines().any(|line| line.starts_with("shown,pro,19.00,3,3,0,0,3,")), "{csv}");
    let json = operator(&stack, &["--tenant", "shown", "--format", "json"])?;
    let month: MonthUsage = serde_json::from_str(&json)?;
    ensure!(month.total.reads == 3 && month.revenue.cents == 1900, "{json}");
    let metrics = stack.orchestrator.admin().get("/metrics").await?.text();
    for metric in [
        "sq_orchestrator_usage_requests_total{class=\"read\"}",
        "sq_orchestrator_usage_top_requests_today",
    ] {
        ensure!(metrics.contains(metric), "no {metric} in\n{metrics}");
    }
    let copy = stack.dir.join("ledger-copy.sqlite").display().to_string();
    let said = operator(&stack, &["backup", &copy])?;
    ensure!(said.contains("is checked"), "{said}");
    Ok(())
}

async fn the_ledger_agrees_with_envoy_and_clients_through_kills_and_restarts(
    stack: Arc<Stack>,
) -> Result<()> {
    let balance = reconcile::on(&stack, REQUESTS).await?;
    println!("{balance:?}");
    Ok(())
}

async fn a_damaged_ledger_stops_no_tenant_and_what_was_served_is_billed_later(
    stack: Arc<Stack>,
) -> Result<()> {
    well_before_the_hour_ends().await?;
    let orchestrator = &stack.orchestrator;
    let ledger = orchestrator.state().join("ledger.sqlite");
    orchestrator.service().stop();
    // Where it was not closed, all of a small ledger is in its log still, out of which it is healed.
    let log = ledger.with_file_name("ledger.sqlite-wal");
    if log.exists() {
        fs::remove_file(log)?;
    }
    fs::write(&ledger, "no database, whatever its name says".repeat(1_000))?;
    orchestrator.start().await?;
    // A sleeping tenant is woken: leases do not wait for the ledger.
    let counted_tenant = stack.tenant("counted")?;
    for _ in 0..5 {
        counted_tenant.get(TOC).await?.expect_ok()?;
    }
    let look = || async {
        let failed = "sq_orchestrator_ledger_condition{condition=\"failed\"}";
        (orchestrator.labelled_metric(failed).await.ok()? > 0.0).then_some(())
    };
    until("the metric to say that the ledger failed", REPORTED, look).await?;
    let ready = orchestrator.admin().get("/readyz").await?;
    ensure!(ready.ok() && ready.text().contains("is damaged"), "{}", ready.text());
    let page = counted_tenant.get("/api/v2/usage").await?;
    ensure!(page.status == 503 && !page.text().contains("ledger"), "{}", page.text());
    orchestrator.service().stop();
    fs::remove_file(&ledger)?;
    orchestrator.start().await?;
    let month = counted(&stack, "counted", 5).await?.month;
    ensure!(month.reads == 5, "{month:?}");
    Ok(())
}
