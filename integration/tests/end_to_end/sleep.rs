//! A tenant sleeps when it is idle, and no request is lost by that.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use harness::{Client, Http, Lifecycle, Load, Response, Stack, StackBuilder, until};

use crate::suite::{Case, On, case};

/// Sleeps and wakes under load.
const ROUNDS: u64 = 50;
/// Deadline for all rounds; each takes about two seconds.
const ALL_ROUNDS: Duration = Duration::from_mins(3);
/// Clients that write and read during all rounds.
const CLIENTS: u64 = 4;
/// Minimum of requests per round over all clients: each client has one that waits through the
/// sleep, and a few before the next sleep is requested.
const REQUESTS_PER_ROUND: u64 = 10;
/// Deadline for one sleep: lease, grace and the withdrawal of the cluster, with room for a busy
/// machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn short_leases() -> StackBuilder {
    // The grace must exceed the time that a request takes, here on a busy machine.
    let lifecycle = Lifecycle::short_leases().duration_ms("grace", 1_200);
    Stack::builder().workers(2).tenant("alice").lifecycle(lifecycle)
}

fn short_idle_times() -> StackBuilder {
    let lifecycle = Lifecycle::default()
        .duration_ms("lease", 500)
        .duration_ms("grace", 700)
        .duration_ms("doze_after", 1_000)
        .duration_ms("sleep_after", 3_000);
    Stack::builder().tenant("alice").tenant("bob").lifecycle(lifecycle)
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(On::Own(short_leases), fifty_sleeps_under_load_lose_no_request),
        case!(On::Own(short_idle_times), idle_tenant_dozes_then_sleeps_and_keeps_data),
    ]
}

async fn fifty_sleeps_under_load_lose_no_request(stack: Arc<Stack>) -> Result<()> {
    let clients = [stack.tenant("alice")?, stack.client(Http::Two)?.key(stack.key("alice")?)];
    let load = Load::start(CLIENTS, Duration::from_millis(20), move |client, number| {
        let alice = clients[usize::try_from(client % 2).unwrap_or_default()].clone();
        write_then_read(alice, client, number)
    });
    until(format!("{ROUNDS} wakes"), ALL_ROUNDS, || async {
        let alice = stack.orchestrator.tenant("alice").await.ok()??;
        if alice.state == "awake" {
            stack.orchestrator.sleep("alice").await.ok()?;
        }
        (alice.wakes > ROUNDS).then_some(())
    })
    .await?;
    let outcome = load.finish().await;
    println!("{ROUNDS} sleeps: {outcome:?}");
    ensure!(outcome.errors == 0, "{outcome:?}");
    ensure!(outcome.requests >= ROUNDS * REQUESTS_PER_ROUND, "hardly any load: {outcome:?}");
    Ok(())
}

/// Writes with every even request and reads the text back with the next one, in a scroll of the
/// client's own.
async fn write_then_read(alice: Client, client: u64, number: u64) -> Result<Response> {
    let scroll = format!("p=index&c=1.1.1/1.1.1/1.1.{}", client + 1);
    let text = format!("text-{}", number / 2);
    if number.is_multiple_of(2) {
        return alice.get(&format!("/api/v2/update?{scroll}&s={text}")).await;
    }
    let response = alice.get(&format!("/api/v2/select?{scroll}")).await?;
    ensure!(!response.ok() || response.text() == text, "{:?}, not {text}", response.text());
    Ok(response)
}

async fn idle_tenant_dozes_then_sleeps_and_keeps_data(stack: Arc<Stack>) -> Result<()> {
    let alice = stack.tenant("alice")?;
    alice.update("index", "kept").await?.expect_ok()?;
    for state in ["dozing", "asleep"] {
        until(format!("alice to be {state}"), PATIENCE, || async {
            (stack.orchestrator.state_of("alice").await.ok()?? == state).then_some(())
        })
        .await?;
    }
    let response = alice.select("index").await?.expect_text(200, "kept")?;
    let timing = response.header("server-timing");
    let reported = timing.contains("desc=start") || timing.contains("desc=create");
    ensure!(reported, "Server-Timing does not report the wake: {timing}");
    Ok(())
}
