//! What HTTP asks of every server: statuses that hold whatever the content type, `OPTIONS`, offers to
//! upgrade, and addresses of IPv6.

use std::sync::Arc;

use anyhow::{Result, ensure};
use harness::client::raw::Raw;
use harness::client::{FIRST_SCROLL, TOC};
use harness::{Http, Stack, StackBuilder};
use hyper::Method;

use crate::shared_stack::MAIN;
use crate::suite::{Case, On, case};

/// Requests without a key that one client may send at once.
const KEYLESS_BURST: u64 = 1_000;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(MAIN, refused_grpc_request_has_its_http_status),
        case!(MAIN, precondition_of_a_write_is_never_ignored),
        case!(MAIN, options_names_the_methods_of_an_endpoint),
        case!(MAIN, offered_upgrade_is_ignored),
        case!(MAIN, page_may_send_any_method_and_header),
        case!(MAIN, pages_for_everybody_need_no_key),
        case!(On::Own(behind_a_proxy), keyless_limit_counts_networks_of_ipv6).exclusive(),
    ]
}

/// A stack that takes the client's address from `x-forwarded-for`.
fn behind_a_proxy() -> StackBuilder {
    Stack::builder().workers(1).envoy_change(
        "use_remote_address: true",
        "use_remote_address: true\n          xff_num_trusted_hops: 1",
    )
}

async fn refused_grpc_request_has_its_http_status(stack: Arc<Stack>) -> Result<()> {
    let update = format!("/api/v2/update?p=grpc&{FIRST_SCROLL}");
    for http in [Http::One, Http::Two] {
        for grpc in ["application/grpc", "application/grpc+proto"] {
            let headers = [("content-type", grpc)];
            for client in [stack.client(http)?, stack.tenant("bob")?] {
                for (method, path) in
                    [(Method::POST, &*update), (Method::GET, TOC), (Method::GET, "/other")]
                {
                    let response = client.send(method, path, &headers, "x".into()).await?;
                    ensure!(response.status == 415, "{grpc} {path}: {response:?}");
                    let message = response.header("grpc-message");
                    ensure!(message.contains("urn:sq:problem:grpc"), "{grpc} {path}: {message}");
                }
            }
        }
    }
    // Types that Envoy does not take for gRPC.
    let client = stack.tenant("bob")?;
    for other in ["application/grpc-web", "application/json"] {
        let headers = [("content-type", other)];
        client.send(Method::POST, &update, &headers, "x".into()).await?.expect_ok()?;
    }
    Ok(())
}

async fn precondition_of_a_write_is_never_ignored(stack: Arc<Stack>) -> Result<()> {
    let at = format!("p=precondition&{FIRST_SCROLL}");
    let update = format!("/api/v2/update?{at}");
    for http in [Http::One, Http::Two] {
        let client = stack.client(http)?.key(stack.key("bob")?);
        client.post(&update, "v1").await?.expect_ok()?;
        for precondition in [("if-match", "\"stale\""), ("if-none-match", "*")] {
            let delete = format!("/api/v2/delete?{at}");
            for (method, path) in [(Method::POST, &update), (Method::DELETE, &delete)] {
                let body = if method == Method::POST { "v2" } else { "" };
                let response = client.send(method, path, &[precondition], body.into()).await?;
                response.expect_problem(501, "not-implemented")?;
            }
        }
        client.get(&format!("/api/v2/select?{at}")).await?.expect_text(200, "v1")?;
    }
    Ok(())
}

async fn options_names_the_methods_of_an_endpoint(stack: Arc<Stack>) -> Result<()> {
    for client in [stack.client(Http::One)?, stack.tenant("bob")?] {
        for (path, allowed) in [
            (TOC, "GET, HEAD, OPTIONS"),
            ("/api/v2/update", "GET, POST, OPTIONS"),
            ("/api/v2/delete", "GET, POST, DELETE, OPTIONS"),
        ] {
            let response = client.send(Method::OPTIONS, path, &[], "".into()).await?;
            let response = response.expect_status(204)?;
            ensure!(response.header("allow") == allowed, "{path}: {response:?}");
        }
    }
    Ok(())
}

async fn offered_upgrade_is_ignored(stack: Arc<Stack>) -> Result<()> {
    let key = stack.key("bob")?;
    for protocol in ["websocket", "TLS/1.2", "h2c"] {
        let request = format!(
            "GET {TOC} HTTP/1.1\r\nhost: x\r\nauthorization: {key}\r\nupgrade: {protocol}\r\n\
             connection: upgrade, close\r\n\r\n"
        );
        let response =
            Raw::exchange(stack.listen.https, &stack.certs.ca(), request.as_bytes()).await?;
        ensure!(response.starts_with("HTTP/1.1 200 "), "{protocol}: {response}");
    }
    Ok(())
}

/// A page's program can read the refusal of a method or header, instead of "Failed to fetch".
async fn page_may_send_any_method_and_header(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client(Http::Two)?;
    let preflight = [
        ("origin", "https://app.example"),
        ("access-control-request-method", "PUT"),
        ("access-control-request-headers", "authorization,traceparent,baggage,sentry-trace"),
    ];
    let response = client.send(Method::OPTIONS, TOC, &preflight, "".into()).await?;
    let response = response.expect_status(204)?;
    let list = |name| response.header(name).split(", ").map(str::to_owned).collect::<Vec<_>>();
    let methods = list("access-control-allow-methods");
    let headers = list("access-control-allow-headers");
    ensure!(methods.iter().any(|method| method == "PUT"), "{methods:?}");
    ensure!(headers.iter().any(|header| header == "*"), "{headers:?}");
    ensure!(headers.iter().any(|header| header == "Authorization"), "`*` leaves it out");
    let refused = stack.tenant("bob")?.send(Method::PUT, TOC, &preflight[..1], "".into()).await?;
    let refused = refused.expect_status(405)?;
    ensure!(refused.header("access-control-expose-headers").contains("Allow"), "{refused:?}");
    Ok(())
}

async fn pages_for_everybody_need_no_key(stack: Arc<Stack>) -> Result<()> {
    for http in [Http::One, Http::Two] {
        let client = stack.client(http)?;
        client.get("/healthz").await?.expect_text(200, "ok\n")?;
        client.send(Method::HEAD, "/healthz", &[], "".into()).await?.expect_status(200)?;
        let robots = client.get("/robots.txt").await?.expect_ok()?;
        ensure!(robots.text().contains("Disallow"), "{robots:?}");
        let agents = client.get("/llms.txt").await?.expect_ok()?;
        ensure!(agents.header("content-type") == "text/plain; charset=utf-8", "{agents:?}");
        ensure!(agents.text().contains("/api/v2/select"), "{agents:?}");
    }
    Ok(())
}

async fn keyless_limit_counts_networks_of_ipv6(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client(Http::Two)?;
    let refused = |number: u64, network: &'static str| {
        let client = client.clone();
        async move {
            let address = format!("{network}::{number:x}");
            let headers = [("x-forwarded-for", address.as_str())];
            let status = client.get_with_headers(TOC, &headers).await?.status;
            ensure!([401, 429].contains(&status), "{status}");
            Ok(status == 429)
        }
    };
    let started = std::time::Instant::now();
    let mut passed = 0;
    while !refused(passed, "2001:db8:0:1").await? {
        passed += 1;
        // The bucket gets 100 tokens a second.
        let most = KEYLESS_BURST + 100 * (1 + started.elapsed().as_secs());
        ensure!(passed <= most, "{passed} addresses of one network passed");
    }
    ensure!(passed >= KEYLESS_BURST, "{passed} passed");
    ensure!(!refused(1, "2001:db8:0:2").await?, "another network is refused as well");
    Ok(())
}
