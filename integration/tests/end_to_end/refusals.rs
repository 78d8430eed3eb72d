//! The gateway's own responses, compared byte for byte: status, headers and body.

use std::sync::Arc;

use anyhow::{Result, ensure};
use harness::client::TOC;
use harness::client::raw::Raw;
use harness::{Http, Response, Stack};
use hyper::Method;

use crate::shared_stack::MAIN;
use crate::suite::{Case, case};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(MAIN, request_without_key_is_refused_byte_for_byte),
        case!(MAIN, malformed_key_is_refused_byte_for_byte),
        case!(MAIN, unknown_key_is_refused_byte_for_byte),
        case!(MAIN, suspended_tenant_is_refused_byte_for_byte).exclusive(),
        case!(MAIN, unknown_endpoint_is_refused_byte_for_byte),
        case!(MAIN, key_is_accepted_in_all_three_forms),
        case!(MAIN, every_response_has_server_timing_and_request_id),
        case!(MAIN, malformed_http_is_refused_and_disturbs_no_tenant),
        case!(MAIN, lenient_http1_is_refused_or_harmless),
        case!(MAIN, browser_may_send_requests_from_any_origin),
    ]
}

/// Headers whose value differs from response to response. They must be present.
const VARYING: [&str; 3] = ["date", "x-request-id", "server-timing"];
/// Headers that responses to a tenant have in addition; their value differs as well.
const LIMITS: [&str; 2] = ["ratelimit", "ratelimit-policy"];

/// Status, headers in the order of their names, and body, as one text.
fn comparable(response: &Response) -> String {
    let mut headers = Vec::new();
    for (name, value) in &response.headers {
        let name = name.as_str();
        if !VARYING.contains(&name) && !LIMITS.contains(&name) {
            headers.push(format!("{name}: {}\n", value.to_str().unwrap_or("?")));
        }
    }
    headers.sort();
    format!("{}\n{}\n{}\n", response.status, headers.concat(), response.text())
}

/// Sends GET over HTTP/1.1 and HTTP/2 and compares both responses with a text.
pub(crate) async fn check(
    stack: &Stack,
    headers: &[(&str, &str)],
    path: &str,
    expected: &str,
) -> Result<()> {
    let http1 = stack.client(Http::One)?;
    let http2 = stack.client(Http::Two)?;
    // Concurrently, because some refusals come only after all retries.
    let (response1, response2) = tokio::try_join!(
        http1.get_with_headers(path, headers),
        http2.get_with_headers(path, headers)
    )?;
    check_response(&response1, expected)?;
    check_response(&response2, expected)
}

/// Does the same with a tenant's key.
pub(crate) async fn check_tenant(
    stack: &Stack,
    tenant: &str,
    path: &str,
    expected: &str,
) -> Result<()> {
    let bearer = format!("Bearer {}", stack.key(tenant)?);
    check(stack, &[("authorization", &bearer)], path, expected).await
}

/// Compares one response with a text.
pub(crate) fn check_response(response: &Response, expected: &str) -> Result<()> {
    let actual = comparable(response);
    let version = response.version;
    ensure!(actual == expected, "expected\n{expected}\nbut the {version:?} response is\n{actual}");
    for name in VARYING {
        ensure!(!response.header(name).is_empty(), "{name} is missing");
    }
    Ok(())
}

async fn request_without_key_is_refused_byte_for_byte(stack: Arc<Stack>) -> Result<()> {
    check(&stack, &[], TOC, include_str!("refusals/no-credentials.txt")).await
}

async fn malformed_key_is_refused_byte_for_byte(stack: Arc<Stack>) -> Result<()> {
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

async fn unknown_key_is_refused_byte_for_byte(stack: Arc<Stack>) -> Result<()> {
    let value = "Bearer pmb-v1-00000000000000000000000000000000";
    let expected = include_str!("refusals/unknown-key.txt");
    check(&stack, &[("authorization", value)], TOC, expected).await
}

async fn suspended_tenant_is_refused_byte_for_byte(stack: Arc<Stack>) -> Result<()> {
    stack.registry.suspend("suspended")?;
    let client = stack.tenant("suspended")?;
    crate::ranch::status_within_a_second(&client, 403).await?;
    check_tenant(&stack, "suspended", TOC, include_str!("refusals/suspended.txt")).await
}

async fn unknown_endpoint_is_refused_byte_for_byte(stack: Arc<Stack>) -> Result<()> {
    let expected = include_str!("refusals/unknown-endpoint.txt");
    check_tenant(&stack, "alice", "/api/v2/selectXYZ?p=index", expected).await
}

async fn key_is_accepted_in_all_three_forms(stack: Arc<Stack>) -> Result<()> {
    let key = stack.key("alice")?;
    let bearer = format!("Bearer {key}");
    for (name, value) in
        [("authorization", &*bearer), ("authorization", key), ("x-sq-api-key", key)]
    {
        for http in [Http::One, Http::Two] {
            let client = stack.client(http)?;
            client.get_with_headers(TOC, &[(name, value)]).await?.expect_ok()?;
        }
    }
    Ok(())
}

async fn every_response_has_server_timing_and_request_id(stack: Arc<Stack>) -> Result<()> {
    let preflight =
        [("origin", "https://notepad.example"), ("access-control-request-method", "GET")];
    let client = stack.client(Http::Two)?;
    let response = client.send(Method::OPTIONS, TOC, &preflight, "".into()).await?;
    ensure!(response.header("server-timing") == "auth;desc=none", "{response:?}");
    ensure!(response.header("x-request-id").len() >= 16, "{response:?}");
    let alice = stack.tenant("alice")?;
    let first = alice.get(TOC).await?.expect_ok()?;
    let second = alice.get(TOC).await?.expect_ok()?;
    for response in [&first, &second] {
        let timing = response.header("server-timing");
        ensure!(timing.contains("auth") && timing.contains("wake"), "server-timing: {timing}");
        ensure!(response.header("x-request-id").len() >= 16, "{response:?}");
    }
    let id = first.header("x-request-id");
    ensure!(id != second.header("x-request-id"), "two requests have the id {id}");
    Ok(())
}

async fn malformed_http_is_refused_and_disturbs_no_tenant(stack: Arc<Stack>) -> Result<()> {
    let key = stack.key("alice")?;
    let get = "GET /api/v2/toc?p=index";
    let post = "POST /api/v2/update?p=x&c=1.1.1/1.1.1/1.1.1 HTTP/1.1\r\nhost: x";
    for (fault, request) in [
        ("no HTTP at all", "hello\r\n\r\n".to_owned()),
        ("HTTP/1.0", format!("{get} HTTP/1.0\r\nauthorization: {key}\r\n\r\n")),
        ("no host", format!("{get} HTTP/1.1\r\nauthorization: {key}\r\n\r\n")),
        (
            "two lengths",
            format!(
                "{post}\r\nauthorization: {key}\r\ncontent-length: 1\r\ncontent-length: 9\r\n\r\nx"
            ),
        ),
        (
            "length and chunks",
            format!(
                "{post}\r\nauthorization: {key}\r\ncontent-length: 6\r\n\
                 transfer-encoding: chunked\r\n\r\n0\r\n\r\nX"
            ),
        ),
        (
            "a raw NUL",
            format!("GET /api/v2/toc?p=a\0b HTTP/1.1\r\nhost: x\r\nauthorization: {key}\r\n\r\n"),
        ),
    ] {
        let mut raw = Raw::connect(stack.listen.https, &stack.certs.ca()).await?;
        let response = raw.request(&request).await?;
        ensure!(!response.starts_with("HTTP/1.1 2"), "{fault} is accepted: {response}");
        for name in ["server-timing", "x-request-id", "strict-transport-security"] {
            let count = response.matches(&format!("\r\n{name}: ")).count();
            ensure!(count == 1, "{fault}: {count} headers {name}: {response}");
        }
    }
    stack.tenant("alice")?.get(TOC).await?.expect_ok()?;
    Ok(())
}

/// A way to write a request that the standard forbids or that other servers read otherwise.
struct Lenient {
    name: &'static str,
    /// The request; `KEY` stands for the key.
    request: &'static str,
    /// Envoy has no setting against it and reads it as the plain request.
    harmless: bool,
}

const LENIENT: [Lenient; 9] = [
    Lenient {
        name: "two Host headers",
        request: "GET /api/v2/toc?p=x HTTP/1.1\r\nhost: x\r\nhost: y\r\nauthorization: KEY\r\n",
        harmless: false,
    },
    Lenient {
        name: "the same Host twice",
        request: "GET /api/v2/toc?p=x HTTP/1.1\r\nhost: x\r\nhost: x\r\nauthorization: KEY\r\n",
        harmless: false,
    },
    Lenient {
        name: "space before a colon",
        request: "GET /api/v2/toc?p=x HTTP/1.1\r\nhost : x\r\nauthorization: KEY\r\n",
        harmless: false,
    },
    Lenient {
        name: "transfer coding that is not chunked",
        request: "POST /api/v2/update?p=x&c=1.1.1/1.1.1/1.1.1 HTTP/1.1\r\nhost: x\r\n\
                  authorization: KEY\r\ntransfer-encoding: identity\r\n",
        harmless: false,
    },
    Lenient {
        name: "bare CR before a name",
        request: "GET /api/v2/toc?p=x HTTP/1.1\r\nhost: x\r\n\rx-a: b\r\nauthorization: KEY\r\n",
        harmless: false,
    },
    Lenient {
        name: "bare LF",
        request: "GET /api/v2/toc?p=x HTTP/1.1\nhost: x\nauthorization: KEY\r\n",
        harmless: true,
    },
    Lenient {
        name: "folded line",
        request: "GET /api/v2/toc?p=x HTTP/1.1\r\nhost: x\r\nx-a: a\r\n b\r\nauthorization: KEY\r\n",
        harmless: true,
    },
    Lenient {
        name: "bare CR in a value",
        request: "GET /api/v2/toc?p=x HTTP/1.1\r\nhost: x\r\nx-a: a\rb\r\nauthorization: KEY\r\n",
        harmless: true,
    },
    Lenient {
        name: "tab in the request line",
        request: "GET\t/api/v2/toc?p=x\tHTTP/1.1\r\nhost: x\r\nauthorization: KEY\r\n",
        harmless: true,
    },
];

async fn lenient_http1_is_refused_or_harmless(stack: Arc<Stack>) -> Result<()> {
    let plain = stack.tenant("alice")?.get("/api/v2/toc?p=x").await?.expect_ok()?.text();
    for Lenient { name, request, harmless } in LENIENT {
        let request = request.replace("KEY", stack.key("alice")?);
        let request = format!("{request}connection: close\r\n\r\n");
        let response =
            Raw::exchange(stack.listen.https, &stack.certs.ca(), request.as_bytes()).await?;
        if harmless {
            ensure!(response.starts_with("HTTP/1.1 200 "), "{name}: {response}");
            ensure!(response.ends_with(&plain), "{name}: {response}");
        } else {
            let refused = ["HTTP/1.1 400 ", "HTTP/1.1 501 "];
            ensure!(refused.iter().any(|line| response.starts_with(line)), "{name}: {response}");
            ensure!(response.contains("application/problem+json"), "{name}: {response}");
        }
    }
    Ok(())
}

async fn browser_may_send_requests_from_any_origin(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client(Http::Two)?;
    let preflight = [
        ("origin", "https://notepad.example"),
        ("access-control-request-method", "DELETE"),
        ("access-control-request-headers", "authorization"),
    ];
    let path = "/api/v2/delete?p=index&c=1.1.1/1.1.1/1.1.1";
    let response = client.send(Method::OPTIONS, path, &preflight, "".into()).await?;
    let response = response.expect_status(204)?;
    ensure!(response.header("access-control-allow-origin") == "*", "{response:?}");
    let headers = response.header("access-control-allow-headers").to_ascii_lowercase();
    ensure!(headers.contains("authorization") && headers.contains("x-sq-api-key"), "{headers}");
    ensure!(response.header("access-control-allow-methods").contains("DELETE"), "{response:?}");
    let refused = client.get_with_headers(TOC, &preflight[..1]).await?;
    let origin = refused.header("access-control-allow-origin");
    ensure!(origin == "*", "a browser cannot read the refusal {refused:?}");
    Ok(())
}
