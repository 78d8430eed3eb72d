//! Tenants sleep when nobody needs them and no request is lost by it.

use harness::{Client, Http, Lifecycle, Load, Response, Stack, StackBuilder, until};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::suite::{Case, On, case};

/// Sleeps and wakes under load.
const ROUNDS: u64 = 50;
/// Longest that all of them may take; about two seconds each.
const ALL: Duration = Duration::from_mins(3);
/// Who writes and reads all the while.
const CLIENTS: u64 = 4;
/// Requests between one sleep and the next at the least, over all clients: each has one that waits
/// through the sleep, and some before it is asked for again.
const EACH_ROUND: u64 = 10;
/// Longest wait for one sleep: lease, grace and the withdrawal of the cluster, with room for a
/// busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn hasty() -> StackBuilder {
    // Longer than a request takes on a busy machine, which is the rule for a grace.
    let lifecycle = Lifecycle::short_leases().duration_ms("grace", 1_200);
    Stack::builder().workers(2).tenant("alice").lifecycle(lifecycle)
}

fn idle() -> StackBuilder {
    let lifecycle = Lifecycle::default()
        .duration_ms("lease", 500)
        .duration_ms("grace", 700)
        .duration_ms("doze_after", 1_000)
        .duration_ms("sleep_after", 3_000);
    Stack::builder().tenant("alice").tenant("bob").lifecycle(lifecycle)
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(On::Own(hasty), fifty_sleeps_and_wakes_under_load_lose_no_request),
        case!(On::Own(idle), an_idle_tenant_dozes_then_sleeps_and_its_data_are_there_when_it_wakes),
    ]
}

const AT: &str = "p=index&c=1.1.1/1.1.1/1.1.1";

async fn fifty_sleeps_and_wakes_under_load_lose_no_request(stack: Arc<Stack>) -> Result<()> {
    let clients = [stack.tenant("alice")?, stack.client(Http::Two)?.key(stack.key("alice")?)];
    let load = Load::start(CLIENTS, Duration::from_millis(20), move |client, number| {
        let alice = clients[usize::try_from(client % 2).unwrap_or_default()].clone();
        write_then_read(alice, client, number)
    });
    until(format!("{ROUNDS} wakes"), ALL, || async {
        let found = stack.orchestrator.tenant("alice").await.ok()??;
        if found.state == "awake" {
            stack.orchestrator.sleep("alice").await.ok()?;
        }
        (found.wakes > ROUNDS).then_some(())
    })
    .await?;
    let seen = load.finish().await;
    println!("{ROUNDS} sleeps: {seen:?}");
    ensure!(seen.errors == 0, "{seen:?}");
    ensure!(seen.requests >= ROUNDS * EACH_ROUND, "hardly any load: {seen:?}");
    Ok(())
}

/// Each client has a scroll of its own: written by one request, read by the next.
async fn write_then_read(alice: Client, client: u64, number: u64) -> Result<Response> {
    let at = format!("p=index&c=1.1.1/1.1.1/1.1.{}", client + 1);
    let text = format!("text-{}", number / 2);
    if number.is_multiple_of(2) {
        return alice.get(&format!("/api/v2/update?{at}&s={text}")).await;
    }
    let answer = alice.get(&format!("/api/v2/select?{at}")).await?;
    ensure!(!answer.ok() || answer.text() == text, "{:?} instead of {text}", answer.text());
    Ok(answer)
}

async fn an_idle_tenant_dozes_then_sleeps_and_its_data_are_there_when_it_wakes(
    stack: Arc<Stack>,
) -> Result<()> {
    let alice = stack.tenant("alice")?;
    alice.get(&format!("/api/v2/update?{AT}&s=kept")).await?.expect_ok()?;
    for state in ["dozing", "asleep"] {
        until(format!("alice to be {state}"), PATIENCE, || async {
            (stack.orchestrator.state_of("alice").await.ok()?? == state).then_some(())
        })
        .await?;
    }
    let answer = alice.get(&format!("/api/v2/select?{AT}")).await?;
    ensure!(answer.text() == "kept", "{} {:?}", answer.status, answer.text());
    let timing = answer.header("server-timing");
    let told = timing.contains("desc=start") || timing.contains("desc=create");
    ensure!(told, "the wake is not told: {timing}");
    Ok(())
}
