//! Rates hold exactly at four workers, are told in every answer, and change within a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use harness::client::TOC;
use harness::{Client, Http, Response, Stack, StackBuilder, Tier, until};
use hyper::Method;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::world::{Case, On, case};

const WORKERS: u32 = 4;
/// The registry is saved → every worker judges by it.
const BITES_WITHIN: Duration = Duration::from_secs(1);
/// Connections of a flood: the kernel spreads them over the four workers.
const CONNECTIONS: usize = 24;
/// How long a flood lasts.
const FLOOD: Duration = Duration::from_secs(3);

/// The rate that is flooded.
const RATE: f64 = 48.0;
const BURST: f64 = 96.0;

fn four_workers() -> StackBuilder {
    let tier = |name, burst, rate, cost| {
        let tier = Tier::unlimited(name).set("burst", burst);
        tier.set("requests-per-s", rate).set("write-cost", cost)
    };
    Stack::builder()
        .workers(WORKERS)
        .tier(tier("flooded", 96, 48, 1))
        .tier(tier("told", 20, 1, 1))
        .tier(tier("writes", 1000, 1, 100))
        .tenant_in_tier("flooded", "flooded")
        .tenant_in_tier("told", "told")
        .tenant_in_tier("writer", "writes")
        .tenant("changed")
        .tenant("calm")
}

fn shadow() -> StackBuilder {
    let tier = |name, burst, day| {
        let tier = Tier::new(name).set("burst", burst);
        tier.set("requests-per-s", 1).set("requests-per-day", day)
    };
    Stack::builder()
        .tier(tier("slow", 5, 1000))
        .tier(tier("short", 1000, 5))
        .tenant_in_tier("alice", "slow")
        .tenant_in_tier("bob", "short")
        .filter_config("shadow", "true")
}

/// Questions to the relay per second, small so that a test can reach it.
const VERIFY_PER_S: f64 = 40.0;
/// What one address gets of it.
const SHARE_PER_S: f64 = VERIFY_PER_S / 4.0;

fn few_questions() -> StackBuilder {
    let stack = Stack::builder().workers(WORKERS).filter_config("verify_per_s", "40");
    stack.tenant("alice").tenant("late")
}

pub(crate) fn cases() -> Vec<Case> {
    let limits = On::Shared("limits", four_workers);
    vec![
        case!(limits, a_flood_passes_what_its_bucket_allows_and_hardly_less).alone(),
        case!(limits, every_answer_to_a_tenant_states_its_limits_and_429_when_to_come_back),
        case!(limits, a_write_takes_what_the_registry_says_it_costs),
        case!(limits, changed_limits_bite_within_a_second_at_every_worker).alone(),
        case!(limits, a_flood_without_keys_is_limited_by_address_and_disturbs_no_tenant),
        case!(On::Own(shadow), shadow_mode_refuses_nothing_but_marks_and_counts),
        case!(On::Own(few_questions), random_keys_reach_the_relay_no_more_often_than_stated),
    ]
}

/// One answered request of a flood: when it was sent, and its status.
type Seen = (Instant, u16);

/// Asks without a pause over many connections until `stop`.
fn flood(
    clients: Vec<Client>,
    ask: impl Fn(u64) -> (String, Option<String>) + Send + Sync + 'static,
    stop: &Arc<AtomicBool>,
) -> JoinSet<Result<Vec<Seen>>> {
    let ask = Arc::new(ask);
    let mut tasks = JoinSet::new();
    for (number, client) in (0_u64..).zip(clients) {
        let (ask, stop) = (ask.clone(), stop.clone());
        tasks.spawn(async move {
            let mut seen = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let (path, key) = ask(number * 1_000_000 + seen.len() as u64);
                let headers: Vec<(&str, &str)> =
                    key.iter().map(|key| ("authorization", key.as_str())).collect();
                let sent = Instant::now();
                seen.push((sent, client.get_with_headers(&path, &headers).await?.status));
            }
            Ok(seen)
        });
    }
    tasks
}

/// Floods for a while; all that was seen.
async fn flood_for(
    clients: Vec<Client>,
    ask: impl Fn(u64) -> (String, Option<String>) + Send + Sync + 'static,
    enough: impl Fn() -> bool,
) -> Result<Vec<Seen>> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = flood(clients, ask, &stop);
    until("the flood to end", FLOOD * 10, || async { enough().then_some(()) }).await?;
    stop.store(true, Ordering::Relaxed);
    let mut all = Vec::new();
    while let Some(seen) = tasks.join_next().await {
        all.extend(seen??);
    }
    Ok(all)
}

fn clients(stack: &Stack, tenant: Option<&str>) -> Result<Vec<Client>> {
    let one = |number: usize| {
        let client = stack.client(if number.is_multiple_of(2) { Http::One } else { Http::Two })?;
        tenant.map_or(Ok(client.clone()), |tenant| Ok(client.key(stack.key(tenant)?)))
    };
    (0..CONNECTIONS).map(one).collect()
}

fn count(seen: &[Seen], status: u16) -> usize {
    seen.iter().filter(|(_, s)| *s == status).count()
}

#[allow(clippy::cast_precision_loss)] // counts far below 2^52
async fn a_flood_passes_what_its_bucket_allows_and_hardly_less(stack: Arc<Stack>) -> Result<()> {
    let clients = clients(&stack, Some("flooded"))?;
    // From here on nothing is drawn yet.
    let start = Instant::now();
    clients[0].get(TOC).await?.expect_ok()?;
    let began = Instant::now();
    let toc = |_| (TOC.to_owned(), None);
    let seen = flood_for(clients, toc, || began.elapsed() >= FLOOD).await?;
    let (passed, refused) = (count(&seen, 200) + 1, count(&seen, 429));
    ensure!(passed + refused == seen.len() + 1, "something else came: {seen:?}");
    let most = BURST + RATE * start.elapsed().as_secs_f64();
    ensure!(passed as f64 <= most, "{passed} passed, {most} may");
    // The last refusal found the bucket empty, but for what other workers had drawn.
    let refused_last =
        seen.iter().filter(|(_, s)| *s == 429).map(|(at, _)| *at).max().unwrap_or(start);
    let elsewhere = f64::from(WORKERS - 1) * BURST / 8.0;
    // A refusal is believed for 50 ms, and a worker's clock is 20 ms old at most.
    let least = BURST + RATE * (refused_last - start).as_secs_f64() - elsewhere - RATE * 0.07 - 1.0;
    ensure!(passed as f64 >= least, "{passed} passed, {least} were due ({refused} refused)");
    Ok(())
}

/// `"burst";r=3;t=17`: the number after a name.
fn number(header: &str, name: &str) -> Option<u64> {
    header.split(';').find_map(|part| part.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

fn states(answer: &Response, burst: u64, what: &str) -> Result<u64> {
    let (rate, policy) = (answer.header("ratelimit"), answer.header("ratelimit-policy"));
    ensure!(policy == format!("\"burst\";q={burst};w={burst}"), "{what}: policy {policy:?}");
    let left = number(rate, "r").filter(|_| rate.starts_with("\"burst\";"));
    ensure!(left.is_some() && number(rate, "t").is_some(), "{what}: rate {rate:?}");
    Ok(left.unwrap_or_default())
}

async fn every_answer_to_a_tenant_states_its_limits_and_429_when_to_come_back(
    stack: Arc<Stack>,
) -> Result<()> {
    let told = stack.tenant("told")?;
    let at = "p=index&c=1.1.1/1.1.1/1.1.1";
    for (method, path, status) in [
        (Method::GET, TOC.to_owned(), 200),
        (Method::GET, format!("/api/v2/update?{at}&s=x"), 200),
        (Method::HEAD, TOC.to_owned(), 200),
        (Method::GET, "/api/v2/version".to_owned(), 200),
        (Method::GET, "/api/v2/usage".to_owned(), 200),
        (Method::GET, "/api/v2/nonsense".to_owned(), 404),
        (Method::GET, "/api/v2/select?p=index".to_owned(), 400),
        (Method::PATCH, TOC.to_owned(), 405),
    ] {
        let answer =
            told.send(method.clone(), &path, &[], "".into()).await?.expect_status(status)?;
        states(&answer, 20, &path)?;
    }
    let refused = until("429", Duration::from_secs(20), || async {
        told.get(TOC).await.ok().filter(|answer| answer.status == 429)
    })
    .await?;
    ensure!(states(&refused, 20, "429")? == 0, "{:?}", refused.headers);
    let seconds: u64 = refused.header("retry-after").parse()?;
    ensure!(seconds == 1, "one token grows in a second, not in {seconds}");
    ensure!(refused.header("content-type") == "application/problem+json", "{refused:?}");
    let problem: Value = serde_json::from_slice(&refused.body)?;
    ensure!(problem["type"] == "urn:sq:problem:rate-limited", "{problem}");
    ensure!(problem["status"] == 429 && problem["retry_after_s"] == seconds, "{problem}");
    Ok(())
}

async fn a_write_takes_what_the_registry_says_it_costs(stack: Arc<Stack>) -> Result<()> {
    let writer = stack.tenant("writer")?;
    let left = |answer: Response| async move {
        ensure!(answer.ok(), "{} {}", answer.status, answer.text());
        Ok(number(answer.header("ratelimit"), "r").unwrap_or_default())
    };
    let at = "p=index&c=1.1.1/1.1.1/1.1.1";
    let first = left(writer.get(TOC).await?).await?;
    let second = left(writer.get(&format!("/api/v2/update?{at}&s=x")).await?).await?;
    let third = left(writer.get(&format!("/api/v2/delete?{at}")).await?).await?;
    let fourth = left(writer.get(TOC).await?).await?;
    // One token grows in a second; tokens drawn for later still count as left.
    let costs = [first - second, second - third];
    ensure!(costs.iter().all(|cost| (80..=100).contains(cost)), "writes cost {costs:?}");
    ensure!(third.abs_diff(fourth) <= 20, "a read cost {}", third.abs_diff(fourth));
    Ok(())
}

async fn changed_limits_bite_within_a_second_at_every_worker(stack: Arc<Stack>) -> Result<()> {
    let clients = clients(&stack, Some("changed"))?;
    for client in &clients {
        client.get(TOC).await?.expect_ok()?;
    }
    stack.registry.run("set", &["changed", "burst=77", "requests-per-s=7"])?;
    let saved = Instant::now();
    for client in &clients {
        let left = BITES_WITHIN.saturating_sub(saved.elapsed());
        until("the new policy everywhere", left, || async {
            let answer = client.get(TOC).await.ok()?;
            (answer.header("ratelimit-policy") == "\"burst\";q=77;w=11").then_some(())
        })
        .await?;
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss)] // counts far below 2^52
async fn a_flood_without_keys_is_limited_by_address_and_disturbs_no_tenant(
    stack: Arc<Stack>,
) -> Result<()> {
    let calm = stack.tenant("calm")?;
    calm.get(TOC).await?.expect_ok()?;
    let clients = clients(&stack, None)?;
    // Half of them send what is no key.
    let ask =
        |n: u64| (TOC.to_owned(), n.is_multiple_of(2).then(|| "Bearer pmb-v1-nonsense".to_owned()));
    let start = Instant::now();
    let limited = Arc::new(AtomicBool::new(false));
    let watch = {
        let (client, limited) = (stack.client(Http::One)?, limited.clone());
        async move {
            let answer = until("429 without a key", FLOOD * 9, || async {
                client.get(TOC).await.ok().filter(|answer| answer.status == 429)
            })
            .await;
            limited.store(true, Ordering::Relaxed);
            answer
        }
    };
    let (refused, seen) = tokio::join!(
        watch,
        flood_for(clients, ask, || limited.load(Ordering::Relaxed) && start.elapsed() > FLOOD)
    );
    let (refused, seen) = (refused?, seen?);
    ensure!(refused.header("retry-after") == "1", "{refused:?}");
    ensure!(refused.header("server-timing") == "auth;desc=none", "{refused:?}");
    ensure!(!refused.header("x-request-id").is_empty(), "{refused:?}");
    let problem: Value = serde_json::from_slice(&refused.body)?;
    ensure!(problem["type"] == "urn:sq:problem:too-many-keyless-requests", "{problem}");
    let passed = count(&seen, 401);
    ensure!(passed + count(&seen, 429) == seen.len(), "something else came");
    // 1000 at once and 100 a second, filled in whole seconds.
    let most = 1000.0 + 100.0 * (start.elapsed().as_secs_f64() + 1.0);
    ensure!(passed as f64 <= most, "{passed} passed in {:?}", start.elapsed());
    calm.get(TOC).await?.expect_ok()?;
    Ok(())
}

async fn shadow_mode_refuses_nothing_but_marks_and_counts(stack: Arc<Stack>) -> Result<()> {
    for (tenant, mark) in [("alice", "rate-limited"), ("bob", "quota-exceeded")] {
        // One connection, and so one worker.
        let client = stack.client(Http::Two)?.key(stack.key(tenant)?);
        let mut marks = Vec::new();
        for _ in 0..15 {
            let answer = client.get(TOC).await?.expect_ok()?;
            marks.push(answer.header("x-sq-would-refuse").to_owned());
        }
        ensure!(marks[..5].iter().all(String::is_empty), "marked too early: {marks:?}");
        ensure!(marks.iter().filter(|m| *m == mark).count() >= 5, "{mark}: {marks:?}");
    }
    until("the count of what was marked", Duration::from_secs(5), || async {
        let text = stack.envoy.admin().get("/stats?filter=shadowed").await.ok()?.text();
        let shadowed = text.lines().filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        (shadowed.sum::<u64>() >= 10).then_some(())
    })
    .await
}

#[allow(clippy::cast_precision_loss)] // counts far below 2^52
async fn random_keys_reach_the_relay_no_more_often_than_stated(stack: Arc<Stack>) -> Result<()> {
    let alice = stack.tenant("alice")?;
    alice.get(TOC).await?.expect_ok()?;
    let asked = || stack.envoy.stat("cluster.ranch_relay.upstream_rq_total");
    let before = asked().await?;
    let start = Instant::now();
    let random = |n: u64| (TOC.to_owned(), Some(format!("Bearer pmb-v1-{n:032x}")));
    let late = tokio::spawn(from_elsewhere(stack.clone(), start));
    let seen = flood_for(clients(&stack, None)?, random, || start.elapsed() > FLOOD).await?;
    late.await??;
    let (unknown, limited) = (count(&seen, 401), count(&seen, 503));
    ensure!(unknown + limited == seen.len(), "something else came");
    ensure!(limited > 0, "the budget was not reached: {} requests", seen.len());
    // At once what a second allows; the late tenant's question; a long poll of each may end meanwhile.
    let most = SHARE_PER_S * (start.elapsed().as_secs_f64() + 1.0) + 1.0 + f64::from(WORKERS);
    let questions = asked().await? - before;
    ensure!(questions as f64 <= most, "{questions} questions, {most} may be");
    // Only what was asked about is remembered.
    ensure!(unknown as u64 <= questions, "{unknown} unknown keys of {questions} questions");
    alice.get(TOC).await?.expect_ok()?;
    Ok(())
}

/// A key that the gateway has not seen yet comes from another address in the middle of the flood.
async fn from_elsewhere(stack: Arc<Stack>, start: Instant) -> Result<()> {
    let middle = FLOOD / 2;
    until("the middle of the flood", FLOOD, || async { (start.elapsed() > middle).then_some(()) })
        .await?;
    let (url, ca, elsewhere) = (stack.url(), stack.certs.ca(), [127, 0, 0, 2].into());
    let client = Client::from_address(&url, &ca, Http::Two, elsewhere)?.key(stack.key("late")?);
    client.get(TOC).await?.expect_ok()?;
    Ok(())
}
