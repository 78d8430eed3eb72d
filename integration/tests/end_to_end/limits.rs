//! Rate limits: exact across four workers, stated in every response, changed within a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use harness::client::{FIRST_SCROLL, TOC};
use harness::{Client, Http, Response, Stack, StackBuilder, Tier, until};
use hyper::Method;
use tokio::task::JoinSet;

use crate::suite::{Case, On, case};

const WORKERS: u32 = 4;
/// Bound on the time from a save of the registry until every worker applies it.
const CHANGE_LIMIT: Duration = Duration::from_secs(1);
/// Connections of a flood, which the kernel spreads over the four workers.
const CONNECTIONS: usize = 24;
/// Duration of a flood.
const FLOOD: Duration = Duration::from_secs(3);

/// Rate limit of the flooded tenant, in requests per second.
const RATE: u32 = 48;
/// Burst of the flooded tenant.
const BURST: u32 = 96;

/// A tier limited by this bucket only.
fn bucket(name: &str, burst: u32, rate: u32) -> Tier {
    Tier::unlimited(name).set("burst", burst).set("requests-per-s", rate)
}

fn four_workers() -> StackBuilder {
    Stack::builder()
        .workers(WORKERS)
        .tier(bucket("flooded", BURST, RATE))
        .tier(bucket("stated", 20, 1))
        .tier(bucket("writes", 1000, 1).set("write-cost", 100))
        .tenant_in_tier("flooded", "flooded")
        .tenant_in_tier("stated", "stated")
        .tenant_in_tier("writer", "writes")
        .tenant("changed")
        .tenant("calm")
}

fn slow_tier(name: &str, burst: u32, requests_per_day: u32) -> Tier {
    Tier::new(name)
        .set("burst", burst)
        .set("requests-per-s", 1)
        .set("requests-per-day", requests_per_day)
}

fn shadow_mode() -> StackBuilder {
    Stack::builder()
        .tier(slow_tier("slow", 5, 1000))
        .tier(slow_tier("short", 1000, 5))
        .tenant_in_tier("alice", "slow")
        .tenant_in_tier("bob", "short")
        .filter_config("shadow", "true")
}

/// Verify requests per second to the relay, few enough for a test to exceed.
const VERIFY_PER_S: f64 = 40.0;
/// One address's share of them.
const SHARE_PER_S: f64 = VERIFY_PER_S / 4.0;

fn few_verify_requests() -> StackBuilder {
    Stack::builder()
        .workers(WORKERS)
        .filter_config("verify_per_s", &VERIFY_PER_S.to_string())
        .tenant("alice")
        .tenant("late")
}

pub(crate) fn cases() -> Vec<Case> {
    let limits = On::Shared("limits", four_workers);
    vec![
        case!(limits, flood_gets_its_rate_and_no_more).exclusive(),
        case!(limits, every_response_states_limits_and_429_retry_after),
        case!(limits, write_cost_follows_the_registry),
        case!(limits, changed_limits_apply_everywhere_within_a_second).exclusive(),
        case!(limits, keyless_flood_is_limited_without_disturbing_tenants),
        case!(On::Own(shadow_mode), shadow_mode_refuses_nothing_but_marks_and_counts),
        case!(On::Own(few_verify_requests), random_keys_reach_the_relay_at_limited_rate),
    ]
}

/// One response of a flood.
#[derive(Debug)]
struct Sample {
    /// Time at which the request was sent.
    sent: Instant,
    status: u16,
}

/// Sends requests without a pause, each client on its own connection, until `enough`. Request
/// number `n` has the `Authorization` value that `authorization(n)` returns. Returns all responses.
async fn flood(
    clients: Vec<Client>,
    authorization: impl Fn(u64) -> Option<String> + Send + Sync + 'static,
    enough: impl Fn() -> bool,
) -> Result<Vec<Sample>> {
    let stop = Arc::new(AtomicBool::new(false));
    let authorization = Arc::new(authorization);
    let mut tasks = JoinSet::new();
    for (number, client) in (0_u64..).zip(clients) {
        let stop = stop.clone();
        let authorization = authorization.clone();
        // Each client's numbers are even and odd in turn and differ from all others.
        let first = number * 1_000_000;
        tasks.spawn(async move {
            let mut samples = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let authorization = authorization(first + samples.len() as u64);
                samples.push(sample(&client, authorization.as_deref()).await?);
            }
            anyhow::Ok(samples)
        });
    }
    until("the flood to end", FLOOD * 10, || async { enough().then_some(()) }).await?;
    stop.store(true, Ordering::Relaxed);
    let mut all = Vec::new();
    while let Some(samples) = tasks.join_next().await {
        all.extend(samples??);
    }
    Ok(all)
}

async fn sample(client: &Client, authorization: Option<&str>) -> Result<Sample> {
    let headers: Vec<(&str, &str)> =
        authorization.map(|value| ("authorization", value)).into_iter().collect();
    let sent = Instant::now();
    let response = client.get_with_headers(TOC, &headers).await?;
    Ok(Sample { sent, status: response.status })
}

/// Clients without a key, one per connection of a flood, half of them over HTTP/2.
fn keyless_clients(stack: &Stack) -> Result<Vec<Client>> {
    (0..CONNECTIONS)
        .map(|number| stack.client(if number % 2 == 0 { Http::One } else { Http::Two }))
        .collect()
}

fn clients(stack: &Stack, tenant: &str) -> Result<Vec<Client>> {
    let key = stack.key(tenant)?;
    Ok(keyless_clients(stack)?.iter().map(|client| client.key(key)).collect())
}

fn count(samples: &[Sample], status: u16) -> usize {
    samples.iter().filter(|sample| sample.status == status).count()
}

#[allow(clippy::cast_precision_loss)] // counts far below 2^52
async fn flood_gets_its_rate_and_no_more(stack: Arc<Stack>) -> Result<()> {
    let rate = f64::from(RATE);
    let burst = f64::from(BURST);
    let clients = clients(&stack, "flooded")?;
    // The bucket is full at this moment.
    let start = Instant::now();
    clients[0].get(TOC).await?.expect_ok()?;
    let flood_start = Instant::now();
    let samples = flood(clients, |_| None, || flood_start.elapsed() >= FLOOD).await?;
    let passed = count(&samples, 200) + 1;
    let refused = count(&samples, 429);
    ensure!(passed + refused == samples.len() + 1, "neither 200 nor 429: {samples:?}");
    // Upper bound: the full bucket and all tokens that the time of the flood adds.
    let most = burst + rate * start.elapsed().as_secs_f64();
    ensure!(passed as f64 <= most, "{passed} passed, at most {most} may");
    // Lower bound: at the last refusal the bucket was empty. Up to an eighth of the burst may then
    // lie in the token batch of each other worker. A refusal is cached for 50 ms, and a worker's
    // clock lags by 20 ms at most.
    let refusals = samples.iter().filter(|sample| sample.status == 429);
    let last_refusal = refusals.map(|sample| sample.sent).max().unwrap_or(start);
    let in_batches = f64::from(WORKERS - 1) * burst / 8.0;
    let stale = rate * 0.07 + 1.0;
    let least = burst + rate * (last_refusal - start).as_secs_f64() - in_batches - stale;
    ensure!(passed as f64 >= least, "{passed} passed, at least {least} must ({refused} refused)");
    Ok(())
}

/// Reads a number from a header such as `"burst";r=3;t=17`.
fn parameter(header: &str, name: &str) -> Option<u64> {
    header.split(';').find_map(|part| part.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

/// Checks that a response states the limits of a bucket that fills at one request per second.
/// Returns the number of remaining requests.
fn remaining(response: &Response, burst: u64) -> Result<u64> {
    let policy = response.header("ratelimit-policy");
    let rate = response.header("ratelimit");
    let request = &response.request;
    ensure!(policy == format!("\"burst\";q={burst};w={burst}"), "{request}: policy {policy:?}");
    ensure!(rate.starts_with("\"burst\";"), "{request}: rate {rate:?}");
    let remaining = parameter(rate, "r");
    ensure!(remaining.is_some() && parameter(rate, "t").is_some(), "{request}: rate {rate:?}");
    Ok(remaining.unwrap_or_default())
}

async fn every_response_states_limits_and_429_retry_after(stack: Arc<Stack>) -> Result<()> {
    let client = stack.tenant("stated")?;
    let update = format!("/api/v2/update?p=index&{FIRST_SCROLL}&s=x");
    for (method, path, status) in [
        (Method::GET, TOC, 200),
        (Method::GET, &update, 200),
        (Method::HEAD, TOC, 200),
        (Method::GET, "/api/v2/version", 200),
        (Method::GET, "/api/v2/usage", 200),
        (Method::GET, "/api/v2/nonsense", 404),
        (Method::GET, "/api/v2/select?p=index", 400),
        (Method::PATCH, TOC, 405),
    ] {
        let response = client.send(method, path, &[], "".into()).await?.expect_status(status)?;
        remaining(&response, 20)?;
    }
    let refused = until("429", Duration::from_secs(20), || async {
        client.get(TOC).await.ok().filter(|response| response.status == 429)
    })
    .await?;
    ensure!(remaining(&refused, 20)? == 0, "{:?}", refused.headers);
    let problem = refused.expect_problem(429, "rate-limited")?;
    // The bucket gains one token per second.
    ensure!(problem.retry_after_s == Some(1), "{problem:?}");
    ensure!(refused.retry_after_s()? == 1, "{refused:?}");
    Ok(())
}

async fn write_cost_follows_the_registry(stack: Arc<Stack>) -> Result<()> {
    let writer = stack.tenant("writer")?;
    let before = remaining_after(&writer, TOC).await?;
    let update = format!("/api/v2/update?p=index&{FIRST_SCROLL}&s=x");
    let after_update = remaining_after(&writer, &update).await?;
    let delete = format!("/api/v2/delete?p=index&{FIRST_SCROLL}");
    let after_delete = remaining_after(&writer, &delete).await?;
    let after_read = remaining_after(&writer, TOC).await?;
    // The bucket gains one token per second, and a token batch still counts as remaining.
    let costs = [before - after_update, after_update - after_delete];
    ensure!(costs.iter().all(|cost| (80..=100).contains(cost)), "writes cost {costs:?}");
    let read_cost = after_delete.abs_diff(after_read);
    ensure!(read_cost <= 20, "a read cost {read_cost}");
    Ok(())
}

async fn remaining_after(client: &Client, path: &str) -> Result<u64> {
    let response = client.get(path).await?.expect_ok()?;
    Ok(parameter(response.header("ratelimit"), "r").unwrap_or_default())
}

async fn changed_limits_apply_everywhere_within_a_second(stack: Arc<Stack>) -> Result<()> {
    let clients = clients(&stack, "changed")?;
    for client in &clients {
        client.get(TOC).await?.expect_ok()?;
    }
    stack.registry.run("set", &["changed", "burst=77", "requests-per-s=7"])?;
    let saved = Instant::now();
    for client in &clients {
        let left = CHANGE_LIMIT.saturating_sub(saved.elapsed());
        until("the new policy on every connection", left, || async {
            let response = client.get(TOC).await.ok()?;
            (response.header("ratelimit-policy") == "\"burst\";q=77;w=11").then_some(())
        })
        .await?;
    }
    Ok(())
}

/// Every second request of the flood has a malformed key, the others have none.
fn malformed_or_no_key(number: u64) -> Option<String> {
    number.is_multiple_of(2).then(|| "Bearer pmb-v1-nonsense".to_owned())
}

#[allow(clippy::cast_precision_loss)] // counts far below 2^52
async fn keyless_flood_is_limited_without_disturbing_tenants(stack: Arc<Stack>) -> Result<()> {
    let calm = stack.tenant("calm")?;
    calm.get(TOC).await?.expect_ok()?;
    let observer = stack.client(Http::One)?;
    let clients = keyless_clients(&stack)?;
    let start = Instant::now();
    let limited = AtomicBool::new(false);
    let observe = async {
        let refused = until("429 without a key", FLOOD * 9, || async {
            observer.get(TOC).await.ok().filter(|response| response.status == 429)
        })
        .await;
        limited.store(true, Ordering::Relaxed);
        refused
    };
    let enough = || limited.load(Ordering::Relaxed) && start.elapsed() > FLOOD;
    let (refused, samples) = tokio::join!(observe, flood(clients, malformed_or_no_key, enough));
    let refused = refused?;
    let problem = refused.expect_problem(429, "too-many-keyless-requests")?;
    ensure!(problem.retry_after_s == Some(1), "{problem:?}");
    ensure!(refused.header("retry-after") == "1", "{refused:?}");
    ensure!(refused.header("server-timing") == "auth;desc=none", "{refused:?}");
    ensure!(!refused.header("x-request-id").is_empty(), "{refused:?}");
    let samples = samples?;
    let passed = count(&samples, 401);
    ensure!(passed + count(&samples, 429) == samples.len(), "neither 401 nor 429");
    // A burst of 1000 and 100 per second, added once per second.
    let most = 1000.0 + 100.0 * (start.elapsed().as_secs_f64() + 1.0);
    ensure!(passed as f64 <= most, "{passed} passed in {:?}", start.elapsed());
    calm.get(TOC).await?.expect_ok()?;
    Ok(())
}

async fn shadow_mode_refuses_nothing_but_marks_and_counts(stack: Arc<Stack>) -> Result<()> {
    for (tenant, mark) in [("alice", "rate-limited"), ("bob", "quota-exceeded")] {
        // One connection, and therefore one worker.
        let client = stack.client(Http::Two)?.key(stack.key(tenant)?);
        let mut marks = Vec::new();
        for _ in 0..15 {
            let response = client.get(TOC).await?.expect_ok()?;
            marks.push(response.header("x-sq-would-refuse").to_owned());
        }
        ensure!(marks[..5].iter().all(String::is_empty), "marked too early: {marks:?}");
        ensure!(marks.iter().filter(|m| *m == mark).count() >= 5, "{mark}: {marks:?}");
    }
    until("the counters of marked requests", Duration::from_secs(5), || async {
        let stats = stack.envoy.admin().get("/stats?filter=shadowed").await.ok()?.text();
        let counters =
            stats.lines().filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        (counters.sum::<u64>() >= 10).then_some(())
    })
    .await
}

async fn relay_requests(stack: &Stack) -> Result<u64> {
    stack.envoy.stat("cluster.ranch_relay.upstream_rq_total").await
}

#[allow(clippy::cast_precision_loss)] // counts far below 2^52
async fn random_keys_reach_the_relay_at_limited_rate(stack: Arc<Stack>) -> Result<()> {
    let alice = stack.tenant("alice")?;
    alice.get(TOC).await?.expect_ok()?;
    let before = relay_requests(&stack).await?;
    let start = Instant::now();
    let late = tokio::spawn(send_new_key_from_another_address(stack.clone(), start));
    let unknown_key = |n| Some(format!("Bearer pmb-v1-{n:032x}"));
    let samples = flood(keyless_clients(&stack)?, unknown_key, || start.elapsed() > FLOOD).await?;
    late.await??;
    let unknown = count(&samples, 401);
    let limited = count(&samples, 429);
    ensure!(unknown + limited == samples.len(), "neither 401 nor 429");
    ensure!(limited > 0, "{} requests did not exceed the rate", samples.len());
    // A burst of one second's share, the late tenant's key, and one long poll per worker that may
    // end during the flood.
    let most = SHARE_PER_S * (start.elapsed().as_secs_f64() + 1.0) + 1.0 + f64::from(WORKERS);
    let sent = relay_requests(&stack).await? - before;
    ensure!(sent as f64 <= most, "{sent} requests to the relay, at most {most} may be");
    // A key is 401 only after the relay has been asked.
    ensure!(unknown as u64 <= sent, "{unknown} unknown keys, {sent} requests to the relay");
    alice.get(TOC).await?.expect_ok()?;
    Ok(())
}

/// Sends a valid key that the gate has not cached, from another address, in the middle of the
/// flood: it must not be refused.
async fn send_new_key_from_another_address(stack: Arc<Stack>, start: Instant) -> Result<()> {
    let middle = FLOOD / 2;
    until("the middle of the flood", FLOOD, || async { (start.elapsed() > middle).then_some(()) })
        .await?;
    let other = [127, 0, 0, 2].into();
    let client = Client::from_address(&stack.url(), &stack.certs.ca(), Http::Two, other)?;
    client.key(stack.key("late")?).get(TOC).await?.expect_ok()?;
    Ok(())
}
