//! How each thing is broken.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::mixed::Mixed;
use super::{Drill, PATIENCE, clock};
use harness::host::docker;
use harness::host::processes;
use harness::host::tools;
use harness::{Runtime, Stack, until};

/// More than SQ bears in 64 MiB: it holds a body several times.
const HOG_BYTES: usize = 40 << 20;
/// How far the clock jumps.
const HOUR_S: i64 = 3_600;

pub(super) async fn strike(drill: Drill, stack: &Stack, load: &Mixed, number: usize) -> Result<()> {
    match drill {
        Drill::SqKilled => {
            let all = instances(stack)?;
            kill(stack, all.get(number % all.len().max(1)).context("no SQ runs")?)
        }
        Drill::SqOutOfMemory => out_of_memory(stack, number).await,
        Drill::AllSqsKilled => instances(stack)?.iter().try_for_each(|sq| kill(stack, sq)),
        Drill::OrchestratorKilled => {
            stack.orchestrator.service().kill();
            stack.orchestrator.start().await
        }
        Drill::OrchestratorUpgraded => {
            let new = stack.dir.join(format!("orchestrator-{number}"));
            std::fs::copy(tools::workspace_binary("orchestrator")?, &new)?;
            stack.orchestrator.service().stop();
            stack.orchestrator.service().replace(new);
            stack.orchestrator.start().await
        }
        Drill::SecondOrchestrator => second_orchestrator(stack),
        Drill::EnvoyHotRestarted => stack.envoy.hot_restart().await,
        Drill::EnvoyKilled => {
            stack.envoy.kill();
            stack.envoy.start().await
        }
        Drill::RelayGone => {
            stack.relay.service().kill();
            stack.relay.start().await
        }
        Drill::AllAsleep => all_asleep(stack).await,
        Drill::AllAtOnce => {
            load.rest().await?;
            for name in stack.keys.keys() {
                stack.orchestrator.put_to_sleep(name, PATIENCE).await?;
            }
            stack.orchestrator.service().kill();
            stack.orchestrator.start().await?;
            load.go_on();
            Ok(())
        }
        Drill::ClockJumps => {
            let ahead = [HOUR_S, 0, -HOUR_S, 0];
            clock::shift(ahead[number % ahead.len()])
        }
        // Elsewhere.
        Drill::Nothing | Drill::DiskFull => Ok(()),
        Drill::DaemonLiveRestore | Drill::DaemonRestarted => super::daemon::restart(drill).await,
    }
}

/// Asks for sleep, and waits until each has slept and was woken by its client.
async fn all_asleep(stack: &Stack) -> Result<()> {
    let mut before = BTreeMap::new();
    for name in stack.keys.keys() {
        before.insert(name, wakes(stack, name).await.unwrap_or_default());
        stack.orchestrator.sleep(name).await?.expect_status(202)?;
    }
    for (name, before) in before {
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

/// Process or container ids of all tenants' SQs.
fn instances(stack: &Stack) -> Result<Vec<String>> {
    match stack.runtime {
        Runtime::Process => Ok(stack.sq_pids().iter().map(ToString::to_string).collect()),
        Runtime::Docker => docker::containers(&stack.labels()),
    }
}

fn kill(stack: &Stack, instance: &str) -> Result<()> {
    match stack.runtime {
        Runtime::Process => processes::kill(instance.parse()?),
        // One that is stopped already can't be killed: it sleeps.
        Runtime::Docker => drop(docker::run(&["kill", instance])),
    }
    Ok(())
}

/// A body that its memory does not bear, in a phext of its own.
async fn out_of_memory(stack: &Stack, number: usize) -> Result<()> {
    let names: Vec<&String> = stack.keys.keys().collect();
    let name = names.get(number % names.len().max(1)).context("no tenant")?.as_str();
    let deaths = || async { Some(stack.orchestrator.tenant(name).await.ok()??.deaths) };
    let before = deaths().await.unwrap_or_default();
    let hog = stack.tenant(name)?;
    let path = "/api/v2/insert?p=hog&c=1.1.1/1.1.1/1.1.1";
    let answer = hog.post(path, "x".repeat(HOG_BYTES)).await?;
    ensure!(!answer.ok(), "{HOG_BYTES} bytes fit into 64 MiB after all");
    ensure!(answer.header("content-type").contains("problem"), "{answer:?}");
    until(format!("{name} to die of it"), PATIENCE, || async {
        (deaths().await? > before).then_some(())
    })
    .await
}

fn second_orchestrator(stack: &Stack) -> Result<()> {
    let output = Command::new(tools::workspace_binary("orchestrator")?)
        .args(["serve", "--config"])
        .arg(stack.dir.join("orchestrator.toml"))
        .output()?;
    ensure!(!output.status.success(), "a second orchestrator started on the same data root");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(said.contains("another orchestrator"), "it does not say why: {said}");
    Ok(())
}
