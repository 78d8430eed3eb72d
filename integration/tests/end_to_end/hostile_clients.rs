//! Clients that try to take the gateway from all others. While they attack, a probe on open and new
//! connections must get 200 for each request, and Envoy's memory stays bounded.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use experiments::attack::stalled_streams::{StalledStreams, Withheld};
use experiments::attack::{Credentials, watch};
use harness::client::TOC;
use harness::{Http, Stack, StackBuilder, until};
use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::suite::{Case, On, case};

/// Connections of the attack on Envoy's memory.
const CONNECTIONS: usize = 400;
/// Bound on Envoy's allocated memory during that attack.
const MEMORY_BYTES: u64 = 1_000_000_000;
/// Duration of an attack: longer than it takes to connect and to fill Envoy's memory.
const ATTACK: Duration = Duration::from_secs(10);

fn victim_and_attacker() -> StackBuilder {
    Stack::builder().tenant("victim").tenant_in_tier("mallory", "free")
}

/// All requests meet in one VM.
fn one_worker() -> StackBuilder {
    Stack::builder().workers(1).tenant("victim")
}

pub(crate) fn cases() -> Vec<Case> {
    let own = On::Own(victim_and_attacker);
    vec![
        case!(own, unread_responses_leave_memory_to_others).exclusive(),
        case!(own, unended_requests_leave_memory_to_others).exclusive(),
        case!(On::Own(one_worker), thousands_that_wait_together_each_get_a_response),
    ]
}

/// Holds streams with each kind of credentials and checks the bound.
async fn hold(stack: &Stack, withheld: Withheld) -> Result<()> {
    let valid = Credentials::Valid(stack.key("mallory")?.to_owned());
    let attack = StalledStreams {
        connections: CONNECTIONS,
        withheld,
        credentials: vec![Credentials::Absent, Credentials::Invented, valid],
        path: "/api/v2/update?p=x&c=1.1.1/1.1.1/1.1.1".to_owned(),
        duration: ATTACK,
    };
    let (sent, seen) = watch::during(stack, "victim", attack.run(stack)).await?;
    println!("{withheld:?} withheld, {sent:?}: {seen}");
    ensure!(sent.connections >= CONNECTIONS as u64, "the attack did not connect: {sent:?}");
    seen.check(MEMORY_BYTES)
}

async fn unread_responses_leave_memory_to_others(stack: Arc<Stack>) -> Result<()> {
    hold(&stack, Withheld::Window).await
}

async fn unended_requests_leave_memory_to_others(stack: Arc<Stack>) -> Result<()> {
    hold(&stack, Withheld::Body).await?;
    hold(&stack, Withheld::Head).await
}

/// Requests that wait for the same verdict, more than V8's stack has room for if each is refused
/// inside the one before.
const WAITING: u64 = 2_000;
/// Requests on one HTTP/2 connection.
const STREAMS: u64 = 32;
/// Deadline for conditions without a promised time.
const PATIENCE: Duration = Duration::from_secs(10);

async fn thousands_that_wait_together_each_get_a_response(stack: Arc<Stack>) -> Result<()> {
    let victim = stack.tenant("victim")?;
    victim.get(TOC).await?.expect_ok()?;
    let relay = stack.relay.service().process()?;
    relay.signal(Signal::STOP);
    let received = "http.https.downstream_rq_total";
    let before = stack.envoy.stat(received).await?;
    let mut requests = JoinSet::new();
    for _ in 0..WAITING / STREAMS {
        let client = stack.client(Http::Two)?.key("pmb-v1-00000000000000000000000000000000");
        for _ in 0..STREAMS {
            let client = client.clone();
            requests.spawn(async move { client.get(TOC).await });
        }
    }
    // The relay's time-out refuses all of them in one callback.
    while let Some(response) = requests.join_next().await {
        response??.expect_problem(503, "relay-unavailable")?;
    }
    relay.signal(Signal::CONT);
    let sent = stack.envoy.stat(received).await? - before;
    ensure!(sent >= WAITING / STREAMS * STREAMS, "only {sent} requests arrived");
    until("verdicts again", PATIENCE, || async { victim.get(TOC).await.ok()?.ok().then_some(()) })
        .await
        .context("the filter does not serve any more")
}
