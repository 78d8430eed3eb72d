//! SQ receives no more than it can serve: a bounded number of requests at a time, each complete.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use experiments::proof;
use harness::client::TOC;
use harness::client::raw::Raw;
use harness::host::docker;
use harness::host::processes;
use harness::{Client, Http, Load, Response, Runtime, Stack, StackBuilder, until};
use rustix::process::Signal;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::refusals::check_response;
use crate::suite::{Case, On, case};

const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of a body that 64 MiB of memory cannot hold, and that Envoy forwards.
const TOO_LARGE: usize = 45_000_000;
/// Bytes of a body that 64 MiB of memory can hold.
const LARGE: usize = 1_900_000;
/// Bytes of the largest body that the default tier allows.
const UPLOAD: usize = 2_000_000;
/// Clients that disconnect in the middle of a response.
const ABORTED: usize = 30;
/// Requests that SQ 0.6.0 serves at the same time, by the tier's default.
const CONCURRENT: usize = 4;
/// Concurrent requests that one connection may carry.
const STREAMS: usize = 32;
/// Requests that wait for SQ, per tenant, as the orchestrator configures Envoy.
const QUEUE: usize = 1_024;

fn one_worker() -> StackBuilder {
    // Envoy always allows each worker one connection, so the bound is exact with one worker.
    Stack::builder().workers(1).tenant("alice")
}

fn one_worker_old_sq() -> StackBuilder {
    one_worker().sq("0.5.0")
}

fn old_sq() -> StackBuilder {
    Stack::builder().sq("0.5.0").tenant("alice")
}

fn neighbours() -> StackBuilder {
    Stack::builder()
        .tier(proof::tier("greedy", 64))
        .tenant_in_tier("greedy", "greedy")
        .tenant("bob")
}

fn two_tenants() -> StackBuilder {
    one_worker().tenant("bob")
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(On::Own(one_worker), new_sq_serves_four_requests_at_once),
        case!(On::Own(one_worker_old_sq), old_sq_serves_one_request_at_a_time),
        case!(On::Own(one_worker), requests_beyond_the_queue_are_refused_as_busy),
        case!(On::Own(two_tenants), uploads_of_one_tenant_leave_room_for_others),
        case!(On::Own(one_worker), requests_that_wait_too_long_are_refused),
        case!(On::Own(neighbours), fatal_read_is_sent_to_sq_only_twice),
        case!(On::Own(old_sq), only_whole_requests_reach_old_sq),
        case!(On::Own(old_sq), aborted_downloads_delay_old_sq_only_briefly),
        case!(On::Own(neighbours), tenant_out_of_memory_recovers_without_disturbing_others)
            .exclusive(),
    ]
}

async fn new_sq_serves_four_requests_at_once(stack: Arc<Stack>) -> Result<()> {
    let most = most_connections(&stack).await?;
    ensure!((2..=CONCURRENT as u64).contains(&most), "{most} requests at once");
    Ok(())
}

async fn old_sq_serves_one_request_at_a_time(stack: Arc<Stack>) -> Result<()> {
    let most = most_connections(&stack).await?;
    ensure!(most == 1, "{most} requests at once");
    Ok(())
}

/// The most connections that Envoy had to SQ while twenty clients read a large phext.
async fn most_connections(stack: &Stack) -> Result<u64> {
    let client = stack.tenant("alice")?;
    for n in 1..=4 {
        let path = format!("/api/v2/update?p=index&c=1.1.1/1.1.1/1.1.{n}");
        client.post(&path, "x".repeat(500_000)).await?.expect_ok()?;
    }
    let load = Load::start(20, Duration::ZERO, move |_, _| {
        let client = client.clone();
        async move { client.get("/api/v2/get?p=index").await }
    });
    let enough = load.requests() + 400;
    until("the load", PATIENCE, || async { (load.requests() > 20).then_some(()) }).await?;
    let mut most = 0;
    while load.requests() < enough {
        most = most.max(connections(stack).await?);
    }
    let outcome = load.finish().await;
    ensure!(outcome.errors == 0, "{outcome:?}");
    Ok(most)
}

/// The connections that Envoy has to alice's SQ now.
async fn connections(stack: &Stack) -> Result<u64> {
    let text = stack.envoy.admin().get("/clusters").await?.text();
    let lines = text.lines().filter(|line| line.starts_with("sq/alice::"));
    Ok(lines.filter_map(|line| line.split_once("::cx_active::")?.1.parse::<u64>().ok()).sum())
}

/// Suspends alice's SQ.
fn suspend_sq(stack: &Stack) -> Result<()> {
    signal_sq(stack, Signal::STOP, "pause")
}

/// Continues alice's SQ.
fn continue_sq(stack: &Stack) -> Result<()> {
    signal_sq(stack, Signal::CONT, "unpause")
}

fn signal_sq(stack: &Stack, signal: Signal, docker_command: &str) -> Result<()> {
    match stack.runtime {
        Runtime::Process => {
            for pid in stack.sq_pids() {
                processes::signal(pid, signal);
            }
        }
        Runtime::Docker => {
            for id in docker::containers(&stack.tenant_labels("alice"))? {
                docker::run(&[docker_command, &id])?;
            }
        }
    }
    Ok(())
}

async fn requests_beyond_the_queue_are_refused_as_busy(stack: Arc<Stack>) -> Result<()> {
    const REQUESTS: usize = 1_200;
    stack.tenant("alice")?.update("index", "text").await?.expect_ok()?;
    suspend_sq(&stack)?;
    let mut clients = Vec::new();
    for _ in 0..REQUESTS.div_ceil(STREAMS) {
        clients.push(stack.client(Http::Two)?.key(stack.key("alice")?));
    }
    let mut requests = JoinSet::new();
    for n in 0..REQUESTS {
        let client = clients[n % clients.len()].clone();
        requests.spawn(async move { client.select("index").await });
    }
    let mut served = 0;
    let mut busy = 0;
    let mut suspended = true;
    while let Some(response) = requests.join_next().await {
        let response = response??;
        match response.status {
            200 => served += 1,
            503 => {
                busy += 1;
                check_response(&response, include_str!("refusals/database-busy.txt"))?;
            }
            other => bail!("{other} {}", response.text()),
        }
        // While SQ is suspended, only the requests that found the queue full get a response.
        if suspended {
            ensure!(busy == 1, "SQ responds although it is suspended");
            continue_sq(&stack)?;
            suspended = false;
        }
    }
    ensure!(busy > 0 && served >= QUEUE, "{served} served, {busy} refused");
    ensure!(busy <= REQUESTS - QUEUE, "{busy} of {REQUESTS} refused");
    Ok(())
}

async fn requests_that_wait_too_long_are_refused(stack: Arc<Stack>) -> Result<()> {
    stack.tenant("alice")?.update("index", "text").await?.expect_ok()?;
    suspend_sq(&stack)?;
    let alice = stack.client(Http::Two)?.key(stack.key("alice")?);
    let mut requests = JoinSet::new();
    for n in 0..STREAMS {
        let client = alice.clone();
        // Writes, because a write that has reached SQ must not be retried.
        requests.spawn(async move { client.update("index", &n.to_string()).await });
    }
    let mut busy = Vec::new();
    let mut timed_out = 0;
    while let Some(response) = requests.join_next().await {
        let response = response??;
        match response.status {
            503 => busy.push(response),
            504 if response.text().contains("database-timeout") => timed_out += 1,
            other => bail!("{other} {}", response.text()),
        }
    }
    continue_sq(&stack)?;
    // The requests in SQ end first, and a few that wait then reach SQ at the last moment.
    println!("{timed_out} requests timed out in SQ, {} before they reached it", busy.len());
    ensure!(timed_out >= CONCURRENT, "{timed_out} timed out");
    let problem = busy.first().context("none was refused")?.expect_problem(503, "database-busy")?;
    ensure!(problem.retry_after_s == Some(1), "{problem:?}");
    Ok(())
}

async fn fatal_read_is_sent_to_sq_only_twice(stack: Arc<Stack>) -> Result<()> {
    let greedy = stack.tenant("greedy")?;
    greedy.update("index", "text").await?.expect_ok()?;
    // Written past the gateway: reading this phext exceeds the memory limit of 64 MiB.
    let file = stack.orchestrator.data().join("greedy/heavy.phext");
    std::fs::write(file, "x".repeat(TOO_LARGE))?;
    greedy.get("/api/v2/toc?p=heavy").await?.expect_status(503)?;
    until_reads(&greedy, "text").await?;
    let status = stack.orchestrator.tenant_status("greedy").await?;
    ensure!(status.deaths == 2, "{status:?}");
    Ok(())
}

/// Waits until the client reads `text` in the first scroll of `index`.
async fn until_reads(client: &Client, text: &str) -> Result<()> {
    until(format!("a read of {text:?}"), PATIENCE, || async {
        let response = client.select("index").await.ok()?;
        (response.text() == text).then_some(())
    })
    .await
}

async fn only_whole_requests_reach_old_sq(stack: Arc<Stack>) -> Result<()> {
    let alice = stack.tenant("alice")?;
    alice.update("index", "text").await?.expect_ok()?;
    let port = stack.listen.https;
    let ca = stack.certs.ca();
    let head = format!(
        "POST /api/v2/update?p=index&c=1.1.1/1.1.1/1.1.1 HTTP/1.1\r\nhost: x\r\n\
         authorization: {}\r\ncontent-length: 100\r\n\r\n",
        stack.key("alice")?
    );
    let mut idle = Vec::new();
    for _ in 0..10 {
        // A port scan, and the start of a TLS handshake.
        drop(TcpStream::connect(("127.0.0.1", port)).await?);
        let mut handshake = TcpStream::connect(("127.0.0.1", port)).await?;
        handshake.write_all(b"\x16\x03\x01").await?;
        drop(handshake);
        // A connection without a request, then parts of a head and of a body: each on a connection
        // that is closed and on one that stays open.
        idle.push(Raw::connect(port, &ca).await?);
        for part in [&head[..40], head.as_str(), &format!("{head}half a body")] {
            let mut closed = Raw::connect(port, &ca).await?;
            closed.write(part.as_bytes()).await?;
            drop(closed);
            let mut open = Raw::connect(port, &ca).await?;
            open.write(part.as_bytes()).await?;
            idle.push(open);
        }
        alice.select("index").await?.expect_text(200, "text")?;
    }
    let status = stack.orchestrator.tenant_status("alice").await?;
    ensure!(status.deaths == 0, "SQ died: {status:?}");
    Ok(())
}

async fn aborted_downloads_delay_old_sq_only_briefly(stack: Arc<Stack>) -> Result<()> {
    let alice = stack.tenant("alice")?;
    alice.update("index", "text").await?.expect_ok()?;
    for n in 1..=2 {
        let path = format!("/api/v2/update?p=large&c=1.1.1/1.1.1/1.1.{n}");
        alice.post(&path, "x".repeat(LARGE)).await?.expect_ok()?;
    }
    let head = format!(
        "GET /api/v2/get?p=large HTTP/1.1\r\nhost: x\r\nauthorization: {}\r\n\r\n",
        stack.key("alice")?
    );
    let mut longest = Duration::ZERO;
    for n in 0..ABORTED {
        let mut download = Raw::connect(stack.listen.https, &stack.certs.ca()).await?;
        download.write(head.as_bytes()).await?;
        if n % 2 == 0 {
            download.read_some(100).await?;
        }
        drop(download);
        let aborted = Instant::now();
        until_reads(&alice, "text").await?;
        longest = longest.max(aborted.elapsed());
    }
    let status = stack.orchestrator.tenant_status("alice").await?;
    println!("{ABORTED} aborted: {} deaths, longest wait {longest:.1?}", status.deaths);
    // SQ 0.5.0 may panic on a closed connection: a back-off of one second, then a start.
    ensure!(longest < Duration::from_secs(4), "{longest:?}");
    Ok(())
}

async fn tenant_out_of_memory_recovers_without_disturbing_others(stack: Arc<Stack>) -> Result<()> {
    let greedy = stack.tenant("greedy")?;
    let bob = stack.tenant("bob")?;
    greedy.update("index", "text").await?.expect_ok()?;
    bob.update("index", "text").await?.expect_ok()?;
    let load = Load::start(2, Duration::from_millis(10), move |_, _| {
        let bob = bob.clone();
        async move { bob.select("index").await }
    });
    let path = "/api/v2/update?p=other&c=1.1.1/1.1.1/1.1.1";
    let response = greedy.post(path, vec![b'x'; TOO_LARGE]).await?;
    let died = Instant::now();
    let status = response.status;
    ensure!(status >= 500, "64 MiB were enough: {status} {}", response.text());
    until_reads(&greedy, "text").await?;
    let recovery = died.elapsed();
    println!("out of memory on {}: {} ms", stack.runtime.name(), recovery.as_millis());
    ensure!(recovery < Duration::from_secs(1), "it took {recovery:?}");
    let outcome = load.finish().await;
    ensure!(outcome.errors == 0, "bob's requests failed: {outcome:?}");
    let status = stack.orchestrator.tenant_status("greedy").await?;
    let cause = status.last_death.clone().unwrap_or_default().to_lowercase();
    ensure!(cause.contains("memory"), "{status:?}");
    let metrics = stack.orchestrator.metrics().get("/metrics").await?.text();
    let deaths = "sq_orchestrator_deaths_total{kind=\"out_of_memory\"} 1";
    ensure!(metrics.contains(deaths), "{metrics}");
    Ok(())
}

/// Starts an upload of the maximum size and sends only its first byte.
async fn start_upload(stack: &Stack, n: u64) -> Result<Raw> {
    let mut upload = Raw::connect(stack.listen.https, &stack.certs.ca()).await?;
    let head = format!(
        "POST /api/v2/update?p=p{n}&c=1.1.1/1.1.1/1.1.1 HTTP/1.1\r\nhost: sq\r\nconnection: close\r\n\
         authorization: Bearer {}\r\ncontent-length: {UPLOAD}\r\n\r\nx",
        stack.key("alice")?
    );
    upload.write(head.as_bytes()).await?;
    Ok(upload)
}

async fn upload(client: &Client) -> Result<Response> {
    let path = "/api/v2/update?p=index&c=1.1.1/1.1.1/1.1.1";
    client.post(path, "x".repeat(UPLOAD)).await
}

async fn uploads_of_one_tenant_leave_room_for_others(stack: Arc<Stack>) -> Result<()> {
    const UPLOADS: u64 = 20;
    /// Twice the uploads that a tenant's SQ takes at the same time: the body budget.
    const ACCEPTED: u64 = 8;
    let alice = stack.tenant("alice")?;
    let bob = stack.tenant("bob")?;
    alice.get(TOC).await?.expect_ok()?;
    let refused = || stack.envoy.stat("wasmcustom.sq_gate.refused.database-busy");
    let mut uploads = Vec::new();
    for n in 0..UPLOADS {
        uploads.push(start_upload(&stack, n).await?);
    }
    until("the uploads beyond the budget to be refused", PATIENCE, || async {
        (refused().await.ok()? >= UPLOADS - ACCEPTED).then_some(())
    })
    .await?;
    let response = uploads.pop().context("the last upload")?.read_all().await?;
    ensure!(response.contains(" 503 ") && response.contains("database-busy"), "{response}");
    ensure!(response.contains("retry-after: 1"), "{response}");
    ensure!(refused().await? == UPLOADS - ACCEPTED, "{} were refused", refused().await?);
    bob.get(TOC).await?.expect_ok()?;
    alice.get(TOC).await?.expect_ok()?;
    upload(&bob).await?.expect_ok()?;
    // The memory of an upload is free again when its client disconnects.
    drop(uploads);
    until("room for another upload", PATIENCE, || async {
        upload(&alice).await.ok()?.ok().then_some(())
    })
    .await
}
