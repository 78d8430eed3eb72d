//! The orchestrator's own sockets: the filter's routes and the operator's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use harness::{Client, Lifecycle, Load, Response, Stack, StackBuilder, until};
use hyper::Method;
use serde_json::{Value, json};

use crate::suite::{Case, On, case};

const PATIENCE: Duration = Duration::from_secs(30);

fn one_tenant() -> StackBuilder {
    Stack::builder().tenant("alice").lifecycle(Lifecycle::short_leases())
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(On::Own(one_tenant), orchestrator_routes_refuse_invalid_requests),
        case!(On::Own(one_tenant), readers_wait_while_a_snapshot_is_restored),
    ]
}

/// Requests a lease with a JSON body.
async fn lease(gate: &Client, body: impl Into<String>) -> Result<Response> {
    let json = [("content-type", "application/json")];
    gate.send(Method::POST, "/v1/lease", &json, body.into().into()).await
}

/// The body of a lease request, with further or other fields.
fn lease_body(fields: Value) -> String {
    let mut body = json!({"gateway": "g", "tenant": "carol", "tier": "free", "limits": {}});
    if let (Value::Object(body), Value::Object(fields)) = (&mut body, fields) {
        body.extend(fields);
    }
    body.to_string()
}

/// Fails unless the response has this status and its body contains `text`.
fn expect(response: Response, status: u16, text: &str) -> Result<Response> {
    let response = response.expect_status(status)?;
    ensure!(response.text().contains(text), "{text:?} is not in {:?}", response.text());
    Ok(response)
}

async fn orchestrator_routes_refuse_invalid_requests(stack: Arc<Stack>) -> Result<()> {
    let gate = stack.orchestrator.gate();
    lease(&gate, "{").await?.expect_status(400)?;
    lease(&gate, lease_body(json!({"tenant": "../x"}))).await?.expect_status(422)?;
    lease(&gate, "x".repeat(65 * 1024)).await?.expect_status(413)?;
    gate.get("/v1/lease").await?.expect_status(405)?;
    let asleep = lease(&gate, lease_body(json!({"renew_only": true}))).await?;
    let asleep = expect(asleep, 503, "\"asleep\"")?;
    ensure!(asleep.header("retry-after") == "1", "{asleep:?}");
    // No Envoy named `g` is connected, so the refusal comes when the client's patience ends.
    let began = Instant::now();
    let refused = lease(&gate, lease_body(json!({"patience_ms": 1500}))).await?;
    expect(refused, 503, "retry_after_s")?;
    ensure!(began.elapsed() < Duration::from_secs(8), "it took {:?}", began.elapsed());

    let admin = stack.orchestrator.admin();
    for (path, text) in [("/readyz", "ready"), ("/v1/tenants", "\"tenants\"")] {
        expect(admin.get(path).await?, 200, text)?;
    }
    for route in ["sleep", "repaired"] {
        for tenant in ["unseen", "..%2Fx"] {
            let response = admin.post(&format!("/v1/tenants/{tenant}/{route}"), "").await?;
            expect(response, 404, "unknown tenant")?;
        }
        admin.get(&format!("/v1/tenants/alice/{route}")).await?.expect_status(405)?;
    }
    admin.post("/v1/tenants/alice/sleep?now=true", "").await?.expect_status(400)?;
    admin.post("/v1/tenants/alice/snapshots/1/restore", "").await?.expect_status(404)?;
    Ok(())
}

async fn readers_wait_while_a_snapshot_is_restored(stack: Arc<Stack>) -> Result<()> {
    let alice = stack.tenant("alice")?;
    alice.update("index", "before").await?.expect_ok()?;
    stack.orchestrator.put_to_sleep("alice", PATIENCE).await?;
    let admin = stack.orchestrator.admin();
    let taken_s = until("a snapshot", PATIENCE, || async {
        let snapshots: Value = admin.get("/v1/tenants/alice/snapshots").await.ok()?.json().ok()?;
        snapshots.get(0)?["taken_s"].as_u64()
    })
    .await?;
    alice.update("index", "after").await?.expect_ok()?;
    let path = format!("/v1/tenants/alice/snapshots/{taken_s}/restore");
    expect(admin.post(&path, "").await?, 409, "awake")?;
    let reader = alice.clone();
    let load = Load::start(4, Duration::from_millis(20), move |_, _| {
        let reader = reader.clone();
        async move { reader.select("index").await }
    });
    until("some reads", PATIENCE, || async { (load.requests() > 50).then_some(()) }).await?;
    expect(admin.post(&format!("{path}?sleep=true"), "").await?, 200, "before_s")?;
    let enough = load.requests() + 50;
    until("more reads", PATIENCE, || async { (load.requests() > enough).then_some(()) }).await?;
    let outcome = load.finish().await;
    ensure!(outcome.errors == 0, "{outcome:?}");
    alice.select("index").await.context("after the restore")?.expect_text(200, "before")?;
    Ok(())
}
