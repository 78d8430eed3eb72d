//! Responses of SQ as clients receive them: the same headers whether SQ or the gateway wrote the
//! body, and problem documents in place of SQ's failures.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use anyhow::{Result, ensure};
use harness::host::ports;
use harness::{Client, Http, Response, Stack, StackBuilder};
use hyper::header::HeaderName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::suite::{Case, On, case};

fn one_tenant() -> StackBuilder {
    Stack::builder().tenant("alice")
}

/// Port of the listener that responds in place of SQ.
static PORT: LazyLock<u16> = LazyLock::new(|| ports::free().unwrap());

fn failing_sq() -> StackBuilder {
    Stack::builder().tenant("alice").replace_sq("alice", *PORT)
}

pub(crate) fn cases() -> Vec<Case> {
    let shared = On::Shared("responses", one_tenant);
    vec![
        case!(shared, empty_phext_export_has_the_usual_headers),
        case!(On::Own(failing_sq), sq_failures_become_problem_documents),
    ]
}

/// Headers that differ between a body of SQ and one of the gateway.
const FRAMING: [&str; 2] = ["content-length", "transfer-encoding"];

fn header_names(response: &Response) -> BTreeSet<&str> {
    let names = response.headers.keys().map(HeaderName::as_str);
    names.filter(|name| !FRAMING.contains(name)).collect()
}

async fn empty_phext_export_has_the_usual_headers(stack: Arc<Stack>) -> Result<()> {
    for http in [Http::One, Http::Two] {
        let alice = stack.client(http)?.key(stack.key("alice")?);
        alice.update("full", "text").await?.expect_ok()?;
        let full = alice.get("/api/v2/json-export?p=full").await?.expect_ok()?;
        let empty = alice.get("/api/v2/json-export?p=empty").await?.expect_text(200, "[]\n")?;
        ensure!(
            header_names(&empty) == header_names(&full),
            "{:?}\nbut\n{:?}",
            empty.headers,
            full.headers
        );
        for name in [
            "content-type",
            "x-content-type-options",
            "content-security-policy",
            "strict-transport-security",
            "cache-control",
            "access-control-allow-origin",
            "access-control-expose-headers",
            "ratelimit-policy",
        ] {
            let value = empty.header(name);
            let expected = full.header(name);
            ensure!(!expected.is_empty() && value == expected, "{name}: {value:?}, {expected:?}");
        }
    }
    Ok(())
}

/// Responds like SQ, with the status that the phext is named after.
async fn respond_with_named_status(listener: TcpListener) -> Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        let mut head = vec![0; 4096];
        let length = stream.read(&mut head).await?;
        let head = String::from_utf8_lossy(&head[..length]);
        let status = head.split_once("p=").and_then(|(_, rest)| rest.get(..3)).unwrap_or("200");
        let response = format!("HTTP/1.1 {status} Named\r\nContent-Length: 7\r\n\r\nsq said");
        stream.write_all(response.as_bytes()).await?;
    }
}

async fn sq_failures_become_problem_documents(stack: Arc<Stack>) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", *PORT)).await?;
    let mut sq = JoinSet::new();
    sq.spawn(respond_with_named_status(listener));
    for http in [Http::One, Http::Two] {
        let alice = stack.client(http)?.key(stack.key("alice")?);
        // Not 401: Envoy retries it for as long as the route allows.
        for (from_sq, to_client, kind) in [
            (503, 503, "database-unavailable"),
            (403, 502, "database-failed"),
            (500, 502, "database-failed"),
        ] {
            let response = query(&alice, from_sq).await?;
            response.expect_problem(to_client, kind)?;
            ensure!(response.header("access-control-allow-origin") == "*", "{response:?}");
        }
        // SQ's own 400 and 404 are for the client and pass.
        for status in [400, 404] {
            let response = query(&alice, status).await?.expect_text(status, "sq said")?;
            let content_type = "text/plain; charset=utf-8";
            ensure!(response.header("content-type") == content_type, "{response:?}");
        }
    }
    Ok(())
}

async fn query(client: &Client, status: u16) -> Result<Response> {
    client.get(&format!("/api/v2/query?p={status}&set=1.1.1/1.1.1/1.1.1")).await
}
