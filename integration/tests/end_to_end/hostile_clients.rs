//! Clients that try to take the gateway from all others. While they attack, a probe on open and new
//! connections must get 200 for each request, and Envoy's memory stays bounded.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use experiments::attack::stalled_streams::{StalledStreams, Withheld};
use experiments::attack::{Credentials, idle_connections, watch};
use harness::client::TOC;
use harness::client::raw::Raw;
use harness::{Http, Stack, StackBuilder, until};
use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio::time::timeout;

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

/// Connections that this Envoy accepts at most.
const FEW: usize = 200;

fn few_connections() -> StackBuilder {
    let [from, to] =
        ["max_active_downstream_connections: 10000", "max_active_downstream_connections: 200"];
    victim_and_attacker().envoy_change(from, to)
}

/// An Envoy that refuses every request for want of memory.
fn overloaded() -> StackBuilder {
    let [from, to] = ["threshold: { value: 0.95 }", "threshold: { value: 0.001 }"];
    victim_and_attacker().envoy_change(from, to)
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
        case!(own, refused_requests_are_logged_in_samples),
        case!(On::Own(overloaded), overload_is_a_problem_document),
        case!(own, lenient_http1_is_refused_or_harmless),
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

/// The address of the attacker.
const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// Bound on the time in which another address gets a response.
const OTHERS_CONNECT: Duration = Duration::from_secs(1);

async fn one_address_leaves_connections_to_others(stack: Arc<Stack>) -> Result<()> {
    let (_firewall, limits) = idle_connections::firewall(&stack)?;
    idle_connections::other_client(&stack, "victim")?.get(TOC).await?.expect_ok()?;
    let most = limits.open + 200;
    let connections = idle_connections::open(&stack, ATTACKER, most).await;
    println!("{ATTACKER} holds {} connections", connections.len());
    ensure!(connections.len() <= limits.open, "{} connections are open", connections.len());
    ensure!(connections.len() > limits.open / 2, "only {} connections", connections.len());
    let other = idle_connections::other_client(&stack, "victim")?;
    let response = timeout(OTHERS_CONNECT, other.get(TOC)).await;
    response.context("another address waits")??.expect_ok()?;
    Ok(())
}

/// Without the firewall, an address can take all connections for this time.
const IDLE_UNDER_PRESSURE: Duration = Duration::from_secs(8);

async fn idle_connections_end_before_none_is_left(stack: Arc<Stack>) -> Result<()> {
    let connections = idle_connections::open(&stack, ATTACKER, FEW).await;
    ensure!(connections.len() > FEW / 2, "only {} connections", connections.len());
    until("another client to be served", IDLE_UNDER_PRESSURE, || async {
        let other = idle_connections::other_client(&stack, "victim").ok()?;
        timeout(OTHERS_CONNECT, other.get(TOC)).await.ok()?.ok()?.ok().then_some(())
    })
    .await?;
    until("idle connections to end", IDLE_UNDER_PRESSURE, || async {
        let ended = stack.envoy.stat("http.https.downstream_cx_idle_timeout").await.ok()?;
        (ended > FEW as u64 / 4).then_some(())
    })
    .await
}

/// Refused requests of the test of the log; one in a hundred is logged.
const REFUSED: usize = 2_000;
/// Bound on the log lines of that many refused requests, exceeded once in a million runs.
const LOGGED_MAX: usize = 48;

async fn refused_requests_are_logged_in_samples(stack: Arc<Stack>) -> Result<()> {
    let refused = stack.client(Http::Two)?;
    let before = stack.envoy.stat("http.https.downstream_rq_4xx").await?;
    for _ in 0..REFUSED {
        let status = refused.get("/api/v2/refused").await?.status;
        ensure!(status == 401 || status == 429, "status {status}");
    }
    let victim = stack.tenant("victim")?;
    let mut answered = Vec::new();
    for _ in 0..20 {
        let response = victim.get(TOC).await?.expect_ok()?;
        answered.push(response.header("x-request-id").to_owned());
    }
    until("all responses to be in the access log", PATIENCE, || async {
        let log = stack.envoy.log().ok()?;
        answered.iter().all(|id| log.contains(id)).then_some(())
    })
    .await?;
    let log = stack.envoy.log()?;
    let logged = log.lines().filter(|line| line.contains("/api/v2/refused")).count();
    println!("{logged} of {REFUSED} refused requests are in the log");
    ensure!(logged <= LOGGED_MAX, "{logged} of {REFUSED} refused requests are logged");
    let counted = stack.envoy.stat("http.https.downstream_rq_4xx").await? - before;
    ensure!(counted >= REFUSED as u64, "only {counted} refused requests are counted");
    Ok(())
}

async fn overload_is_a_problem_document(stack: Arc<Stack>) -> Result<()> {
    let victim = stack.tenant("victim")?;
    let problem = until("Envoy to refuse requests", PATIENCE, || async {
        victim.get(TOC).await.ok()?.expect_problem(503, "overloaded").ok()
    })
    .await?;
    ensure!(problem.retry_after_s == Some(5), "{problem:?}");
    Ok(())
}

/// A way to write a request that the standard forbids or that other servers read otherwise.
struct Lenient {
    name: &'static str,
    /// The request; `KEY` stands for the key.
    request: &'static str,
    /// Envoy has no setting against it and reads it as the plain request.
    harmless: bool,
}

const LENIENT: [Lenient; 9] = [
    Lenient {
        name: "two Host headers",
        request: "GET /api/v2/toc?p=x HTTP/1.1\r\nhost: x\r\nhost: y\r\nauthorization: KEY\r\n",
        harmless: false,
    },
    Lenient {
        name: "the same Host twice",
        request: "GET /api/v2/toc?p=x HTTP/1.1\r\nhost: x\r\nhost: x\r\nauthorization: KEY\r\n",
        harmless: false,
    },
    Lenient {
        name: "space before a colon",
        request: "GET /api/v2/toc?p=x HTTP/1.1\r\nhost : x\r\nauthorization: KEY\r\n",
        harmless: false,
    },
    Lenient {
        name: "transfer coding that is not chunked",
        request: "POST /api/v2/update?p=x&c=1.1.1/1.1.1/1.1.1 HTTP/1.1\r\nhost: x\r\n\
                  authorization: KEY\r\ntransfer-encoding: identity\r\n",
        harmless: false,
    },
    Lenient {
        name: "bare CR before a name",
        request: "GET /api/v2/toc?p=x HTTP/1.1\r\nhost: x\r\n\rx-a: b\r\nauthorization: KEY\r\n",
        harmless: false,
    },
    Lenient {
        name: "bare LF",
        request: "GET /api/v2/toc?p=x HTTP/1.1\nhost: x\nauthorization: KEY\r\n",
        harmless: true,
    },
    Lenient {
        name: "folded line",
        request: "GET /api/v2/toc?p=x HTTP/1.1\r\nhost: x\r\nx-a: a\r\n b\r\nauthorization: KEY\r\n",
        harmless: true,
    },
    Lenient {
        name: "bare CR in a value",
        request: "GET /api/v2/toc?p=x HTTP/1.1\r\nhost: x\r\nx-a: a\rb\r\nauthorization: KEY\r\n",
        harmless: true,
    },
    Lenient {
        name: "tab in the request line",
        request: "GET\t/api/v2/toc?p=x\tHTTP/1.1\r\nhost: x\r\nauthorization: KEY\r\n",
        harmless: true,
    },
];

async fn lenient_http1_is_refused_or_harmless(stack: Arc<Stack>) -> Result<()> {
    let victim = stack.tenant("victim")?;
    let plain = victim.get("/api/v2/toc?p=x").await?.expect_ok()?.text();
    for Lenient { name, request, harmless } in LENIENT {
        let request = request.replace("KEY", stack.key("victim")?);
        let request = format!("{request}connection: close\r\n\r\n");
        let mut raw = Raw::connect(stack.listen.https, &stack.certs.ca()).await?;
        let response = raw.request(&request).await?;
        if harmless {
            ensure!(response.starts_with("HTTP/1.1 200 "), "{name}: {response}");
            ensure!(response.ends_with(&plain), "{name}: {response}");
        } else {
            ensure!(response.contains("application/problem+json"), "{name}: {response}");
            let refused = ["HTTP/1.1 400 ", "HTTP/1.1 501 "];
            ensure!(refused.iter().any(|line| response.starts_with(line)), "{name}: {response}");
        }
    }
    Ok(())
}
