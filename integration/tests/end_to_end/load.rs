//! SQ gets no more than it can bear: so many requests at once, each of them whole.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use experiments::proof;
use harness::client::raw::Raw;
use harness::host::docker;
use harness::host::processes;
use harness::{Client, Load, Runtime, Stack, StackBuilder, until};
use rustix::process::Signal;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::suite::{Case, On, case};

const PATIENCE: Duration = Duration::from_secs(30);
const AT: &str = "p=index&c=1.1.1/1.1.1/1.1.1";
/// A body that 64 MiB of memory can't hold, within what Envoy takes.
const TOO_LARGE: usize = 45_000_000;
/// Bytes of a body within what 64 MiB of memory allow.
const LARGE: usize = 1_900_000;
/// Clients that leave in the middle of an answer.
const LEAVERS: usize = 30;
/// Requests of a tenant inside SQ 0.6.0, by the tier's default.
const PLACES: usize = 4;
/// Requests at once that one connection may carry.
const STREAMS: usize = 100;
/// As the orchestrator has it, per tenant.
const QUEUE: usize = 1_024;

fn one_worker() -> StackBuilder {
    // Envoy allows each worker a connection in any case; with one the bound is exact.
    Stack::builder().workers(1).tenant("alice")
}

fn one_worker_0_5_0() -> StackBuilder {
    one_worker().sq("0.5.0")
}

fn old() -> StackBuilder {
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
        case!(On::Own(one_worker), sq_0_6_0_works_on_four_requests_at_once_and_the_rest_waits),
        case!(On::Own(one_worker_0_5_0), sq_0_5_0_works_on_one_request_at_a_time),
        case!(On::Own(one_worker), more_than_the_queue_holds_are_told_to_come_again),
        case!(On::Own(two_tenants), uploads_of_one_tenant_leave_envoy_room_for_the_others),
        case!(On::Own(one_worker), who_gets_no_place_in_time_is_told_to_come_again),
        case!(On::Own(neighbours), a_read_that_kills_sq_is_sent_twice_and_then_no_more),
        case!(On::Own(old), nothing_but_whole_requests_reaches_sq_0_5_0),
        case!(On::Own(old), clients_that_leave_large_answers_cost_sq_0_5_0_a_moment_at_most),
        case!(On::Own(neighbours), a_tenant_out_of_memory_is_back_at_once_and_disturbs_nobody)
            .exclusive(),
    ]
}

async fn sq_0_6_0_works_on_four_requests_at_once_and_the_rest_waits(
    stack: Arc<Stack>,
) -> Result<()> {
    let most = most_at_once(&stack).await?;
    ensure!((2..=4).contains(&most), "{most} at once");
    Ok(())
}

async fn sq_0_5_0_works_on_one_request_at_a_time(stack: Arc<Stack>) -> Result<()> {
    let most = most_at_once(&stack).await?;
    ensure!(most == 1, "{most} at once");
    Ok(())
}

/// The most connections to SQ that Envoy had while twenty clients asked for a large phext.
async fn most_at_once(stack: &Stack) -> Result<u64> {
    let client = stack.tenant("alice")?;
    for n in 1..=4 {
        let path = format!("/api/v2/update?p=index&c=1.1.1/1.1.1/1.1.{n}");
        client.post(&path, "x".repeat(500_000)).await?.expect_ok()?;
    }
    let load = Load::start(20, Duration::ZERO, move |_, _| {
        let client = client.clone();
        async move { client.get("/api/v2/get?p=index").await }
    });
    let mut most = 0;
    let enough = load.requests() + 400;
    until("the load", PATIENCE, || async { (load.requests() > 20).then_some(()) }).await?;
    while load.requests() < enough {
        most = most.max(connections(stack).await?);
    }
    let seen = load.finish().await;
    ensure!(seen.errors == 0, "{seen:?}");
    Ok(most)
}

/// Envoy's connections to alice's SQ now.
async fn connections(stack: &Stack) -> Result<u64> {
    let text = stack.envoy.admin().get("/clusters").await?.text();
    let lines = text.lines().filter(|line| line.starts_with("sq/alice::"));
    Ok(lines.filter_map(|line| line.split_once("::cx_active::")?.1.parse::<u64>().ok()).sum())
}

/// Lets SQ hang or go on.
fn hang(stack: &Stack, hang: bool) -> Result<()> {
    match stack.runtime {
        Runtime::Process => {
            let signal = if hang { Signal::STOP } else { Signal::CONT };
            stack.sq_pids().into_iter().for_each(|pid| processes::signal(pid, signal));
        }
        Runtime::Docker => {
            for id in docker::containers(&stack.tenant_labels("alice"))? {
                docker::run(&[if hang { "pause" } else { "unpause" }, &id])?;
            }
        }
    }
    Ok(())
}

async fn more_than_the_queue_holds_are_told_to_come_again(stack: Arc<Stack>) -> Result<()> {
    let warm = stack.tenant("alice")?;
    warm.get(&format!("/api/v2/update?{AT}&s=text")).await?.expect_ok()?;
    hang(&stack, true)?;
    let mut asked = JoinSet::new();
    let clients: Vec<Client> = (0..12)
        .map(|_| Ok(stack.client(harness::Http::Two)?.key(stack.key("alice")?)))
        .collect::<Result<_>>()?;
    // A hundred streams per connection, so that twelve hundred wait at once.
    for n in 0..1_200 {
        let client = clients[n % clients.len()].clone();
        asked.spawn(async move { client.get(&format!("/api/v2/select?{AT}")).await });
    }
    let (mut good, mut busy, mut hangs) = (0, 0, true);
    while let Some(answer) = asked.join_next().await {
        let answer = answer??;
        match answer.status {
            200 => good += 1,
            503 => {
                busy += 1;
                crate::refusals::same(&answer, include_str!("refusals/database-busy.txt"))?;
            }
            other => anyhow::bail!("{other} {}", answer.text()),
        }
        // The first answers come while nothing else can: those that found the queue full.
        if hangs {
            ensure!(busy == 1, "SQ answers although it hangs");
            hang(&stack, false)?;
            hangs = false;
        }
    }
    ensure!(busy > 0 && good >= QUEUE, "{good} served, {busy} told to come again");
    ensure!(busy <= 1_200 - QUEUE, "{busy} of 1200 told to come again");
    Ok(())
}

async fn who_gets_no_place_in_time_is_told_to_come_again(stack: Arc<Stack>) -> Result<()> {
    let alice = stack.tenant("alice")?;
    alice.get(&format!("/api/v2/update?{AT}&s=text")).await?.expect_ok()?;
    hang(&stack, true)?;
    let mut asked = JoinSet::new();
    let alice = stack.client(harness::Http::Two)?.key(stack.key("alice")?);
    for n in 0..STREAMS {
        let client = alice.clone();
        // Writes: of those SQ has seen nobody knows what became.
        let path = format!("/api/v2/update?{AT}&s={n}");
        asked.spawn(async move { client.get(&path).await });
    }
    let (mut busy, mut late) = (Vec::new(), 0);
    while let Some(answer) = asked.join_next().await {
        let answer = answer??;
        match answer.status {
            503 => busy.push(answer),
            504 if answer.text().contains("database-timeout") => late += 1,
            other => anyhow::bail!("{other} {}", answer.text()),
        }
    }
    hang(&stack, false)?;
    // Those that hang end first, and so give their places to some more at the last moment.
    println!("{late} hung in SQ, {} waited in vain", busy.len());
    ensure!(late >= PLACES && !busy.is_empty(), "{late} hung");
    ensure!(busy[0].header("retry-after") == "1", "{:?}", busy[0]);
    ensure!(busy[0].text().contains("database-busy"), "{}", busy[0].text());
    Ok(())
}

async fn a_read_that_kills_sq_is_sent_twice_and_then_no_more(stack: Arc<Stack>) -> Result<()> {
    let greedy = stack.tenant("greedy")?;
    greedy.get(&format!("/api/v2/update?{AT}&s=text")).await?.expect_ok()?;
    // Brought by hand: more than 64 MiB can hold once it is read.
    let file = stack.orchestrator.data().join("greedy/heavy.phext");
    std::fs::write(file, "x".repeat(TOO_LARGE))?;
    greedy.get("/api/v2/toc?p=heavy").await?.expect_status(503)?;
    until("the tenant to be back", PATIENCE, || async {
        let answer = greedy.get(&format!("/api/v2/select?{AT}")).await.ok()?;
        (answer.text() == "text").then_some(())
    })
    .await?;
    let tenant = stack.orchestrator.tenant_status("greedy").await?;
    ensure!(tenant.deaths == 2, "{tenant:?}");
    Ok(())
}

async fn nothing_but_whole_requests_reaches_sq_0_5_0(stack: Arc<Stack>) -> Result<()> {
    let alice = stack.tenant("alice")?;
    let write = format!("/api/v2/update?{AT}&s=text");
    alice.get(&write).await?.expect_ok()?;
    let sq = (stack.listen.https, stack.certs.ca());
    let key = stack.key("alice")?.to_owned();
    let head = format!(
        "POST /api/v2/update?{AT} HTTP/1.1\r\nhost: x\r\nauthorization: {key}\r\n\
         content-length: 100\r\n\r\n"
    );
    let mut idle = Vec::new();
    for _ in 0..10 {
        // A port scan, half a TLS hello, an idle connection, half a head, half a body.
        drop(TcpStream::connect(("127.0.0.1", sq.0)).await?);
        let mut hello = TcpStream::connect(("127.0.0.1", sq.0)).await?;
        hello.write_all(b"\x16\x03\x01").await?;
        drop(hello);
        idle.push(Raw::connect(sq.0, &sq.1).await?);
        for part in [&head[..40], head.as_str(), &format!("{head}half a body")] {
            let mut raw = Raw::connect(sq.0, &sq.1).await?;
            raw.write(part.as_bytes()).await?;
            drop(raw);
            let mut slow = Raw::connect(sq.0, &sq.1).await?;
            slow.write(part.as_bytes()).await?;
            idle.push(slow);
        }
        ensure!(alice.get(&format!("/api/v2/select?{AT}")).await?.text() == "text", "a read");
    }
    let tenant = stack.orchestrator.tenant_status("alice").await?;
    ensure!(tenant.deaths == 0, "SQ died: {tenant:?}");
    Ok(())
}

async fn clients_that_leave_large_answers_cost_sq_0_5_0_a_moment_at_most(
    stack: Arc<Stack>,
) -> Result<()> {
    let alice = stack.tenant("alice")?;
    alice.get(&format!("/api/v2/update?{AT}&s=text")).await?.expect_ok()?;
    for n in 1..=2 {
        let path = format!("/api/v2/update?p=large&c=1.1.1/1.1.1/1.1.{n}");
        alice.post(&path, "x".repeat(LARGE)).await?.expect_ok()?;
    }
    let head = format!(
        "GET /api/v2/get?p=large HTTP/1.1\r\nhost: x\r\nauthorization: {}\r\n\r\n",
        stack.key("alice")?
    );
    let mut longest = Duration::ZERO;
    for n in 0..LEAVERS {
        let mut raw = Raw::connect(stack.listen.https, &stack.certs.ca()).await?;
        raw.write(head.as_bytes()).await?;
        if n % 2 == 0 {
            raw.read_some(100).await?;
        }
        drop(raw);
        let asked = Instant::now();
        until("a read", PATIENCE, || async {
            let answer = alice.get(&format!("/api/v2/select?{AT}")).await.ok()?;
            (answer.text() == "text").then_some(())
        })
        .await?;
        longest = longest.max(asked.elapsed());
    }
    let tenant = stack.orchestrator.tenant_status("alice").await?;
    println!("{LEAVERS} clients left: {} deaths, longest wait {longest:.1?}", tenant.deaths);
    // The back-off after a panic is a second, and a start follows.
    ensure!(longest < Duration::from_secs(4), "{longest:?}");
    Ok(())
}

async fn a_tenant_out_of_memory_is_back_at_once_and_disturbs_nobody(
    stack: Arc<Stack>,
) -> Result<()> {
    let (greedy, bob) = (stack.tenant("greedy")?, stack.tenant("bob")?);
    let write = format!("/api/v2/update?{AT}&s=text");
    ensure!(greedy.get(&write).await?.ok() && bob.get(&write).await?.ok(), "a write");
    let load = Load::start(2, Duration::from_millis(10), move |_, _| {
        let bob = bob.clone();
        async move { bob.get(&format!("/api/v2/select?{AT}")).await }
    });
    let path = "/api/v2/update?p=other&c=1.1.1/1.1.1/1.1.1";
    let answer = greedy.post(path, vec![b'x'; TOO_LARGE]).await?;
    let died = Instant::now();
    ensure!(answer.status >= 500, "64 MiB held it: {} {}", answer.status, answer.text());
    until("the tenant to be back", PATIENCE, || async {
        let answer = greedy.get(&format!("/api/v2/select?{AT}")).await.ok()?;
        (answer.text() == "text").then_some(())
    })
    .await?;
    let back = died.elapsed();
    println!("out of memory on {}: back after {} ms", stack.runtime.name(), back.as_millis());
    ensure!(back < Duration::from_secs(1), "back after {back:?}");
    let seen = load.finish().await;
    ensure!(seen.errors == 0, "the neighbour noticed: {seen:?}");
    let tenant = stack.orchestrator.tenant_status("greedy").await?;
    let cause = tenant.last_death.clone().unwrap_or_default().to_lowercase();
    ensure!(cause.contains("memory"), "status says {tenant:?}");
    let metrics = stack.orchestrator.admin().get("/metrics").await?.text();
    ensure!(
        metrics.contains("sq_orchestrator_deaths_total{kind=\"out_of_memory\"} 1"),
        "{metrics}"
    );
    Ok(())
}

/// An upload of 2 MB, as large as it may be, of which only the first byte comes.
async fn begin_upload(stack: &Stack, n: usize) -> Result<Raw> {
    let mut upload = Raw::connect(stack.listen.https, &stack.certs.ca()).await?;
    let head = format!(
        "POST /api/v2/update?p=p{n}&c=1.1.1/1.1.1/1.1.1 HTTP/1.1\r\nhost: sq\r\nconnection: close\r\n\
         authorization: Bearer {}\r\ncontent-length: 2000000\r\n\r\nx",
        stack.key("alice")?
    );
    upload.write(head.as_bytes()).await?;
    Ok(upload)
}

async fn uploads_of_one_tenant_leave_envoy_room_for_the_others(stack: Arc<Stack>) -> Result<()> {
    const UPLOADS: u64 = 20;
    /// Two rounds of what its SQ takes at the same time.
    const HELD: u64 = 8;
    stack.tenant("alice")?.get("/api/v2/toc?p=index").await?.expect_ok()?;
    let refused = || stack.envoy.stat("wasmcustom.sq_gate.refused.database-busy");
    let mut uploads = Vec::new();
    for n in 0..UPLOADS {
        uploads.push(begin_upload(&stack, usize::try_from(n)?).await?);
    }
    until("all but two rounds of uploads to be refused", PATIENCE, || async {
        (refused().await.ok()? >= UPLOADS - HELD).then_some(())
    })
    .await?;
    let answer = uploads.pop().context("the last one")?.read_all().await?;
    ensure!(answer.contains(" 503 ") && answer.contains("database-busy"), "{answer}");
    ensure!(answer.contains("retry-after: 1"), "{answer}");
    ensure!(refused().await? == UPLOADS - HELD, "{} were refused", refused().await?);
    for tenant in ["bob", "alice"] {
        stack.tenant(tenant)?.get("/api/v2/toc?p=index").await?.expect_ok()?;
    }
    let bob = stack.tenant("bob")?;
    let path = "/api/v2/update?p=index&c=1.1.1/1.1.1/1.1.1";
    bob.post(path, "x".repeat(2_000_000)).await?.expect_ok()?;
    drop(uploads);
    let alice = stack.tenant("alice")?;
    until("room after the clients have gone", PATIENCE, || async {
        alice.post(path, "x".repeat(2_000_000)).await.ok()?.ok().then_some(())
    })
    .await
}
