//! Two tenants never meet, whatever they send.

use harness::{Client, Http, Stack};
use std::sync::Arc;

use anyhow::{Result, ensure};
use hyper::Method;

use crate::world::{Case, case};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(crate::refusals::MAIN, two_tenants_never_see_each_others_data),
        case!(crate::refusals::MAIN, a_spoofed_header_changes_nothing),
        case!(crate::refusals::MAIN, a_path_leads_nowhere_else),
        case!(crate::refusals::MAIN, a_web_page_can_ask_the_orchestrator_nothing),
    ]
}

/// Where a text stands in a case's own phext: cases share the stack and run side by side.
fn at(phext: &str) -> String {
    format!("p={phext}&c=1.1.1/1.1.1/1.1.1")
}

async fn text(client: &Client, phext: &str) -> Result<String> {
    let answer = client.get(&format!("/api/v2/select?{}", at(phext))).await?.expect_ok()?;
    Ok(answer.text())
}

/// What stands in a tenant's diary, and nowhere else.
fn secret(name: &str) -> String {
    format!("{name}-was-here")
}

/// Writes a text into each tenant's own diary, the phext of this name.
async fn diaries(stack: &Stack, phext: &str) -> Result<(Client, Client)> {
    let (alice, bob) = (stack.tenant("alice")?, stack.tenant("bob")?);
    for (client, name) in [(&alice, "alice"), (&bob, "bob")] {
        let path = format!("/api/v2/update?{}&s={}", at(phext), secret(name));
        client.get(&path).await?.expect_ok()?;
    }
    Ok((alice, bob))
}

async fn two_tenants_never_see_each_others_data(stack: Arc<Stack>) -> Result<()> {
    let (alice, bob) = diaries(&stack, "met").await?;
    let (hers, his) = (text(&alice, "met").await?, text(&bob, "met").await?);
    ensure!(hers == secret("alice") && his == secret("bob"), "mixed up: {hers} {his}");
    // One connection that carries both keys in turn.
    let both = stack.client(Http::Two)?;
    for _ in 0..20 {
        for name in ["alice", "bob"] {
            let said = text(&both.key(stack.key(name)?), "met").await?;
            ensure!(said == secret(name), "{name} was given {said:?}");
        }
    }
    Ok(())
}

async fn a_spoofed_header_changes_nothing(stack: Arc<Stack>) -> Result<()> {
    let (alice, bob) = diaries(&stack, "spoofed").await?;
    let bobs = stack.key("bob")?;
    let bearer = format!("Bearer {bobs}");
    for (name, value) in [
        ("x-sq-cluster", "sq/bob"),
        ("X-SQ-Cluster", "ranch_relay"),
        ("x-sq-cluster", "orchestrator"),
        ("x-sq-cluster", "xds"),
        ("x-sq-tenant", "bob"),
        ("x-sq-anything", "sq/bob"),
        ("authorization-foo", bearer.as_str()),
        ("authorization2", bobs),
        ("x-forwarded-host", "bob"),
        ("x-original-url", "/api/v2/select?p=spoofed&c=1.1.1/1.1.1/1.1.2"),
        ("x-rewrite-url", "/api/v2/version"),
        ("x-envoy-original-path", "/api/v2/version"),
        ("x-envoy-upstream-alt-stat-name", "x"),
        ("x-envoy-max-retries", "0"),
        ("x-envoy-upstream-rq-timeout-ms", "1"),
        ("x-http-method-override", "DELETE"),
    ] {
        for http in [Http::One, Http::Two] {
            let client = stack.client(http)?.key(stack.key("alice")?);
            let path = format!("/api/v2/select?{}", at("spoofed"));
            let answer = client.get_with_headers(&path, &[(name, value)]).await?.expect_ok()?;
            ensure!(answer.text() == secret("alice"), "{name}: {value} gave {:?}", answer.text());
            // What is written under it lands in her diary too, whoever it says that she is.
            let path = format!("/api/v2/update?{}&s=under-{name}-by-{http:?}", at("spoofed"));
            client.get_with_headers(&path, &[(name, value)]).await?.expect_ok()?;
            let (hers, his) = (text(&alice, "spoofed").await?, text(&bob, "spoofed").await?);
            ensure!(path.ends_with(&hers), "{name}: {value} wrote elsewhere: {hers:?}");
            ensure!(his == secret("bob"), "{name}: {value} wrote to bob: {his:?}");
            diaries(&stack, "spoofed").await?;
        }
    }
    // Such headers are no key either.
    let nobody = stack.client(Http::One)?;
    let path = format!("/api/v2/select?{}", at("spoofed"));
    let answer = nobody.get_with_headers(&path, &[("authorization-foo", bearer.as_str())]).await?;
    ensure!(answer.status == 401, "authorization-foo was taken for a key: {}", answer.status);
    Ok(())
}

async fn a_path_leads_nowhere_else(stack: Arc<Stack>) -> Result<()> {
    let (alice, _) = diaries(&stack, "diary").await?;
    for path in [
        "/api/v2/select?p=../bob/diary&c=1.1.1/1.1.1/1.1.1",
        "/api/v2/select?p=%2e%2e%2fbob%2fdiary&c=1.1.1/1.1.1/1.1.1",
        "/api/v2/select?p=/data/bob/diary&c=1.1.1/1.1.1/1.1.1",
        "/api/v2/select?p=..%5Cbob&c=1.1.1/1.1.1/1.1.1",
        "/api/v2/select?p=diary%00&c=1.1.1/1.1.1/1.1.1",
        "/api/v2/../../v1/lease",
        "/v1/lease",
        "/v1/verify",
        "/v1/usage/bob",
        "/sq/bob/api/v2/toc?p=diary",
        "/api/v2/%2e%2e/toc?p=diary",
        "//api/v2/toc?p=diary",
        "/api/v2/select/../toc?p=diary&x=bob",
    ] {
        for method in [Method::GET, Method::POST] {
            let answer = alice.send(method, path, &[], "x".into()).await?;
            let refused = (400..=499).contains(&answer.status);
            ensure!(refused, "{path} is answered with {} {}", answer.status, answer.text());
            ensure!(!answer.text().contains(&secret("bob")), "{path} found bob's diary");
        }
    }
    ensure!(text(&alice, "diary").await? == secret("alice"), "alice's diary has changed");
    Ok(())
}

async fn a_web_page_can_ask_the_orchestrator_nothing(stack: Arc<Stack>) -> Result<()> {
    let admin = stack.orchestrator.admin();
    let gate = Client::plaintext(&format!("http://127.0.0.1:{}", stack.listen.orchestrator.gate))?;
    admin.get("/v1/tenants").await?.expect_ok()?;
    let page = ("origin", "https://evil.example");
    for (client, path) in [(admin, "/v1/tenants"), (admin, "/metrics"), (&gate, "/v1/lease")] {
        let answer = client.send(Method::POST, path, &[page], "{}".into()).await?;
        ensure!(answer.status == 403, "{path}: {}", answer.status);
    }
    let answer = admin.get_with_headers("/v1/tenants", &[("host", "evil.example:7102")]).await?;
    ensure!(answer.status == 403, "by another name: {}", answer.status);
    Ok(())
}
