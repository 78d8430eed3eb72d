//! What clients get of SQ's answers: the same headers, whoever wrote the body.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use anyhow::{Result, ensure};
use harness::host::ports;
use harness::{Http, Response, Stack, StackBuilder};
use hyper::header::HeaderName;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::world::{Case, On, case};

fn one_tenant() -> StackBuilder {
    Stack::builder().tenant("alice")
}

/// Where the test itself answers in SQ's place.
static PORT: LazyLock<u16> = LazyLock::new(|| ports::free().unwrap());

fn failing_sq() -> StackBuilder {
    Stack::builder().tenant("alice").replace_sq("alice", *PORT)
}

pub(crate) fn cases() -> Vec<Case> {
    let quiet = On::Shared("answers", one_tenant);
    vec![
        case!(quiet, an_export_of_an_empty_phext_has_the_headers_of_any_other),
        case!(On::Own(failing_sq), what_sq_says_of_itself_never_reaches_a_client),
    ]
}

/// Headers that depend on who wrote the body.
const FRAMING: [&str; 2] = ["content-length", "transfer-encoding"];

fn names(answer: &Response) -> BTreeSet<&str> {
    answer.headers.keys().map(HeaderName::as_str).filter(|name| !FRAMING.contains(name)).collect()
}

async fn an_export_of_an_empty_phext_has_the_headers_of_any_other(stack: Arc<Stack>) -> Result<()> {
    for http in [Http::One, Http::Two] {
        let alice = stack.client(http)?.key(stack.key("alice")?);
        let text = "/api/v2/update?p=full&c=1.1.1/1.1.1/1.1.1&s=text";
        alice.get(text).await?.expect_ok()?;
        let full = alice.get("/api/v2/json-export?p=full").await?;
        let empty = alice.get("/api/v2/json-export?p=empty").await?;
        ensure!(empty.ok() && empty.text() == "[]\n", "{} {:?}", empty.status, empty.text());
        ensure!(names(&empty) == names(&full), "{:?}\nbut\n{:?}", empty.headers, full.headers);
        for name in [
            "content-type",
            "x-content-type-options",
            "content-security-policy",
            "cache-control",
            "access-control-allow-origin",
            "access-control-expose-headers",
            "ratelimit-policy",
        ] {
            let (empty, full) = (empty.header(name), full.header(name));
            ensure!(!full.is_empty() && empty == full, "{name}: {empty:?}, not {full:?}");
        }
    }
    Ok(())
}

/// Answers with the status that the phext is named after, as SQ would.
async fn answer_as_named(listener: TcpListener) -> Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        let mut head = vec![0; 4096];
        let read = stream.read(&mut head).await?;
        let head = String::from_utf8_lossy(&head[..read]);
        let status = head.split_once("p=").and_then(|(_, rest)| rest.get(..3)).unwrap_or("200");
        let answer = format!("HTTP/1.1 {status} Said\r\nContent-Length: 7\r\n\r\nsq said");
        stream.write_all(answer.as_bytes()).await?;
    }
}

async fn what_sq_says_of_itself_never_reaches_a_client(stack: Arc<Stack>) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", *PORT)).await?;
    let mut sq = JoinSet::new();
    sq.spawn(answer_as_named(listener));
    for http in [Http::One, Http::Two] {
        let alice = stack.client(http)?.key(stack.key("alice")?);
        for (status, told, kind) in [
            // Not 401, which Envoy sends again for as long as the route allows.
            (503, 503, "database-unavailable"),
            (403, 502, "database-failed"),
            (500, 502, "database-failed"),
        ] {
            let answer =
                alice.get(&format!("/api/v2/query?p={status}&set=1.1.1/1.1.1/1.1.1")).await?;
            let problem: Value = serde_json::from_slice(&answer.body)?;
            ensure!(answer.status == told, "{status} is told as {}", answer.status);
            ensure!(problem["type"] == format!("urn:sq:problem:{kind}"), "{problem}");
            ensure!(answer.header("content-type") == "application/problem+json", "{answer:?}");
            ensure!(answer.header("access-control-allow-origin") == "*", "{answer:?}");
        }
        for status in [400, 404] {
            let answer =
                alice.get(&format!("/api/v2/query?p={status}&set=1.1.1/1.1.1/1.1.1")).await?;
            ensure!(answer.status == status && answer.text() == "sq said", "{answer:?}");
            let text = "text/plain; charset=utf-8";
            ensure!(answer.header("content-type") == text, "{answer:?}");
        }
    }
    Ok(())
}
