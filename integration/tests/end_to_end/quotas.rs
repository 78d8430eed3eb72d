//! A used-up quota is enforced within two seconds by every worker and every Envoy, until its period
//! ends or the tenant's tier is raised.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use harness::client::TOC;
use harness::client::response::Problem;
use harness::parts::orchestrator::responses::TenantUsage;
use harness::{Client, Http, Lifecycle, Response, Stack, StackBuilder, Tier, until};
use protocol::ByteLimit;
use protocol::time::DAY_S;
use tokio::task::JoinSet;

use crate::suite::{Case, On, case};

/// Promised time from using up a quota to refusal by every worker.
const ENFORCED_WITHIN: Duration = Duration::from_secs(2);
/// Promised time from saving the registry to serving the tenant again.
const LIFTED_WITHIN: Duration = Duration::from_secs(1);
const CONNECTIONS: usize = 12;
const QUOTA: u64 = 60;

fn tiers() -> StackBuilder {
    Stack::builder()
        .workers(4)
        .second_envoy()
        .tier(Tier::unlimited("day").set("requests-per-day", QUOTA))
        .tier(Tier::unlimited("month").set("requests-per-month", QUOTA))
        .tier(Tier::unlimited("writes").set("writes-per-day", QUOTA))
        .tier(Tier::unlimited("reads").set("writes-per-day", 0))
        .tenant_in_tier("day", "day")
        .tenant_in_tier("reader", "reads")
        .tenant_in_tier("many", "day")
        .tenant_in_tier("warned", "day")
        .tenant_in_tier("raised", "day")
        .tenant_in_tier("both", "day")
        .tenant_in_tier("monthly", "month")
        .tenant_in_tier("writer", "writes")
}

fn tiers_with_short_leases() -> StackBuilder {
    tiers().lifecycle(Lifecycle::short_leases())
}

pub(crate) fn cases() -> Vec<Case> {
    let quotas = On::Shared("quotas", tiers);
    vec![
        case!(quotas, used_up_day_is_refused_by_every_worker).exclusive(),
        case!(quotas, responses_warn_from_80_percent_on),
        case!(quotas, raised_tier_lifts_a_used_up_day).exclusive(),
        case!(quotas, two_envoys_count_together).exclusive(),
        case!(quotas, used_up_month_is_refused_until_its_end).exclusive(),
        case!(quotas, used_up_writes_leave_reads),
        case!(quotas, zero_writes_make_a_tenant_read_only),
        case!(On::Own(tiers_with_short_leases), tenant_over_quota_is_refused_without_wake),
    ]
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn until_midnight_s() -> u64 {
    DAY_S - now_s() % DAY_S
}

/// Waits for the next day if the present one, in UTC, is about to end.
async fn well_before_midnight() -> Result<()> {
    let enough = || now_s() % DAY_S < DAY_S - 60;
    until("midnight to pass", Duration::from_secs(90), || async { enough().then_some(()) }).await
}

/// A client of the first Envoy over one connection, which belongs to one worker.
fn client(stack: &Stack, tenant: &str) -> Result<Client> {
    Ok(stack.client(Http::Two)?.key(stack.key(tenant)?))
}

/// True if the quota refused the request, false if it was served; an error otherwise.
fn is_over_quota(response: &Response) -> Result<bool> {
    if response.ok() {
        return Ok(false);
    }
    response.expect_problem(429, "quota-exceeded")?;
    Ok(true)
}

/// Sends requests until the quota refuses one. Returns the number of requests served.
async fn use_up(client: &Client, path: &str) -> Result<u64> {
    let mut served = 0;
    while !is_over_quota(&client.get(path).await?)? {
        served += 1;
        ensure!(served < 100 * QUOTA, "the quota is not enforced");
    }
    Ok(served)
}

/// Uses up the quota with one client, to the last request.
async fn use_up_exactly(client: &Client, path: &str) -> Result<()> {
    let served = use_up(client, path).await?;
    ensure!(served == QUOTA, "{served} of {QUOTA} were served");
    Ok(())
}

/// Waits until every client is refused, at most until two seconds after `used_up`.
async fn until_refused_everywhere(clients: &[Client], used_up: Instant) -> Result<()> {
    for client in clients {
        let left = ENFORCED_WITHIN.saturating_sub(used_up.elapsed());
        until("429 everywhere", left, || async {
            is_over_quota(&client.get(TOC).await.ok()?).ok()?.then_some(())
        })
        .await?;
    }
    Ok(())
}

/// Waits until the client is served again, because its tier was raised.
async fn until_lifted(client: &Client, within: Duration) -> Result<()> {
    until("the raised tier", within, || async { client.get(TOC).await.ok()?.ok().then_some(()) })
        .await
}

/// Checks that a response refuses requests until midnight, and returns its problem document.
fn expect_refusal_until_midnight(response: &Response) -> Result<Problem> {
    let problem = response.expect_problem(429, "quota-exceeded")?;
    let ends = response.retry_after_s()?;
    let midnight = until_midnight_s();
    ensure!(ends.abs_diff(midnight) <= 2, "ends in {ends} s, midnight is in {midnight} s");
    Ok(problem)
}

async fn used_up_day_is_refused_by_every_worker(stack: Arc<Stack>) -> Result<()> {
    well_before_midnight().await?;
    let clients = (0..CONNECTIONS).map(|_| client(&stack, "many")).collect::<Result<Vec<_>>>()?;
    // Every worker has the tenant's verdict. Only one serves it from here on, so the others must
    // hear of the usage from the orchestrator.
    for client in &clients {
        client.get(TOC).await?.expect_ok()?;
    }
    let served = use_up(&clients[0], TOC).await? + clients.len() as u64;
    let used_up = Instant::now();
    // A worker knows at once what it served, and within a second what the others served.
    ensure!(served <= QUOTA + 2 * CONNECTIONS as u64, "{served} of {QUOTA} were served");
    until_refused_everywhere(&clients, used_up).await?;
    let refused = clients[0].get(TOC).await?;
    let problem = expect_refusal_until_midnight(&refused)?;
    ensure!(problem.cap == Some(QUOTA) && problem.used >= Some(QUOTA), "{problem:?}");
    ensure!(refused.header("ratelimit").starts_with("\"burst\""), "{:?}", refused.headers);
    Ok(())
}

async fn responses_warn_from_80_percent_on(stack: Arc<Stack>) -> Result<()> {
    well_before_midnight().await?;
    let warned = client(&stack, "warned")?;
    for number in 1..=QUOTA {
        let response = warned.get(TOC).await?.expect_ok()?;
        let warning = response.header("x-sq-quota-warning");
        if number * 100 < QUOTA * 80 {
            ensure!(warning.is_empty(), "request {number} warns: {warning}");
        } else {
            let start = format!("\"day\";used={number};limit={QUOTA};t=");
            ensure!(warning.starts_with(&start), "request {number}: {warning:?}");
        }
    }
    ensure!(is_over_quota(&warned.get(TOC).await?)?, "one request too many was served");
    Ok(())
}

async fn raised_tier_lifts_a_used_up_day(stack: Arc<Stack>) -> Result<()> {
    well_before_midnight().await?;
    let raised = client(&stack, "raised")?;
    use_up_exactly(&raised, TOC).await?;
    stack.registry.run("set", &["raised", "tier=test"])?;
    until_lifted(&raised, LIFTED_WITHIN).await
}

async fn two_envoys_count_together(stack: Arc<Stack>) -> Result<()> {
    well_before_midnight().await?;
    let first = client(&stack, "both")?;
    let second = stack.tenant_at_second("both", Http::Two)?;
    for client in [&first, &second] {
        client.get(TOC).await?.expect_ok()?;
    }
    let served = use_up(&first, TOC).await? + 2;
    let used_up = Instant::now();
    ensure!((QUOTA..=QUOTA + 2).contains(&served), "{served} of {QUOTA} were served");
    until_refused_everywhere(&[second], used_up).await
}

async fn used_up_month_is_refused_until_its_end(stack: Arc<Stack>) -> Result<()> {
    well_before_midnight().await?;
    let monthly = client(&stack, "monthly")?;
    use_up_exactly(&monthly, TOC).await?;
    let refused = monthly.get(TOC).await?;
    let ends = refused.retry_after_s()?;
    // The month ends at some midnight: this one, or one that is whole days later.
    let midnight = until_midnight_s();
    let whole_days = (ends + 2) / DAY_S * DAY_S;
    ensure!(ends.abs_diff(whole_days + midnight) <= 2 || ends.abs_diff(midnight) <= 2, "{ends} s");
    ensure!(refused.text().contains("requests of this month"), "{}", refused.text());
    Ok(())
}

async fn zero_writes_make_a_tenant_read_only(stack: Arc<Stack>) -> Result<()> {
    let reader = client(&stack, "reader")?;
    ensure!(is_over_quota(&reader.update("note", "text").await?)?, "the write was served");
    reader.get(TOC).await?.expect_ok()?;
    let usage: TenantUsage = reader.get("/api/v2/usage").await?.expect_ok()?.json()?;
    ensure!(usage.quotas["writes_day"].limit == Some(ByteLimit::Bytes(0)), "{usage:?}");
    ensure!(usage.quotas["requests_day"].limit == Some(ByteLimit::Unlimited), "{usage:?}");
    Ok(())
}

async fn used_up_writes_leave_reads(stack: Arc<Stack>) -> Result<()> {
    well_before_midnight().await?;
    let writer = client(&stack, "writer")?;
    use_up_exactly(&writer, "/api/v2/update?p=index&c=1.1.1/1.1.1/1.1.1&s=x").await?;
    writer.get(TOC).await?.expect_ok()?;
    Ok(())
}

async fn tenant_over_quota_is_refused_without_wake(stack: Arc<Stack>) -> Result<()> {
    well_before_midnight().await?;
    let first = client(&stack, "day")?;
    use_up_exactly(&first, TOC).await?;
    for round in 0..3 {
        // After a sleep no worker has a lease or the tenant's usage.
        stack.orchestrator.put_to_sleep("day", Duration::from_secs(20)).await?;
        let mut herd = JoinSet::new();
        for n in 0..50 {
            let client = if n % 2 == 0 {
                client(&stack, "day")?
            } else {
                stack.tenant_at_second("day", Http::Two)?
            };
            herd.spawn(async move { client.get(TOC).await });
        }
        while let Some(response) = herd.join_next().await {
            expect_refusal_until_midnight(&response??)?;
        }
        let state = stack.orchestrator.state_of("day").await?;
        ensure!(state.as_deref() == Some("asleep"), "round {round}: a refusal woke it: {state:?}");
    }
    let metrics = stack.orchestrator.metrics().get("/metrics").await?.text();
    let refused = stack
        .orchestrator
        .labelled_metric("sq_orchestrator_lease_requests_total{kind=\"quota\"}")
        .await?;
    ensure!(refused > 0.0, "not counted among the lease requests:\n{metrics}");
    let usage: TenantUsage = first.get("/api/v2/usage").await?.expect_ok()?.json()?;
    let day = usage.quotas.get("requests_day");
    ensure!(day.is_some_and(|quota| quota.used == QUOTA), "{usage:?}");
    stack.registry.run("set", &["day", "tier=test"])?;
    until_lifted(&first, LIFTED_WITHIN * 2).await
}
