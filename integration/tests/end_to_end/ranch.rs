//! A change of the registry takes effect within a second on every worker. An invalid registry or a
//! stopped relay does not affect the tenants that are served.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use harness::client::TOC;
use harness::{Client, Http, Response, Stack, StackBuilder, Tier, holds, until};

use crate::refusals;
use crate::suite::{Case, On, case};

/// Promised time from saving the registry to its effect on every worker.
const EFFECTIVE_WITHIN: Duration = Duration::from_secs(1);
/// Deadline for conditions without a promised time.
const PATIENCE: Duration = Duration::from_secs(10);
const WORKERS: u32 = 4;
/// The kernel spreads connections over the workers by port. Never have more than these been needed
/// to reach every worker.
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
    let four = On::Own(four_workers);
    let two = On::Own(two_workers);
    vec![
        case!(four, revoked_key_is_refused_everywhere_within_a_second).exclusive(),
        case!(four, changed_tier_applies_everywhere_within_a_second).exclusive(),
        case!(two, rotated_key_serves_the_same_data).exclusive(),
        case!(two, invalid_registry_edit_changes_nothing),
        case!(two, without_the_relay_only_cached_keys_work),
    ]
}

/// Waits until the client gets a response of this status, at most a second.
pub(crate) async fn status_within_a_second(client: &Client, status: u16) -> Result<()> {
    until(format!("status {status}"), EFFECTIVE_WITHIN, || async {
        (client.get(TOC).await.ok()?.status == status).then_some(())
    })
    .await
}

/// Numbers of connections that each worker has accepted since Envoy started.
async fn accepted_connections(stack: &Stack) -> Result<Vec<u64>> {
    let mut accepted = Vec::new();
    for worker in 0..WORKERS {
        let name =
            format!("listener.0.0.0.0_{}.worker_{worker}.downstream_cx_total", stack.listen.https);
        accepted.push(stack.envoy.stat(&name).await?);
    }
    Ok(accepted)
}

/// Clients of one tenant with one open connection each, at least one at every worker.
struct Connections {
    clients: Vec<Client>,
    /// Connections that each worker had accepted when the last of these was opened.
    accepted: Vec<u64>,
}

impl Connections {
    /// Opens connections until every worker has one. The stack must have no other client.
    async fn open(stack: &Stack, tenant: &str) -> Result<Self> {
        let mut clients = Vec::new();
        while clients.len() < CONNECTIONS_MAX {
            let client = stack.client(Http::One)?.key(stack.key(tenant)?);
            client.get(TOC).await?.expect_ok()?;
            clients.push(client);
            let accepted = accepted_connections(stack).await?;
            if accepted.iter().all(|connections| *connections > 0) {
                let sum: u64 = accepted.iter().sum();
                ensure!(sum == clients.len() as u64, "other clients connected: {accepted:?}");
                return Ok(Self { clients, accepted });
            }
        }
        let accepted = accepted_connections(stack).await?;
        bail!("a worker got none of {CONNECTIONS_MAX} connections: {accepted:?}")
    }

    /// Waits until every connection sees the change, at most a second from now in all. Fails if
    /// one of them was replaced by a new connection, which might be at another worker.
    async fn expect_change(
        &self,
        stack: &Stack,
        changed: impl Fn(&Response) -> bool,
    ) -> Result<()> {
        let saved = Instant::now();
        for client in &self.clients {
            let left = EFFECTIVE_WITHIN.saturating_sub(saved.elapsed());
            until("the change at this connection", left, || async {
                changed(&client.get(TOC).await.ok()?).then_some(())
            })
            .await?;
        }
        let accepted = accepted_connections(stack).await?;
        ensure!(accepted == self.accepted, "new connections: {:?}, {accepted:?}", self.accepted);
        Ok(())
    }
}

async fn revoked_key_is_refused_everywhere_within_a_second(stack: Arc<Stack>) -> Result<()> {
    let connections = Connections::open(&stack, "carol").await?;
    stack.registry.remove("carol")?;
    connections.expect_change(&stack, |response| response.status == 401).await
}

async fn changed_tier_applies_everywhere_within_a_second(stack: Arc<Stack>) -> Result<()> {
    let connections = Connections::open(&stack, "dora").await?;
    let first = connections.clients.first().context("no client")?;
    let policy = first.get(TOC).await?.header("ratelimit-policy").to_owned();
    ensure!(policy == "\"burst\";q=50;w=5", "not the tier's rate: {policy}");
    stack.registry.edit("burst: 50\n  requests-per-s: 10\n", "burst: 90\n  requests-per-s: 9\n")?;
    let new = "\"burst\";q=90;w=10";
    connections.expect_change(&stack, |response| response.header("ratelimit-policy") == new).await
}

async fn rotated_key_serves_the_same_data(stack: Arc<Stack>) -> Result<()> {
    stack.tenant("bob")?.update("index", "mine").await?.expect_ok()?;
    let key = stack.registry.rotate("bob")?;
    let bob = stack.client(Http::Two)?.key(&key);
    status_within_a_second(&bob, 200).await?;
    bob.select("index").await?.expect_text(200, "mine")?;
    Ok(())
}

async fn invalid_registry_edit_changes_nothing(stack: Arc<Stack>) -> Result<()> {
    let alice = stack.tenant("alice")?;
    alice.get(TOC).await?.expect_ok()?;
    let valid = std::fs::read(stack.registry.file())?;
    stack.registry.edit("tier: test\n", "tier: test\n  nonsense here\n")?;
    ensure!(stack.registry.run("check", &[]).is_err(), "the edited registry is valid");
    until_source(&stack, "refused").await?;
    let metrics = stack.relay.client().get("/metrics").await?.text();
    ensure!(metrics.contains("\nsq_relay_registry_source_good 0\n"), "{metrics}");
    // No worker has bob's verdict yet, so it comes from the last valid registry.
    let bob = stack.tenant("bob")?;
    holds(EFFECTIVE_WITHIN * 2, || async {
        for client in [&alice, &bob] {
            client.get(TOC).await?.expect_ok()?;
        }
        Ok(())
    })
    .await?;
    std::fs::write(stack.registry.file(), valid)?;
    until_source(&stack, "good").await?;
    alice.get(TOC).await?.expect_ok()?;
    Ok(())
}

/// Waits until the relay, which must be ready, reports this condition of its source.
async fn until_source(stack: &Stack, condition: &str) -> Result<()> {
    let expected = format!("\"source\":\"{condition}\"");
    until(format!("the source to be {condition}"), PATIENCE, || async {
        let ready = stack.relay.client().get("/readyz").await.ok()?;
        (ready.ok() && ready.text().contains(&expected)).then_some(())
    })
    .await
}

async fn without_the_relay_only_cached_keys_work(stack: Arc<Stack>) -> Result<()> {
    let alice = stack.tenant("alice")?;
    alice.get(TOC).await?.expect_ok()?;
    stack.relay.service().kill();
    let other_connection = stack.client(Http::Two)?.key(stack.key("alice")?);
    for client in [&alice, &other_connection] {
        client.get(TOC).await?.expect_ok()?;
    }
    let expected = include_str!("refusals/relay-unavailable.txt");
    refusals::check_tenant(&stack, "bob", TOC, expected).await?;
    stack.relay.start().await?;
    let bob = stack.tenant("bob")?;
    until("bob to be served again", PATIENCE, || async {
        bob.get(TOC).await.ok()?.ok().then_some(())
    })
    .await
}
