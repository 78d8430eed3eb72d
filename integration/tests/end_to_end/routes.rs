//! What the orchestrator answers on its own ports: to the filter, and to its operator.

use harness::{Client, Lifecycle, Load, Response, Stack, StackBuilder, until};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hyper::Method;
use serde_json::{Value, json};

use crate::suite::{Case, On, case};

const PATIENCE: Duration = Duration::from_secs(30);
const AT: &str = "p=index&c=1.1.1/1.1.1/1.1.1";

fn one_tenant() -> StackBuilder {
    Stack::builder().tenant("alice").lifecycle(Lifecycle::short_leases())
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(On::Own(one_tenant), every_route_says_what_it_refuses),
        case!(On::Own(one_tenant), a_restore_holds_its_tenant_asleep_and_its_readers_wait),
    ]
}

async fn post(client: &Client, path: &str, body: String) -> Result<Response> {
    client.send(Method::POST, path, &[("content-type", "application/json")], body.into()).await
}

fn is(answer: &Response, status: u16, said: &str) -> Result<()> {
    let text = answer.text();
    ensure!(
        answer.status == status && text.contains(said),
        "{status} {said}: {} {text}",
        answer.status
    );
    Ok(())
}

async fn every_route_says_what_it_refuses(stack: Arc<Stack>) -> Result<()> {
    let gate = Client::plaintext(&format!("http://127.0.0.1:{}", stack.listen.orchestrator.gate))?;
    let lease = |more: Value| {
        let mut body = json!({"gateway": "g", "tenant": "nobody", "tier": "free", "limits": {}});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body.to_string()
    };
    let path = "/v1/lease";
    is(&post(&gate, path, "{".to_owned()).await?, 400, "")?;
    is(&post(&gate, path, lease(json!({"tenant": "../x"}))).await?, 422, "")?;
    is(&post(&gate, path, "x".repeat(65 * 1024)).await?, 413, "")?;
    is(&gate.get(path).await?, 405, "")?;
    let asleep = post(&gate, path, lease(json!({"renew_only": true}))).await?;
    is(&asleep, 503, "\"asleep\"")?;
    ensure!(asleep.header("retry-after") == "1", "{asleep:?}");
    // An Envoy that is not connected: told when the asker's own patience ends.
    let began = std::time::Instant::now();
    is(&post(&gate, path, lease(json!({"patience_ms": 1500}))).await?, 503, "retry_after_s")?;
    ensure!(began.elapsed() < Duration::from_secs(8), "its patience was {:?}", began.elapsed());

    let admin = stack.orchestrator.admin();
    is(&admin.get("/healthz").await?, 200, "ok")?;
    is(&admin.get("/readyz").await?, 200, "ready")?;
    is(&admin.get("/metrics").await?, 200, "sq_orchestrator_ready 1")?;
    is(&admin.get("/v1/tenants").await?, 200, "\"tenants\"")?;
    for route in ["sleep", "repaired"] {
        let path = |tenant: &str| format!("/v1/tenants/{tenant}/{route}");
        is(&admin.post(&path("stranger"), "").await?, 404, "unknown tenant")?;
        is(&admin.post(&path("..%2Fx"), "").await?, 404, "unknown tenant")?;
        is(&admin.get(&path("alice")).await?, 405, "")?;
    }
    is(&admin.post("/v1/tenants/alice/sleep?now=true", "").await?, 400, "")?;
    is(&admin.post("/v1/tenants/alice/snapshots/1/restore", "").await?, 404, "")?;
    Ok(())
}

async fn a_restore_holds_its_tenant_asleep_and_its_readers_wait(stack: Arc<Stack>) -> Result<()> {
    let alice = stack.tenant("alice")?;
    let write = |text: &'static str| {
        let alice = alice.clone();
        async move { is(&alice.get(&format!("/api/v2/update?{AT}&s={text}")).await?, 200, "") }
    };
    write("before").await?;
    stack.orchestrator.put_to_sleep("alice", PATIENCE).await?;
    let admin = stack.orchestrator.admin();
    let taken_s = until("a snapshot", PATIENCE, || async {
        let list = admin.get("/v1/tenants/alice/snapshots").await.ok()?;
        serde_json::from_slice::<Value>(&list.body).ok()?.get(0)?["taken_s"].as_u64()
    })
    .await?;
    write("after").await?;
    let path = format!("/v1/tenants/alice/snapshots/{taken_s}/restore");
    is(&admin.post(&path, "").await?, 409, "awake")?;
    let reader = alice.clone();
    let load = Load::start(4, Duration::from_millis(20), move |_, _| {
        let reader = reader.clone();
        async move { reader.get(&format!("/api/v2/select?{AT}")).await }
    });
    until("some reads", PATIENCE, || async { (load.requests() > 50).then_some(()) }).await?;
    is(&admin.post(&format!("{path}?sleep=true"), "").await?, 200, "before_s")?;
    let enough = load.requests() + 50;
    until("more reads", PATIENCE, || async { (load.requests() > enough).then_some(()) }).await?;
    let seen = load.finish().await;
    ensure!(seen.errors == 0, "{seen:?}");
    let text = alice.get(&format!("/api/v2/select?{AT}")).await.context("at the end")?.text();
    ensure!(text == "before", "it reads {text:?}");
    Ok(())
}
