//! Many first requests at once.

use harness::{Http, Lifecycle, Stack, StackBuilder};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::task::JoinSet;

use crate::refusals::MAIN;
use crate::world::{Case, On, case};

/// First requests to one tenant at once.
const HERD: usize = 200;
/// Tenants woken at once.
const CROWD: usize = 20;
/// Longest wait for a sleep.
const PATIENCE: Duration = Duration::from_secs(30);

fn sleeper() -> StackBuilder {
    Stack::builder().workers(4).tenant("herd").lifecycle(Lifecycle::short_leases())
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(On::Own(sleeper), two_hundred_requests_at_once_wake_a_sleeping_tenant_once),
        case!(MAIN, two_hundred_first_requests_make_one_start_and_all_are_answered),
        case!(MAIN, twenty_tenants_at_once_are_all_started_and_answered),
    ]
}

/// Who takes part.
pub(crate) fn tenants() -> Vec<String> {
    let crowd = (1..=CROWD).map(|number| format!("crowd-{number}"));
    crowd.chain(["herd".to_owned()]).collect()
}

/// How often a tenant was started.
async fn starts(stack: &Stack, tenant: &str) -> Result<u64> {
    let found = stack.orchestrator.tenant(tenant).await?;
    Ok(found.map(|status| status.wakes).unwrap_or_default())
}

async fn two_hundred_first_requests_make_one_start_and_all_are_answered(
    stack: Arc<Stack>,
) -> Result<()> {
    herd(&stack).await?;
    let starts = starts(&stack, "herd").await?;
    ensure!(starts == 1, "{starts} starts");
    Ok(())
}

/// Verdict and lease are known to the workers here, and the lease has ended.
async fn two_hundred_requests_at_once_wake_a_sleeping_tenant_once(stack: Arc<Stack>) -> Result<()> {
    let client = stack.tenant("herd")?;
    let at = "p=index&c=1.1.1/1.1.1/1.1.1";
    client.get(&format!("/api/v2/update?{at}&s=kept")).await?.expect_ok()?;
    stack.orchestrator.put_to_sleep("herd", PATIENCE).await?;
    let before = starts(&stack, "herd").await?;
    herd(&stack).await?;
    let more = starts(&stack, "herd").await? - before;
    ensure!(more == 1, "{more} starts");
    let answer = client.get(&format!("/api/v2/select?{at}")).await?;
    ensure!(answer.text() == "kept", "{} {:?}", answer.status, answer.text());
    Ok(())
}

/// All of them ask the tenant at once, and all are answered.
async fn herd(stack: &Stack) -> Result<()> {
    let mut tasks = JoinSet::new();
    for number in 0..HERD {
        // Connections of their own, so that every worker has some of them.
        let http = if number % 2 == 0 { Http::One } else { Http::Two };
        let client = stack.client(http)?.key(stack.key("herd")?);
        tasks.spawn(async move { client.get("/api/v2/toc?p=index").await });
    }
    while let Some(answer) = tasks.join_next().await {
        answer??.expect_ok()?;
    }
    Ok(())
}

async fn twenty_tenants_at_once_are_all_started_and_answered(stack: Arc<Stack>) -> Result<()> {
    let mut tasks = JoinSet::new();
    for number in 1..=CROWD {
        let name = format!("crowd-{number}");
        let client = stack.tenant(&name)?;
        let path = format!("/api/v2/update?p=index&c=1.1.1/1.1.1/1.1.1&s={name}");
        tasks.spawn(async move { client.get(&path).await });
    }
    while let Some(answer) = tasks.join_next().await {
        answer??.expect_ok()?;
    }
    for number in 1..=CROWD {
        let name = format!("crowd-{number}");
        let answer = stack.tenant(&name)?.get("/api/v2/select?p=index&c=1.1.1/1.1.1/1.1.1").await?;
        ensure!(answer.text() == name, "{name} was given {:?}", answer.text());
        ensure!(starts(&stack, &name).await? == 1, "{name} was started twice");
        stack.orchestrator.sleep(&name).await?;
    }
    Ok(())
}
