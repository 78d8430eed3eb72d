//! The agent skill `skills/sq/SKILL.md`: its commands work as they are printed, and names never collide.

use std::fs;
use std::process::{Command, Output};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use harness::host::tools;
use harness::{Stack, StackBuilder};

use crate::sq_alone::blocking;
use crate::suite::{Case, On, case};

/// Agents that write at the same time, and the names that each of them adds.
const AGENTS: usize = 4;
const NAMES: usize = 5;

fn two_tenants() -> StackBuilder {
    Stack::builder().workers(2).tenant("alice").tenant("bob")
}

pub(crate) fn cases() -> Vec<Case> {
    let stack = On::Shared("skill", two_tenants);
    vec![
        case!(stack, skill_has_a_name_and_a_description),
        case!(stack, skill_commands_work_as_printed),
        case!(stack, names_of_concurrent_agents_never_collide),
    ]
}

fn skill() -> Result<String> {
    Ok(fs::read_to_string(tools::root().join("skills/sq/SKILL.md"))?)
}

/// The skill's `sh` blocks.
fn blocks() -> Result<Vec<String>> {
    let skill = skill()?;
    let blocks = skill.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    Ok(blocks.map(str::to_owned).collect())
}

/// Runs bash with the settings that a user of the skill has.
async fn run(stack: &Stack, tenant: &str, script: String) -> Result<Output> {
    let url = stack.url();
    let key = stack.key(tenant)?.to_owned();
    let ca = stack.certs.ca();
    blocking(move || {
        let mut bash = Command::new("bash");
        bash.arg("-c").arg(format!("set -uo pipefail\n{script}"));
        // curl reads the authority from here, as it would from the host's own.
        bash.env("SQ_URL", url).env("SQ_KEY", key).env("CURL_CA_BUNDLE", ca);
        bash.output().context("bash")
    })
    .await
}

/// `OpenClaw` takes a skill from the front matter of its file.
async fn skill_has_a_name_and_a_description(_: Arc<Stack>) -> Result<()> {
    let skill = skill()?;
    let front = skill.strip_prefix("---\n").and_then(|rest| rest.split("\n---\n").next());
    let front = front.context("no front matter")?;
    let field = |name: &str| front.lines().find_map(|line| line.strip_prefix(name));
    ensure!(field("name: ") == Some("sq"), "{front}");
    ensure!(field("description: ").is_some_and(|text| text.len() < 1_024), "{front}");
    ensure!(!skill.contains("pmb-v1-0"), "an example of a key would be copied");
    Ok(())
}

async fn skill_commands_work_as_printed(stack: Arc<Stack>) -> Result<()> {
    let output = run(&stack, "alice", blocks()?.concat()).await?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}\n{stdout}\n{stderr}", output.status);
    ensure!(stderr.is_empty(), "{stderr}");
    for expected in [
        "Ada\n",
        "Updated 13 bytes",
        "user.name\n",
        "Removed 13 bytes",
        "a text and more",
        "* 2.1.1/1.1.1/1.1.1: a text and more",
        "\"quotas\"",
    ] {
        ensure!(stdout.contains(expected), "{expected:?} is missing in:\n{stdout}");
    }
    // What is not there, or was forgotten, is an error and no text.
    let functions = blocks()?.swap_remove(0);
    for command in ["recall user.name", "recall unknown", "update_memory unknown <<<x"] {
        let output = run(&stack, "alice", format!("{functions}\n{command}")).await?;
        ensure!(!output.status.success() && output.stdout.is_empty(), "{command}: {output:?}");
    }
    Ok(())
}

async fn names_of_concurrent_agents_never_collide(stack: Arc<Stack>) -> Result<()> {
    let functions = blocks()?.swap_remove(0);
    let agent = |agent: usize| {
        let remember: Vec<String> = (0..NAMES)
            .map(|n| format!("remember 'agent {agent}: name {n}' <<<'text {agent}.{n}' || exit"))
            .collect();
        let remember = remember.join("\n");
        // A name that all of them use.
        run(&stack, "bob", format!("{functions}\n{remember}\nremember shared <<<{agent}"))
    };
    let outputs = tokio::join!(agent(0), agent(1), agent(2), agent(3));
    for output in [outputs.0?, outputs.1?, outputs.2?, outputs.3?] {
        ensure!(output.status.success(), "{output:?}");
    }
    let recall: String = (0..AGENTS)
        .flat_map(|agent| (0..NAMES).map(move |n| format!("recall 'agent {agent}: name {n}'\n")))
        .collect();
    let output = run(&stack, "bob", format!("{functions}\n{recall}list_memories | wc -l")).await?;
    let mut expected: Vec<String> = (0..AGENTS)
        .flat_map(|agent| (0..NAMES).map(move |n| format!("text {agent}.{n}")))
        .collect();
    expected.push((AGENTS * NAMES + 1).to_string());
    let stdout = String::from_utf8_lossy(&output.stdout);
    ensure!(stdout.lines().eq(expected.iter()), "{stdout}\n{output:?}");
    Ok(())
}
