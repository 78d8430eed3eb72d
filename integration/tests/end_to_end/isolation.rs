//! Isolation between tenants: no request of one tenant reaches the data of another.

use std::sync::Arc;

use anyhow::{Result, ensure};
use harness::client::FIRST_SCROLL;
use harness::{Client, Http, Stack};
use hyper::Method;

use crate::shared_stack::MAIN;
use crate::suite::{Case, case};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(MAIN, tenants_never_see_each_others_data),
        case!(MAIN, spoofed_headers_change_nothing),
        case!(MAIN, crafted_paths_are_refused),
        case!(MAIN, web_pages_cannot_read_the_metrics),
    ]
}

async fn read(client: &Client, phext: &str) -> Result<String> {
    Ok(client.select(phext).await?.expect_ok()?.text())
}

/// The text in a tenant's diary, and nowhere else.
fn secret(tenant: &str) -> String {
    format!("{tenant}-was-here")
}

/// Clients of two tenants.
struct Tenants {
    alice: Client,
    bob: Client,
}

/// Writes each tenant's secret into the tenant's own phext of this name.
async fn write_diaries(stack: &Stack, phext: &str) -> Result<Tenants> {
    let alice = stack.tenant("alice")?;
    let bob = stack.tenant("bob")?;
    alice.update(phext, &secret("alice")).await?.expect_ok()?;
    bob.update(phext, &secret("bob")).await?.expect_ok()?;
    Ok(Tenants { alice, bob })
}

async fn tenants_never_see_each_others_data(stack: Arc<Stack>) -> Result<()> {
    let Tenants { alice, bob } = write_diaries(&stack, "met").await?;
    alice.select("met").await?.expect_text(200, &secret("alice"))?;
    bob.select("met").await?.expect_text(200, &secret("bob"))?;
    // One connection that carries both keys in turn.
    let connection = stack.client(Http::Two)?;
    for _ in 0..20 {
        for tenant in ["alice", "bob"] {
            let client = connection.key(stack.key(tenant)?);
            client.select("met").await?.expect_text(200, &secret(tenant))?;
        }
    }
    Ok(())
}

async fn spoofed_headers_change_nothing(stack: Arc<Stack>) -> Result<()> {
    let Tenants { alice, bob } = write_diaries(&stack, "spoofed").await?;
    let bobs_key = stack.key("bob")?;
    let bobs_bearer = format!("Bearer {bobs_key}");
    let select = format!("/api/v2/select?p=spoofed&{FIRST_SCROLL}");
    for (name, value) in [
        ("x-sq-cluster", "sq/bob"),
        ("X-SQ-Cluster", "ranch_relay"),
        ("x-sq-cluster", "orchestrator"),
        ("x-sq-cluster", "xds"),
        ("x-sq-cluster", "envoy_admin"),
        ("x-sq-tenant", "bob"),
        ("x-sq-anything", "sq/bob"),
        ("authorization-foo", bobs_bearer.as_str()),
        ("authorization2", bobs_key),
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
            let read_back =
                client.get_with_headers(&select, &[(name, value)]).await?.expect_ok()?;
            ensure!(
                read_back.text() == secret("alice"),
                "{name}: {value} returned {:?}",
                read_back.text()
            );
            // A write with the header lands in alice's diary, whatever the header claims.
            let written = format!("under-{name}-by-{http:?}");
            let update = format!("/api/v2/update?p=spoofed&{FIRST_SCROLL}&s={written}");
            client.get_with_headers(&update, &[(name, value)]).await?.expect_ok()?;
            let hers = read(&alice, "spoofed").await?;
            ensure!(hers == written, "{name}: {value} did not write to alice: {hers:?}");
            let his = read(&bob, "spoofed").await?;
            ensure!(his == secret("bob"), "{name}: {value} wrote to bob: {his:?}");
            write_diaries(&stack, "spoofed").await?;
        }
    }
    // Nor is a key in such a header accepted.
    let keyless = stack.client(Http::One)?;
    let headers = [("authorization-foo", bobs_bearer.as_str())];
    keyless.get_with_headers(&select, &headers).await?.expect_status(401)?;
    Ok(())
}

async fn crafted_paths_are_refused(stack: Arc<Stack>) -> Result<()> {
    let Tenants { alice, .. } = write_diaries(&stack, "diary").await?;
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
            let response = alice.send(method, path, &[], "x".into()).await?;
            let refused = (400..=499).contains(&response.status);
            ensure!(refused, "{}: {} {}", response.request, response.status, response.text());
            ensure!(!response.text().contains(&secret("bob")), "{path} returned bob's diary");
        }
    }
    alice.select("diary").await?.expect_text(200, &secret("alice"))?;
    Ok(())
}

/// A web page in an operator's browser can send requests to the loopback. `Origin` gives them away,
/// and `Host` does after DNS rebinding.
async fn web_pages_cannot_read_the_metrics(stack: Arc<Stack>) -> Result<()> {
    let parts = [
        (stack.orchestrator.metrics(), "/metrics", 403),
        (stack.envoy.metrics(), "/stats/prometheus", 404),
    ];
    for (client, path, refused) in parts {
        client.get(path).await?.expect_ok()?;
        for header in [("origin", "https://evil.example"), ("host", "evil.example:7102")] {
            client.get_with_headers(path, &[header]).await?.expect_status(refused)?;
        }
    }
    Ok(())
}
