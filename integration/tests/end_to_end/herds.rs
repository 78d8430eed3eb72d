//! Many first requests at the same time.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use harness::client::TOC;
use harness::{Http, Lifecycle, Stack, StackBuilder};
use tokio::task::JoinSet;

use crate::shared_stack::MAIN;
use crate::suite::{Case, On, case};

/// Concurrent first requests to one tenant.
const HERD: usize = 200;
/// Tenants woken at the same time.
const CROWD: usize = 20;
/// Deadline for a tenant to fall asleep.
const SLEEP_TIMEOUT: Duration = Duration::from_secs(30);

fn sleeper() -> StackBuilder {
    Stack::builder().workers(4).tenant("herd").lifecycle(Lifecycle::short_leases())
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(On::Own(sleeper), two_hundred_requests_wake_a_tenant_once),
        case!(MAIN, two_hundred_first_requests_make_one_start),
        case!(MAIN, twenty_tenants_start_at_once),
    ]
}

/// The tenants that these cases need on the shared stack.
pub(crate) fn tenants() -> Vec<String> {
    let mut tenants: Vec<String> = (1..=CROWD).map(member).collect();
    tenants.push("herd".to_owned());
    tenants
}

fn member(number: usize) -> String {
    format!("crowd-{number}")
}

/// Number of wakes of a tenant; 0 if the orchestrator has not seen the tenant yet.
pub(crate) async fn wakes(stack: &Stack, tenant: &str) -> Result<u64> {
    let status = stack.orchestrator.tenant(tenant).await?;
    Ok(status.map_or(0, |status| status.wakes))
}

async fn two_hundred_first_requests_make_one_start(stack: Arc<Stack>) -> Result<()> {
    send_herd(&stack, "herd", HERD).await?;
    let wakes = wakes(&stack, "herd").await?;
    ensure!(wakes == 1, "{wakes} starts");
    Ok(())
}

/// Differs from a first request: here the workers have the verdict cached and a lease that has
/// ended.
async fn two_hundred_requests_wake_a_tenant_once(stack: Arc<Stack>) -> Result<()> {
    let client = stack.tenant("herd")?;
    client.update("index", "kept").await?.expect_ok()?;
    stack.orchestrator.put_to_sleep("herd", SLEEP_TIMEOUT).await?;
    let before = wakes(&stack, "herd").await?;
    send_herd(&stack, "herd", HERD).await?;
    let starts = wakes(&stack, "herd").await? - before;
    ensure!(starts == 1, "{starts} starts");
    client.select("index").await?.expect_text(200, "kept")?;
    Ok(())
}

/// Sends concurrent requests to one tenant and expects a response of 200 to each.
pub(crate) async fn send_herd(stack: &Stack, tenant: &str, size: usize) -> Result<()> {
    let mut tasks = JoinSet::new();
    for number in 0..size {
        // Each client has its own connection, so that every worker gets some of them.
        let http = if number % 2 == 0 { Http::One } else { Http::Two };
        let client = stack.client(http)?.key(stack.key(tenant)?);
        tasks.spawn(async move { client.get(TOC).await });
    }
    while let Some(response) = tasks.join_next().await {
        response??.expect_ok()?;
    }
    Ok(())
}

async fn twenty_tenants_start_at_once(stack: Arc<Stack>) -> Result<()> {
    let mut tasks = JoinSet::new();
    for tenant in (1..=CROWD).map(member) {
        let client = stack.tenant(&tenant)?;
        tasks.spawn(async move { client.update("index", &tenant).await });
    }
    while let Some(response) = tasks.join_next().await {
        response??.expect_ok()?;
    }
    for tenant in (1..=CROWD).map(member) {
        stack.tenant(&tenant)?.select("index").await?.expect_text(200, &tenant)?;
        let wakes = wakes(&stack, &tenant).await?;
        ensure!(wakes == 1, "{wakes} starts of {tenant}");
        stack.orchestrator.sleep(&tenant).await?;
    }
    Ok(())
}
