//! What the gateway answers itself, byte for byte: status, headers and body.

use std::sync::Arc;

use anyhow::{Result, ensure};
use harness::client::TOC;
use harness::client::raw::Raw;
use harness::{Client, Http, Response, Stack};
use hyper::Method;

use crate::shared_stack::MAIN;
use crate::suite::{Case, case};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(MAIN, a_request_without_a_key_is_refused_byte_for_byte),
        case!(MAIN, a_malformed_key_is_refused_byte_for_byte),
        case!(MAIN, an_unknown_key_is_refused_byte_for_byte),
        case!(MAIN, a_suspended_tenant_is_refused_byte_for_byte).exclusive(),
        case!(MAIN, an_unknown_endpoint_is_refused_byte_for_byte),
        case!(MAIN, a_key_is_taken_from_each_of_its_three_places),
        case!(MAIN, every_answer_tells_what_it_cost_and_which_request_it_was),
        case!(MAIN, what_is_no_http_is_refused_and_disturbs_nobody),
        case!(MAIN, a_browser_may_ask_from_anywhere),
    ]
}

/// Headers that differ from answer to answer.
const VARYING: [&str; 3] = ["date", "x-request-id", "server-timing"];
/// Headers of a tenant's answers that differ as well.
const LIMITS: [&str; 2] = ["ratelimit", "ratelimit-policy"];

/// Status, headers in order of their names, and body, as one text.
fn bytes(answer: &Response) -> String {
    let mut headers: Vec<String> = answer
        .headers
        .iter()
        .filter(|(name, _)| !VARYING.contains(&name.as_str()) && !LIMITS.contains(&name.as_str()))
        .map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap_or("?")))
        .collect();
    headers.sort();
    format!("{}\n{}\n{}\n", answer.status, headers.concat(), answer.text())
}

/// Checks an answer over HTTP/1.1 and HTTP/2 against a text.
pub(crate) async fn check(
    stack: &Stack,
    headers: &[(&str, &str)],
    path: &str,
    expected: &str,
) -> Result<()> {
    let (one, two) = (stack.client(Http::One)?, stack.client(Http::Two)?);
    // At once: some are told only after all retries.
    let (one, two) =
        tokio::try_join!(one.get_with_headers(path, headers), two.get_with_headers(path, headers))?;
    same(&one, expected)?;
    same(&two, expected)
}

/// Checks one answer against a text.
pub(crate) fn same(answer: &Response, expected: &str) -> Result<()> {
    let said = bytes(answer);
    let version = answer.version;
    ensure!(said == expected, "expected\n{expected}\nbut {version:?} gave\n{said}");
    for name in VARYING {
        ensure!(!answer.header(name).is_empty(), "{name} is missing");
    }
    Ok(())
}

async fn a_request_without_a_key_is_refused_byte_for_byte(stack: Arc<Stack>) -> Result<()> {
    check(&stack, &[], TOC, include_str!("refusals/no-credentials.txt")).await
}

async fn a_malformed_key_is_refused_byte_for_byte(stack: Arc<Stack>) -> Result<()> {
    for value in [
        "Bearer pmb-v1-short",
        "Basic YWxpY2U6c2VjcmV0",
        "Bearer pmb-v1-0123456789abcdef0123456789abcdeg",
    ] {
        let expected = include_str!("refusals/malformed-key.txt");
        check(&stack, &[("authorization", value)], TOC, expected).await?;
    }
    Ok(())
}

async fn an_unknown_key_is_refused_byte_for_byte(stack: Arc<Stack>) -> Result<()> {
    let value = "Bearer pmb-v1-00000000000000000000000000000000";
    let expected = include_str!("refusals/unknown-key.txt");
    check(&stack, &[("authorization", value)], TOC, expected).await
}

async fn a_suspended_tenant_is_refused_byte_for_byte(stack: Arc<Stack>) -> Result<()> {
    stack.registry.suspend("suspended")?;
    let client = stack.tenant("suspended")?;
    crate::ranch::status_within_a_second(&client, 403).await?;
    let value = format!("Bearer {}", stack.key("suspended")?);
    let expected = include_str!("refusals/suspended.txt");
    check(&stack, &[("authorization", &value)], TOC, expected).await
}

async fn an_unknown_endpoint_is_refused_byte_for_byte(stack: Arc<Stack>) -> Result<()> {
    let value = format!("Bearer {}", stack.key("alice")?);
    let expected = include_str!("refusals/unknown-endpoint.txt");
    check(&stack, &[("authorization", &value)], "/api/v2/selectXYZ?p=index", expected).await
}

async fn a_key_is_taken_from_each_of_its_three_places(stack: Arc<Stack>) -> Result<()> {
    let key = stack.key("alice")?;
    let bearer = format!("Bearer {key}");
    for (name, value) in
        [("authorization", &*bearer), ("authorization", key), ("x-sq-api-key", key)]
    {
        for http in [Http::One, Http::Two] {
            stack.client(http)?.get_with_headers(TOC, &[(name, value)]).await?.expect_ok()?;
        }
    }
    Ok(())
}

async fn every_answer_tells_what_it_cost_and_which_request_it_was(stack: Arc<Stack>) -> Result<()> {
    let alice = stack.tenant("alice")?;
    alice.get(TOC).await?;
    let (one, two) = (alice.get(TOC).await?, alice.get(TOC).await?);
    let preflight =
        [("origin", "https://notepad.example"), ("access-control-request-method", "GET")];
    let asked = stack.client(Http::Two)?.send(Method::OPTIONS, TOC, &preflight, "".into()).await?;
    ensure!(asked.header("server-timing") == "auth;desc=none", "{asked:?}");
    ensure!(asked.header("x-request-id").len() >= 16, "{asked:?}");
    for answer in [&one, &two] {
        let timing = answer.header("server-timing");
        ensure!(timing.contains("auth") && timing.contains("wake"), "server-timing: {timing}");
    }
    let ids = [one.header("x-request-id"), two.header("x-request-id")];
    ensure!(ids[0] != ids[1] && ids.iter().all(|id| id.len() >= 16), "request ids {ids:?}");
    Ok(())
}

async fn what_is_no_http_is_refused_and_disturbs_nobody(stack: Arc<Stack>) -> Result<()> {
    let key = stack.key("alice")?;
    let line = "GET /api/v2/toc?p=index";
    for (what, request) in [
        ("no HTTP at all", "hello\r\n\r\n".to_owned()),
        ("HTTP/1.0", format!("{line} HTTP/1.0\r\nauthorization: {key}\r\n\r\n")),
        ("no host", format!("{line} HTTP/1.1\r\nauthorization: {key}\r\n\r\n")),
        (
            "two lengths",
            format!(
                "POST /api/v2/update?p=x&c=1.1.1/1.1.1/1.1.1 HTTP/1.1\r\nhost: x\r\n\
                 authorization: {key}\r\ncontent-length: 1\r\ncontent-length: 9\r\n\r\nx"
            ),
        ),
        (
            "length and chunks",
            format!(
                "POST /api/v2/update?p=x&c=1.1.1/1.1.1/1.1.1 HTTP/1.1\r\nhost: x\r\n\
                 authorization: {key}\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\n\
                 0\r\n\r\nX"
            ),
        ),
        (
            "a raw NUL",
            format!("GET /api/v2/toc?p=a\0b HTTP/1.1\r\nhost: x\r\nauthorization: {key}\r\n\r\n"),
        ),
    ] {
        let mut raw = Raw::connect(stack.listen.https, &stack.certs.ca()).await?;
        let said = raw.request(&request).await?;
        ensure!(!said.starts_with("HTTP/1.1 2"), "{what} is answered with {said}");
        for name in ["server-timing", "x-request-id"] {
            let said_once = said.matches(&format!("\r\n{name}: ")).count() == 1;
            ensure!(said_once, "{what} is answered without {name}: {said}");
        }
    }
    stack.tenant("alice")?.get(TOC).await?.expect_ok()?;
    Ok(())
}

async fn a_browser_may_ask_from_anywhere(stack: Arc<Stack>) -> Result<()> {
    let client: Client = stack.client(Http::Two)?;
    let preflight = [
        ("origin", "https://notepad.example"),
        ("access-control-request-method", "DELETE"),
        ("access-control-request-headers", "authorization"),
    ];
    let path = "/api/v2/delete?p=index&c=1.1.1/1.1.1/1.1.1";
    let answer =
        client.send(Method::OPTIONS, path, &preflight, "".into()).await?.expect_status(204)?;
    ensure!(answer.header("access-control-allow-origin") == "*", "{answer:?}");
    let headers = answer.header("access-control-allow-headers").to_ascii_lowercase();
    ensure!(headers.contains("authorization") && headers.contains("x-sq-api-key"), "{headers}");
    ensure!(answer.header("access-control-allow-methods").contains("DELETE"), "{answer:?}");
    let refused = client.get_with_headers(TOC, &preflight[..1]).await?;
    ensure!(refused.header("access-control-allow-origin") == "*", "a refusal is unreadable");
    Ok(())
}
