//! Used-up days end requests within two seconds, everywhere, until they end or the tier is raised.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use harness::client::TOC;
use harness::{Client, Http, Lifecycle, Response, Stack, StackBuilder, Tier, until};
use serde_json::Value;

use crate::suite::{Case, On, case};
use protocol::time::DAY_S;

/// A quota is passed → every worker refuses.
const HOLDS_WITHIN: Duration = Duration::from_secs(2);
/// The registry is saved → the tenant is served again.
const LIFTED_WITHIN: Duration = Duration::from_secs(1);
const CONNECTIONS: usize = 12;
const QUOTA: u64 = 60;

fn tiers() -> StackBuilder {
    let tier = |name, quota| Tier::unlimited(name).set(quota, QUOTA);
    Stack::builder()
        .workers(4)
        .second_envoy()
        .tier(tier("day", "requests-per-day"))
        .tier(tier("month", "requests-per-month"))
        .tier(tier("writes", "writes-per-day"))
        .tenant_in_tier("day", "day")
        .tenant_in_tier("many", "day")
        .tenant_in_tier("warned", "day")
        .tenant_in_tier("raised", "day")
        .tenant_in_tier("both", "day")
        .tenant_in_tier("monthly", "month")
        .tenant_in_tier("writer", "writes")
}

/// The same, asleep soon after the last request.
fn sleepy() -> StackBuilder {
    tiers().lifecycle(Lifecycle::short_leases())
}

pub(crate) fn cases() -> Vec<Case> {
    let quotas = On::Shared("quotas", tiers);
    vec![
        case!(quotas, a_used_up_day_is_refused_at_every_worker_within_two_seconds).exclusive(),
        case!(quotas, answers_warn_from_80_percent_on),
        case!(quotas, a_raised_tier_lifts_a_used_up_day_at_once).exclusive(),
        case!(quotas, two_envoys_count_together).exclusive(),
        case!(quotas, a_used_up_month_is_refused_until_the_month_ends).exclusive(),
        case!(quotas, used_up_writes_leave_the_reads),
        case!(On::Own(sleepy), a_tenant_over_its_day_is_refused_without_being_woken),
    ]
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Days end at midnight UTC: a test that would see that waits for it.
async fn well_before_midnight() -> Result<()> {
    let enough = || now_s() % DAY_S < DAY_S - 60;
    until("midnight to pass", Duration::from_secs(90), || async { enough().then_some(()) }).await
}

/// A client with one connection, and so at one worker, which counts exactly what it serves.
fn client(stack: &Stack, tenant: &str) -> Result<Client> {
    Ok(stack.client(Http::Two)?.key(stack.key(tenant)?))
}

/// Whether it is a refusal for the quota; an error when it is neither that nor an answer.
fn is_over(answer: &Response) -> Result<bool> {
    let text = answer.text();
    let over = answer.status == 429 && text.contains("urn:sq:problem:quota-exceeded");
    ensure!(over || answer.ok(), "{} {text}", answer.status);
    Ok(over)
}

/// Asks until it is refused; how often it was served.
async fn use_up(client: &Client, path: &str) -> Result<u64> {
    let mut served = 0;
    while !is_over(&client.get(path).await?)? {
        served += 1;
        ensure!(served < 100 * QUOTA, "the quota is not looked at");
    }
    Ok(served)
}

/// Every client is refused from `passed` + two seconds on.
async fn refused_everywhere(clients: &[Client], passed: Instant) -> Result<()> {
    for client in clients {
        let left = HOLDS_WITHIN.saturating_sub(passed.elapsed());
        until("429 everywhere", left, || async {
            is_over(&client.get(TOC).await.ok()?).ok()?.then_some(())
        })
        .await?;
    }
    Ok(())
}

async fn a_used_up_day_is_refused_at_every_worker_within_two_seconds(
    stack: Arc<Stack>,
) -> Result<()> {
    well_before_midnight().await?;
    let clients = (0..CONNECTIONS).map(|_| client(&stack, "many")).collect::<Result<Vec<_>>>()?;
    // Known at every worker, then quiet: what they do not serve they can't have counted.
    for client in &clients {
        client.get(TOC).await?.expect_ok()?;
    }
    let served = use_up(&clients[0], TOC).await? + clients.len() as u64;
    let passed = Instant::now();
    // One worker counts what it serves by itself; what the others served it hears within a second.
    ensure!(served <= QUOTA + 2 * CONNECTIONS as u64, "{served} of {QUOTA} were served");
    refused_everywhere(&clients, passed).await?;
    let refused = clients[0].get(TOC).await?;
    let ends: u64 = refused.header("retry-after").parse()?;
    let midnight = DAY_S - now_s() % DAY_S;
    ensure!(ends.abs_diff(midnight) <= 2, "ends in {ends} s, midnight is in {midnight} s");
    let problem: Value = serde_json::from_slice(&refused.body)?;
    ensure!(problem["cap"] == QUOTA && problem["retry_after_s"] == ends, "{problem}");
    ensure!(problem["used"].as_u64() >= Some(QUOTA), "{problem}");
    ensure!(refused.header("ratelimit").starts_with("\"burst\""), "{:?}", refused.headers);
    Ok(())
}

async fn answers_warn_from_80_percent_on(stack: Arc<Stack>) -> Result<()> {
    well_before_midnight().await?;
    let warned = client(&stack, "warned")?;
    for number in 1..=QUOTA {
        let answer = warned.get(TOC).await?.expect_ok()?;
        let warning = answer.header("x-sq-quota-warning");
        if number * 100 < QUOTA * 80 {
            ensure!(warning.is_empty(), "request {number} warns: {warning}");
        } else {
            let start = format!("\"day\";used={number};limit={QUOTA};t=");
            ensure!(warning.starts_with(&start), "request {number}: {warning:?}");
        }
    }
    ensure!(is_over(&warned.get(TOC).await?)?, "one more passed");
    Ok(())
}

async fn a_raised_tier_lifts_a_used_up_day_at_once(stack: Arc<Stack>) -> Result<()> {
    well_before_midnight().await?;
    let raised = client(&stack, "raised")?;
    let served = use_up(&raised, TOC).await?;
    ensure!(served == QUOTA, "{served} of {QUOTA} were served");
    stack.registry.run("set", &["raised", "tier=test"])?;
    until("the raised tier", LIFTED_WITHIN, || async {
        raised.get(TOC).await.ok()?.ok().then_some(())
    })
    .await
}

async fn two_envoys_count_together(stack: Arc<Stack>) -> Result<()> {
    well_before_midnight().await?;
    let here = client(&stack, "both")?;
    let there = stack.tenant_at_second("both", Http::Two)?;
    for client in [&here, &there] {
        client.get(TOC).await?.expect_ok()?;
    }
    let served = use_up(&here, TOC).await? + 2;
    let passed = Instant::now();
    ensure!((QUOTA..=QUOTA + 2).contains(&served), "{served} of {QUOTA} were served");
    refused_everywhere(&[there], passed).await
}

async fn a_used_up_month_is_refused_until_the_month_ends(stack: Arc<Stack>) -> Result<()> {
    well_before_midnight().await?;
    let monthly = client(&stack, "monthly")?;
    let served = use_up(&monthly, TOC).await?;
    ensure!(served == QUOTA, "{served} of {QUOTA} were served");
    let refused = monthly.get(TOC).await?;
    let ends: u64 = refused.header("retry-after").parse()?;
    let midnight = DAY_S - now_s() % DAY_S;
    let whole_days = (ends + 2) / DAY_S * DAY_S;
    ensure!(ends.abs_diff(whole_days + midnight) <= 2 || ends.abs_diff(midnight) <= 2, "{ends} s");
    ensure!(refused.text().contains("requests of this month"), "{}", refused.text());
    Ok(())
}

async fn used_up_writes_leave_the_reads(stack: Arc<Stack>) -> Result<()> {
    well_before_midnight().await?;
    let writer = client(&stack, "writer")?;
    let write = "/api/v2/update?p=index&c=1.1.1/1.1.1/1.1.1&s=x";
    let served = use_up(&writer, write).await.context("writes")?;
    ensure!(served == QUOTA, "{served} of {QUOTA} were served");
    writer.get(TOC).await?.expect_ok()?;
    Ok(())
}

async fn a_tenant_over_its_day_is_refused_without_being_woken(stack: Arc<Stack>) -> Result<()> {
    well_before_midnight().await?;
    let first = client(&stack, "day")?;
    let served = use_up(&first, TOC).await?;
    ensure!(served == QUOTA, "{served} of {QUOTA} were served");
    let asleep = || async {
        let state = stack.orchestrator.state_of("day").await?;
        anyhow::Ok(state.as_deref() == Some("asleep"))
    };
    for round in 0..3 {
        // No worker has a lease any more, nor knows what was used.
        stack.orchestrator.put_to_sleep("day", Duration::from_secs(20)).await?;
        let mut herd = tokio::task::JoinSet::new();
        for n in 0..50 {
            let client = if n % 2 == 0 {
                client(&stack, "day")?
            } else {
                stack.tenant_at_second("day", Http::Two)?
            };
            herd.spawn(async move { client.get(TOC).await });
        }
        while let Some(answer) = herd.join_next().await {
            let answer = answer??;
            ensure!(is_over(&answer)?, "round {round}: it was served once more");
            let ends: u64 = answer.header("retry-after").parse()?;
            let midnight = DAY_S - now_s() % DAY_S;
            ensure!(ends.abs_diff(midnight) <= 2, "ends in {ends} s, midnight is in {midnight} s");
        }
        ensure!(asleep().await?, "round {round}: it was woken to be refused");
    }
    let metrics = stack.orchestrator.admin().get("/metrics").await?.text();
    ensure!(metrics.contains("kind=\"quota\""), "not counted among the leases:\n{metrics}");
    let usage = first.get("/api/v2/usage").await?.expect_ok()?;
    let numbers: Value = serde_json::from_slice(&usage.body)?;
    ensure!(numbers["quotas"]["requests_day"]["used"] == QUOTA, "{numbers}");
    stack.registry.run("set", &["day", "tier=test"])?;
    until("the raised tier", LIFTED_WITHIN * 2, || async {
        first.get(TOC).await.ok()?.ok().then_some(())
    })
    .await
}
