//! Clients that try to take the gateway from all others. While they attack, a probe on open and new
//! connections must get 200 for each request, and Envoy's memory stays bounded.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use experiments::attack::stalled_streams::Withheld;
use experiments::attack::{idle_connections, watch};
use experiments::drill::hostile::{self, CONNECTIONS, MEMORY_BYTES, OTHERS_CONNECT};
use harness::client::TOC;
use harness::{Http, Stack, StackBuilder, until};
use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::suite::{Case, On, case};

fn victim_and_attacker() -> StackBuilder {
    Stack::builder().tenant("victim").tenant_in_tier("mallory", "free")
}

/// Connections that this Envoy accepts at most.
const FEW: usize = 200;

fn few_connections() -> StackBuilder {
    victim_and_attacker().envoy_change(
        "max_active_downstream_connections: 10000",
        "max_active_downstream_connections: 200",
    )
}

/// An Envoy that refuses every request for want of memory.
fn overloaded() -> StackBuilder {
    victim_and_attacker().envoy_change("threshold: { value: 0.95 }", "threshold: { value: 0.001 }")
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
        case!(own, one_address_leaves_connections_to_others).exclusive(),
        case!(On::Own(few_connections), idle_connections_end_before_none_is_left).exclusive(),
        case!(own, refused_requests_are_logged_in_samples).exclusive(),
        case!(On::Own(overloaded), overload_is_a_problem_document),
        case!(On::Own(one_worker), thousands_that_wait_together_each_get_a_response),
    ]
}

/// Holds streams with each kind of credentials and checks the bound.
async fn hold(stack: &Stack, withheld: Withheld) -> Result<()> {
    let attack = hostile::stalled_streams(stack, withheld)?;
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

async fn one_address_leaves_connections_to_others(stack: Arc<Stack>) -> Result<()> {
    let shared = hostile::hold_connections(&stack).await?;
    println!("{shared:?}");
    ensure!(shared.held <= shared.allowed, "the address got more: {shared:?}");
    ensure!(shared.held > shared.allowed / 2, "the attack did not connect: {shared:?}");
    Ok(())
}

/// Without the firewall, an address can take all connections for this time.
const IDLE_UNDER_PRESSURE: Duration = Duration::from_secs(8);

async fn idle_connections_end_before_none_is_left(stack: Arc<Stack>) -> Result<()> {
    let held = idle_connections::open(&stack, idle_connections::ATTACKER, FEW).await;
    ensure!(held.len() > FEW / 2, "only {} connections", held.len());
    until("another client to be served", IDLE_UNDER_PRESSURE, || async {
        let other = idle_connections::other_client(&stack, "victim").ok()?;
        timeout(OTHERS_CONNECT, other.get(TOC)).await.ok()?.ok()?.ok().then_some(())
    })
    .await?;
    let ended = stack.envoy.stat("http.https.downstream_cx_idle_timeout").await?;
    ensure!(ended > 0, "the other client was served although no idle connection ended");
    Ok(())
}

/// Refused requests of each kind in the test of the log; one in a hundred is logged.
const REFUSED: usize = 2_000;
/// Bound on the lines that 2,000 refused requests add to the log; 20 are expected, and more than this
/// come once in a million runs.
const LOGGED_MAX: usize = 48;
/// Bound on the bytes that a refused request adds to the log, on average; a line has 300.
const LOGGED_BYTES: usize = 10;
/// Requests that a part fails on.
const FAILED: usize = 20;
/// A path that stands out in the log.
const REFUSED_PATH: &str = "/api/v2/refused";

async fn refused_requests_are_logged_in_samples(stack: Arc<Stack>) -> Result<()> {
    let before = stack.envoy.stat("http.https.downstream_rq_4xx").await?;
    let victim = stack.tenant("victim")?;
    let keyless = stack.client(Http::Two)?;
    let invented = stack.client(Http::Two)?.key("pmb-v1-00000000000000000000000000000000");
    let logged_bytes = stack.envoy.log()?.len();
    for client in [&keyless, &invented] {
        for _ in 0..REFUSED {
            let status = client.get(REFUSED_PATH).await?.status;
            ensure!(status == 401 || status == 429, "status {status}");
        }
    }
    let mut told = Vec::new();
    for _ in 0..FAILED {
        let response = victim.get(TOC).await?.expect_ok()?;
        told.push(response.header("x-request-id").to_owned());
    }
    // A key that the relay has not judged yet, while the relay does not respond.
    let relay = stack.relay.service().process()?;
    relay.signal(Signal::STOP);
    let mut failed = JoinSet::new();
    for _ in 0..FAILED {
        let client = stack.client(Http::Two)?.key("pmb-v1-00000000000000000000000000000001");
        failed.spawn(async move { client.get(TOC).await });
    }
    while let Some(response) = failed.join_next().await {
        let response = response??;
        ensure!(response.status == 503, "{response:?}");
        told.push(response.header("x-request-id").to_owned());
    }
    relay.signal(Signal::CONT);
    until("all responses and failures to be in the access log", PATIENCE, || async {
        let log = stack.envoy.log().ok()?;
        told.iter().all(|id| log.contains(id)).then_some(())
    })
    .await?;
    let log = stack.envoy.log()?;
    let sampled: Vec<&str> =
        log[logged_bytes..].lines().filter(|line| line.contains(REFUSED_PATH)).collect();
    let bytes: usize = sampled.iter().map(|line| line.len() + 1).sum();
    let refused = 2 * REFUSED;
    println!("{} of {refused} refused requests are logged, {bytes} bytes", sampled.len());
    ensure!(bytes / refused < LOGGED_BYTES, "{bytes} bytes for {refused} refused requests");
    ensure!(sampled.len() <= 2 * LOGGED_MAX, "{} of {refused} are logged", sampled.len());
    let counted = stack.envoy.stat("http.https.downstream_rq_4xx").await? - before;
    ensure!(counted >= refused as u64, "only {counted} refused requests are counted");
    Ok(())
}

async fn overload_is_a_problem_document(stack: Arc<Stack>) -> Result<()> {
    let victim = stack.tenant("victim")?;
    let response = until("Envoy to refuse requests", PATIENCE, || async {
        victim.get(TOC).await.ok().filter(|response| response.status == 503)
    })
    .await?;
    for name in ["x-request-id", "server-timing", "strict-transport-security"] {
        ensure!(!response.header(name).is_empty(), "no {name}: {response:?}");
    }
    let problem = response.expect_problem(503, "overloaded")?;
    ensure!(problem.retry_after_s == Some(5), "{problem:?}");
    Ok(())
}
