//! Injection of each drill's fault.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::mixed_load::MixedLoad;
use super::{Drill, PATIENCE, clock, daemon, pairs};
use harness::host::tools;
use harness::{Stack, until};

/// A body too large for an SQ with 64 MiB of memory, which holds each body several times.
const LARGE_BODY_BYTES: usize = 40 << 20;
/// Size of one jump of the clock.
const HOUR_S: i64 = 3_600;

/// Injects the fault of a drill. `number` counts the faults of the drill and selects a tenant.
pub(super) async fn inject(
    drill: Drill,
    stack: &Stack,
    load: &MixedLoad,
    number: usize,
) -> Result<()> {
    match drill {
        Drill::SqKilled => kill_one_sq(stack, number),
        Drill::SqOutOfMemory => exhaust_memory(stack, number).await,
        Drill::AllSqsKilled => {
            stack.sq_instances()?.iter().try_for_each(|sq| stack.kill_sq_instance(sq))
        }
        Drill::OrchestratorKilled => {
            stack.orchestrator.service().kill();
            stack.orchestrator.start().await
        }
        Drill::OrchestratorUpgraded => upgrade_orchestrator(stack, number).await,
        Drill::SecondOrchestrator => start_second_orchestrator(stack),
        Drill::EnvoyHotRestarted => stack.envoy.hot_restart().await,
        Drill::EnvoyKilled => {
            stack.envoy.kill();
            stack.envoy.start().await
        }
        Drill::RelayGone => {
            stack.relay.service().kill();
            stack.relay.start().await
        }
        Drill::AllAsleep => put_all_to_sleep(stack).await,
        Drill::AllAtOnce => restart_while_all_sleep(stack, load).await,
        Drill::ClockJumps => {
            let shifts = [HOUR_S, 0, -HOUR_S, 0];
            clock::shift(shifts[number % shifts.len()])
        }
        // A full disk has a load loop with two steps per fault, in the module `disk`.
        Drill::NoFault | Drill::DiskFull => Ok(()),
        Drill::DaemonLiveRestore | Drill::DaemonRestarted => daemon::inject(drill).await,
        Drill::TwoAtOnce | Drill::DaemonAndAnother => pairs::inject(drill, stack, number).await,
    }
}

pub(super) fn kill_one_sq(stack: &Stack, number: usize) -> Result<()> {
    let instances = stack.sq_instances()?;
    let instance = instances.get(number % instances.len().max(1)).context("no SQ runs")?;
    stack.kill_sq_instance(instance)
}

/// Replaces the orchestrator's binary with a copy, and restarts it as an upgrade does.
async fn upgrade_orchestrator(stack: &Stack, number: usize) -> Result<()> {
    let binary = stack.dir.join(format!("orchestrator-{number}"));
    std::fs::copy(tools::workspace_binary("orchestrator")?, &binary)?;
    stack.orchestrator.service().stop();
    stack.orchestrator.service().replace(binary);
    stack.orchestrator.start().await
}

/// Puts every tenant to sleep while clients pause, restarts the orchestrator, and lets all clients
/// continue at the same time.
async fn restart_while_all_sleep(stack: &Stack, load: &MixedLoad) -> Result<()> {
    load.pause().await?;
    for name in stack.keys.keys() {
        stack.orchestrator.put_to_sleep(name, PATIENCE).await?;
    }
    stack.orchestrator.service().kill();
    stack.orchestrator.start().await?;
    load.resume();
    Ok(())
}

/// Requests sleep for every tenant, and waits until each has slept and its client has woken it.
async fn put_all_to_sleep(stack: &Stack) -> Result<()> {
    let mut wakes_before = BTreeMap::new();
    for name in stack.keys.keys() {
        wakes_before.insert(name, wakes(stack, name).await.unwrap_or_default());
        stack.orchestrator.sleep(name).await?.expect_status(202)?;
    }
    for (name, before) in wakes_before {
        until(format!("{name} to have slept"), PATIENCE, || async {
            (wakes(stack, name).await? > before).then_some(())
        })
        .await?;
    }
    Ok(())
}

async fn wakes(stack: &Stack, name: &str) -> Option<u64> {
    Some(stack.orchestrator.tenant(name).await.ok()??.wakes)
}

async fn deaths(stack: &Stack, name: &str) -> Option<u64> {
    Some(stack.orchestrator.tenant(name).await.ok()??.deaths)
}

/// Sends a body that exceeds the memory of one tenant's SQ, to a separate phext.
async fn exhaust_memory(stack: &Stack, number: usize) -> Result<()> {
    let names: Vec<&String> = stack.keys.keys().collect();
    let name = names.get(number % names.len().max(1)).context("no tenant")?.as_str();
    let deaths_before = deaths(stack, name).await.unwrap_or_default();
    let client = stack.tenant(name)?;
    let path = "/api/v2/insert?p=hog&c=1.1.1/1.1.1/1.1.1";
    let response = client.post(path, "x".repeat(LARGE_BODY_BYTES)).await?;
    ensure!(!response.ok(), "SQ accepted {LARGE_BODY_BYTES} bytes within 64 MiB of memory");
    ensure!(response.header("content-type").contains("problem"), "{response:?}");
    until(format!("{name} to run out of memory"), PATIENCE, || async {
        (deaths(stack, name).await? > deaths_before).then_some(())
    })
    .await
}

/// Starts another orchestrator on the same data root. It must refuse and name the reason.
fn start_second_orchestrator(stack: &Stack) -> Result<()> {
    let output = Command::new(tools::workspace_binary("orchestrator")?)
        .args(["serve", "--config"])
        .arg(stack.dir.join("orchestrator.toml"))
        .output()?;
    ensure!(!output.status.success(), "a second orchestrator started on the same data root");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(text.contains("another orchestrator"), "the reason is missing: {text}");
    Ok(())
}
