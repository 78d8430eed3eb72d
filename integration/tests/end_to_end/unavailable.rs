//! What a tenant is told, byte for byte, while something behind the gateway is away.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use harness::client::TOC;
use harness::host::docker;
use harness::host::processes;
use harness::{Lifecycle, Runtime, Stack, StackBuilder, until};

use crate::refusals::check;
use crate::suite::{Case, On, case};

const PATIENCE: Duration = Duration::from_secs(30);

fn two_tenants() -> StackBuilder {
    // Each failure backs off as long as the first; one worker knows of all leases.
    let lifecycle =
        Lifecycle::default().duration_ms("backoff", 1_000).duration_ms("backoff_max", 1_000);
    Stack::builder().workers(1).lifecycle(lifecycle).tenant("alice").tenant("bob")
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(On::Own(two_tenants), a_database_that_can_t_start_is_told_byte_for_byte),
        case!(
            On::Own(two_tenants),
            without_the_orchestrator_wakes_and_deaths_are_told_byte_for_byte
        ),
    ]
}

/// What stands in the way is told to the operator; the tenant learns when to ask again.
async fn a_database_that_can_t_start_is_told_byte_for_byte(stack: Arc<Stack>) -> Result<()> {
    let folder = stack.orchestrator.data().join("alice");
    fs::write(&folder, "a file where her folder should be")?;
    let value = format!("Bearer {}", stack.key("alice")?);
    let expected = include_str!("refusals/wake-failed.txt");
    check(&stack, &[("authorization", &value)], TOC, expected).await?;
    stack.tenant("bob")?.get(TOC).await?.expect_ok()?;
    fs::remove_file(&folder)?;
    let alice = stack.tenant("alice")?;
    until("alice to be served", PATIENCE, || async {
        alice.get(TOC).await.ok()?.ok().then_some(())
    })
    .await
}

async fn without_the_orchestrator_wakes_and_deaths_are_told_byte_for_byte(
    stack: Arc<Stack>,
) -> Result<()> {
    stack.tenant("alice")?.get(TOC).await?.expect_ok()?;
    stack.orchestrator.service().kill();
    let value = format!("Bearer {}", stack.key("bob")?);
    let expected = include_str!("refusals/orchestrator-unavailable.txt");
    check(&stack, &[("authorization", &value)], TOC, expected).await?;
    // And nobody is there to start again what dies now.
    match stack.runtime {
        Runtime::Process => processes::kill_all(&stack.sq_pids()),
        Runtime::Docker => {
            for id in docker::containers(&stack.tenant_labels("alice"))? {
                docker::run(&["kill", &id])?;
            }
        }
    }
    let value = format!("Bearer {}", stack.key("alice")?);
    let expected = include_str!("refusals/database-unavailable.txt");
    check(&stack, &[("authorization", &value)], TOC, expected).await?;
    stack.orchestrator.start().await?;
    for name in ["alice", "bob"] {
        let client = stack.tenant(name)?;
        let what = format!("{name} to be served again");
        until(what, PATIENCE, || async { client.get(TOC).await.ok()?.ok().then_some(()) }).await?;
    }
    Ok(())
}
