//! Refusals while something behind the gateway is unavailable, compared byte for byte.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use harness::client::TOC;
use harness::{Lifecycle, Stack, StackBuilder, until};

use crate::refusals::check_tenant;
use crate::suite::{Case, On, case};

const PATIENCE: Duration = Duration::from_secs(30);

fn two_tenants() -> StackBuilder {
    // Every failure backs off for the same time, and one worker has all leases.
    let lifecycle =
        Lifecycle::default().duration_ms("backoff", 1_000).duration_ms("backoff_max", 1_000);
    Stack::builder().workers(1).lifecycle(lifecycle).tenant("alice").tenant("bob")
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(On::Own(two_tenants), failed_start_is_refused_byte_for_byte),
        case!(On::Own(two_tenants), orchestrator_outage_is_refused_byte_for_byte),
    ]
}

async fn until_served(stack: &Stack, tenant: &str) -> Result<()> {
    let client = stack.tenant(tenant)?;
    until(format!("{tenant} to be served"), PATIENCE, || async {
        client.get(TOC).await.ok()?.ok().then_some(())
    })
    .await
}

/// The cause is for the operator only: the tenant learns when to retry.
async fn failed_start_is_refused_byte_for_byte(stack: Arc<Stack>) -> Result<()> {
    let folder = stack.orchestrator.data().join("alice");
    fs::write(&folder, "a file where the tenant's folder should be")?;
    check_tenant(&stack, "alice", TOC, include_str!("refusals/wake-failed.txt")).await?;
    stack.tenant("bob")?.get(TOC).await?.expect_ok()?;
    fs::remove_file(&folder)?;
    until_served(&stack, "alice").await
}

async fn orchestrator_outage_is_refused_byte_for_byte(stack: Arc<Stack>) -> Result<()> {
    stack.tenant("alice")?.get(TOC).await?.expect_ok()?;
    stack.orchestrator.service().kill();
    // Bob sleeps and cannot be woken.
    let expected = include_str!("refusals/orchestrator-unavailable.txt");
    check_tenant(&stack, "bob", TOC, expected).await?;
    // Alice's SQ dies and is not restarted.
    stack.kill_sq("alice")?;
    let expected = include_str!("refusals/database-unavailable.txt");
    check_tenant(&stack, "alice", TOC, expected).await?;
    stack.orchestrator.start().await?;
    until_served(&stack, "alice").await?;
    until_served(&stack, "bob").await
}
