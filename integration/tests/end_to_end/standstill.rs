//! Envoy stands still, and nothing is refused or passed that would not have been without it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use harness::client::FIRST_SCROLL;
use harness::client::raw::Raw;
use harness::{Stack, StackBuilder, Tier, until};
use rustix::process::Signal;

use crate::suite::{Case, On, case};

/// Bucket of the tenant: all of it fills within a second.
const BURST: usize = 12;
/// Time for which Envoy stands still.
const STILL: Duration = Duration::from_millis(1_500);
/// Standstills. The refusals depended on which worker's clock was read first.
const ROUNDS: usize = 6;
/// Deadline for a change of the registry to reach every worker.
const PATIENCE: Duration = Duration::from_secs(10);

fn small_bucket() -> StackBuilder {
    let tier = Tier::unlimited("small").set("requests-per-s", BURST).set("burst", BURST);
    Stack::builder().tier(tier).tenant_in_tier("alice", "small")
}

fn one_tenant() -> StackBuilder {
    Stack::builder().tenant("alice")
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(On::Own(small_bucket), standstill_of_envoy_costs_no_token).exclusive(),
        case!(On::Own(one_tenant), upload_ended_after_a_suspension_is_not_stored),
    ]
}

/// Waits for a time: the standstill itself is the condition.
async fn pass(time: Duration) -> Result<()> {
    let began = Instant::now();
    until("the time to pass", 2 * time, || async { (began.elapsed() >= time).then_some(()) }).await
}

/// A full bucket answers a burst that arrives while Envoy stands still, whichever worker reads it.
async fn standstill_of_envoy_costs_no_token(stack: Arc<Stack>) -> Result<()> {
    let key = stack.key("alice")?;
    stack.tenant("alice")?.update("index", "text").await?.expect_ok()?;
    let request = format!(
        "GET /api/v2/select?p=index&{FIRST_SCROLL} HTTP/1.1\r\nHost: a\r\n\
         Authorization: Bearer {key}\r\n\r\n"
    );
    let mut clients = Vec::new();
    for _ in 0..BURST {
        clients.push(Raw::connect(stack.listen.https, &stack.certs.ca()).await?);
    }
    for round in 0..ROUNDS {
        pass(Duration::from_millis(1_200)).await?;
        stack.envoy.signal(Signal::STOP)?;
        // Sent in the middle of the standstill: all of it waits in the sockets at its end.
        for client in &mut clients {
            client.write(request.as_bytes()).await?;
        }
        pass(STILL).await?;
        stack.envoy.signal(Signal::CONT)?;
        let mut refused = 0;
        for client in &mut clients {
            let response = client.request("").await?;
            refused += usize::from(!response.starts_with("HTTP/1.1 200"));
        }
        ensure!(refused == 0, "round {round}: {refused} of {BURST} refused by a full bucket");
    }
    Ok(())
}

/// The head of the upload came while the tenant was active, and its end after the suspension.
async fn upload_ended_after_a_suspension_is_not_stored(stack: Arc<Stack>) -> Result<()> {
    let alice = stack.tenant("alice")?;
    alice.update("index", "before").await?.expect_ok()?;
    let key = stack.key("alice")?;
    let mut upload = Raw::connect(stack.listen.https, &stack.certs.ca()).await?;
    let head = format!(
        "POST /api/v2/update?p=index&{FIRST_SCROLL} HTTP/1.1\r\nHost: a\r\n\
         Authorization: Bearer {key}\r\nContent-Length: 5\r\n\r\nafte"
    );
    upload.write(head.as_bytes()).await?;
    until("the upload to be under way", PATIENCE, || async {
        (stack.envoy.stat("http.https.downstream_rq_active").await.ok()? > 0).then_some(())
    })
    .await?;
    stack.registry.suspend("alice")?;
    until("the suspension to hold", PATIENCE, || async {
        (alice.select("index").await.ok()?.status == 403).then_some(())
    })
    .await?;
    let response = upload.request("r").await?;
    ensure!(response.starts_with("HTTP/1.1 403"), "{response}");
    stack.registry.resume("alice")?;
    until("the tenant to be served again", PATIENCE, || async {
        alice.select("index").await.ok()?.ok().then_some(())
    })
    .await?;
    alice.select("index").await?.expect_text(200, "before")?;
    Ok(())
}
