//! The registry decides, within a second and at every worker, and can't break what runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use harness::client::TOC;
use harness::{Client, Http, Response, Stack, StackBuilder, Tier, holds, until};

use crate::suite::{Case, On, case};

/// The registry is saved → every worker knows.
const BITES_WITHIN: Duration = Duration::from_secs(1);
/// What has no bound of its own.
const PATIENCE: Duration = Duration::from_secs(10);
const WORKERS: u32 = 4;
/// The kernel spreads connections over the workers by their ports: more than this are never needed.
const CONNECTIONS_MAX: usize = 200;

fn four_workers() -> StackBuilder {
    Stack::builder()
        .workers(WORKERS)
        .tier(Tier::new("plan").set("burst", 50).set("requests-per-s", 10))
        .tenant("carol")
        .tenant_in_tier("dora", "plan")
}

fn two_workers() -> StackBuilder {
    Stack::builder().workers(2).tenant("alice").tenant("bob")
}

pub(crate) fn cases() -> Vec<Case> {
    let (four, two) = (On::Own(four_workers), On::Own(two_workers));
    vec![
        case!(four, a_revoked_key_is_refused_within_a_second_on_every_worker).exclusive(),
        case!(four, a_changed_tier_bites_within_a_second_on_every_worker).exclusive(),
        case!(two, a_rotated_key_serves_the_same_data).exclusive(),
        case!(two, a_bad_edit_of_the_registry_changes_nothing),
        case!(two, without_the_relay_known_keys_work_and_unknown_ones_get_503),
    ]
}

/// Polls until an answer has this status, for at most a second.
pub(crate) async fn status_within_a_second(client: &Client, status: u16) -> Result<()> {
    until(format!("status {status}"), BITES_WITHIN, || async {
        (client.get(TOC).await.ok()?.status == status).then_some(())
    })
    .await
}

/// Connections that each worker has accepted since Envoy began.
async fn accepted(stack: &Stack) -> Result<Vec<u64>> {
    let mut accepted = Vec::new();
    for worker in 0..WORKERS {
        let name =
            format!("listener.0.0.0.0_{}.worker_{worker}.downstream_cx_total", stack.listen.https);
        accepted.push(stack.envoy.stat(&name).await?);
    }
    Ok(accepted)
}

/// Clients with a connection each, at least one at every worker of a stack that nobody else uses, and
/// how many each worker has accepted.
async fn clients(stack: &Stack, tenant: &str) -> Result<(Vec<Client>, Vec<u64>)> {
    let mut clients = Vec::new();
    while clients.len() < CONNECTIONS_MAX {
        let client = stack.client(Http::One)?.key(stack.key(tenant)?);
        client.get(TOC).await?.expect_ok()?;
        clients.push(client);
        let accepted = accepted(stack).await?;
        if accepted.iter().all(|connections| *connections > 0) {
            ensure!(accepted.iter().sum::<u64>() == clients.len() as u64, "others: {accepted:?}");
            return Ok((clients, accepted));
        }
    }
    bail!("a worker got none of {CONNECTIONS_MAX} connections: {:?}", accepted(stack).await?)
}

/// Polls at each connection until its answer is `changed`, all within a second of now; the connections
/// must be those that were there.
async fn bites_everywhere(
    stack: &Stack,
    (clients, before): (Vec<Client>, Vec<u64>),
    changed: impl Fn(&Response) -> bool,
) -> Result<()> {
    let saved = Instant::now();
    for client in &clients {
        let left = BITES_WITHIN.saturating_sub(saved.elapsed());
        until("the change at this connection", left, || async {
            changed(&client.get(TOC).await.ok()?).then_some(())
        })
        .await?;
    }
    let after = accepted(stack).await?;
    ensure!(after == before, "new connections: {before:?}, {after:?}");
    Ok(())
}

async fn a_revoked_key_is_refused_within_a_second_on_every_worker(stack: Arc<Stack>) -> Result<()> {
    let clients = clients(&stack, "carol").await?;
    stack.registry.remove("carol")?;
    bites_everywhere(&stack, clients, |answer| answer.status == 401).await
}

async fn a_changed_tier_bites_within_a_second_on_every_worker(stack: Arc<Stack>) -> Result<()> {
    let policy = |value: &'static str| move |a: &Response| a.header("ratelimit-policy") == value;
    let (clients, accepted) = clients(&stack, "dora").await?;
    let first = clients.first().context("no client")?;
    ensure!(policy("\"burst\";q=50;w=5")(&first.get(TOC).await?), "not the tier's rate");
    stack.registry.edit("burst: 50\n  requests-per-s: 10\n", "burst: 90\n  requests-per-s: 9\n")?;
    bites_everywhere(&stack, (clients, accepted), policy("\"burst\";q=90;w=10")).await
}

async fn a_rotated_key_serves_the_same_data(stack: Arc<Stack>) -> Result<()> {
    let at = "p=index&c=1.1.1/1.1.1/1.1.1";
    let bob = stack.tenant("bob")?;
    bob.get(&format!("/api/v2/update?{at}&s=mine")).await?.expect_ok()?;
    let key = stack.registry.rotate("bob")?;
    let new = stack.client(Http::Two)?.key(&key);
    status_within_a_second(&new, 200).await?;
    let answer = new.get(&format!("/api/v2/select?{at}")).await?;
    ensure!(answer.text() == "mine", "{} {:?}", answer.status, answer.text());
    Ok(())
}

async fn a_bad_edit_of_the_registry_changes_nothing(stack: Arc<Stack>) -> Result<()> {
    let alice = stack.tenant("alice")?;
    alice.get(TOC).await?.expect_ok()?;
    let good = std::fs::read(stack.registry.file())?;
    stack.registry.edit("tier: test\n", "tier: test\n  nonsense here\n")?;
    ensure!(stack.registry.run("check", &[]).is_err(), "the bad edit is no bad edit");
    let relay = stack.relay.client();
    let says = |source: &'static str| {
        until(format!("the source to be {source}"), PATIENCE, move || async move {
            let ready = relay.get("/readyz").await.ok()?;
            (ready.ok() && ready.text().contains(&format!("\"source\":\"{source}\""))).then_some(())
        })
    };
    says("refused").await?;
    let metrics = relay.get("/metrics").await?.text();
    ensure!(metrics.contains("\nsq_relay_registry_source_good 0\n"), "{metrics}");
    // Bob has never been asked for: his verdict comes from the registry that was good.
    let bob = stack.tenant("bob")?;
    holds(BITES_WITHIN * 2, || async {
        for client in [&alice, &bob] {
            client.get(TOC).await?.expect_ok()?;
        }
        Ok(())
    })
    .await?;
    std::fs::write(stack.registry.file(), good)?;
    says("good").await?;
    alice.get(TOC).await?.expect_ok()?;
    Ok(())
}

async fn without_the_relay_known_keys_work_and_unknown_ones_get_503(
    stack: Arc<Stack>,
) -> Result<()> {
    let alice = stack.tenant("alice")?;
    alice.get(TOC).await?.expect_ok()?;
    stack.relay.service().kill();
    let known = stack.client(Http::Two)?.key(stack.key("alice")?);
    for client in [&alice, &known] {
        client.get(TOC).await?.expect_ok()?;
    }
    let value = format!("Bearer {}", stack.key("bob")?);
    let expected = include_str!("refusals/relay-unavailable.txt");
    crate::refusals::check(&stack, &[("authorization", &value)], TOC, expected).await?;
    stack.relay.start().await?;
    let bob = stack.tenant("bob")?;
    until("bob to be served again", PATIENCE, || async {
        bob.get(TOC).await.ok()?.ok().then_some(())
    })
    .await
}
