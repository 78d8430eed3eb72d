//! HTTP framing that SQ alone gets wrong, and the gateway's response to the same bytes.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use anyhow::{Result, ensure};
use harness::bare_sq::{BareSq, KEY};
use harness::client::FIRST_SCROLL;
use harness::client::raw::Raw;
use harness::{Stack, until};

use crate::shared_stack::MAIN;
use crate::sq_alone::{NEW, PATIENCE, Row, blocking, send_to_gateway, status_line, stored_text};
use crate::suite::{Case, case};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(MAIN, sq_alone_stores_http10_in_the_text),
        case!(MAIN, sq_alone_stores_chunk_framing),
        case!(MAIN, sq_alone_stores_a_pipelined_request),
        case!(MAIN, sq_alone_stores_a_truncated_body),
        case!(MAIN, sq_alone_accepts_longer_authorization_header_names),
    ]
}

/// Sends the bytes to a new SQ whose phext `a` holds the text `before`, and returns the text that
/// it then holds.
async fn stored_by_sq(bytes: String) -> Result<String> {
    blocking(move || {
        let sq = BareSq::start(NEW)?;
        sq.send("POST", &format!("/api/v2/update?p=a&{FIRST_SCROLL}"), Some(b"before"))?;
        let mut stream = TcpStream::connect(sq.address())?;
        stream.write_all(bytes.as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        // SQ may reset the connection instead of responding; only the stored text counts.
        let _ = stream.read_to_end(&mut Vec::new());
        Ok(sq.send("GET", &format!("/api/v2/select?p=a&{FIRST_SCROLL}"), None)?.text())
    })
    .await
}

/// The `Authorization` value for SQ alone.
fn sq_bearer() -> String {
    format!("Bearer {KEY}")
}

fn http10_update(phext: &str, authorization: &str) -> String {
    format!(
        "GET /api/v2/update?p={phext}&{FIRST_SCROLL}&s=text HTTP/1.0\r\nhost: x\r\n\
         authorization: {authorization}\r\n\r\n"
    )
}

async fn sq_alone_stores_http10_in_the_text(stack: Arc<Stack>) -> Result<()> {
    let alone = stored_by_sq(http10_update("a", &sq_bearer())).await?;
    ensure!(alone != "text" && alone != "before", "SQ stores {alone:?}");
    let response = send_to_gateway(&stack, &http10_update("http10", "KEY")).await?;
    ensure!(response.contains(" 426 "), "{response}");
    ensure!(stored_text(&stack, "http10").await?.is_empty(), "the gateway stored something");
    Row {
        case: "sq_alone_stores_http10_in_the_text",
        rule: "HTTP/1.0",
        sq: NEW,
        alone: &format!("stores {alone:?}"),
        gateway: status_line(&response),
    }
    .print();
    Ok(())
}

fn chunked_update(phext: &str, authorization: &str) -> String {
    format!(
        "POST /api/v2/update?p={phext}&{FIRST_SCROLL} HTTP/1.1\r\nhost: x\r\n\
         authorization: {authorization}\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
         4\r\ntext\r\n0\r\n\r\n"
    )
}

async fn sq_alone_stores_chunk_framing(stack: Arc<Stack>) -> Result<()> {
    let alone = stored_by_sq(chunked_update("a", &sq_bearer())).await?;
    ensure!(alone != "text", "SQ decodes chunks");
    let response = send_to_gateway(&stack, &chunked_update("chunks", "KEY")).await?;
    ensure!(response.contains(" 200 "), "{response}");
    let stored = stored_text(&stack, "chunks").await?;
    ensure!(stored == "text", "the gateway stored {stored:?}");
    Row {
        case: "sq_alone_stores_chunk_framing",
        rule: "chunked body",
        sq: NEW,
        alone: &format!("stores {alone:?}"),
        gateway: "stores \"text\"",
    }
    .print();
    Ok(())
}

fn pipelined_requests(phext: &str, authorization: &str) -> String {
    let head = format!("host: x\r\nauthorization: {authorization}\r\n");
    format!(
        "POST /api/v2/update?p={phext}&{FIRST_SCROLL} HTTP/1.1\r\n{head}content-length: 4\r\n\r\n\
         textGET /api/v2/toc?p={phext} HTTP/1.1\r\n{head}connection: close\r\n\r\n"
    )
}

async fn sq_alone_stores_a_pipelined_request(stack: Arc<Stack>) -> Result<()> {
    let alone = stored_by_sq(pipelined_requests("a", &sq_bearer())).await?;
    ensure!(alone.contains("authorization"), "SQ stores {alone:?}");
    let response = send_to_gateway(&stack, &pipelined_requests("pipeline", "KEY")).await?;
    ensure!(response.matches("HTTP/1.1 200").count() == 2, "{response}");
    let stored = stored_text(&stack, "pipeline").await?;
    ensure!(stored == "text", "the gateway stored {stored:?}");
    Row {
        case: "sq_alone_stores_a_pipelined_request",
        rule: "pipelined request, bytes after Content-Length",
        sq: NEW,
        alone: "stores the second request, its key included",
        gateway: "two requests, two responses",
    }
    .print();
    Ok(())
}

fn truncated_update(phext: &str, authorization: &str) -> String {
    format!(
        "POST /api/v2/update?p={phext}&{FIRST_SCROLL} HTTP/1.1\r\nhost: x\r\n\
         authorization: {authorization}\r\ncontent-length: 1000\r\n\r\nhalf a bo"
    )
}

async fn sq_alone_stores_a_truncated_body(stack: Arc<Stack>) -> Result<()> {
    let alone = stored_by_sq(truncated_update("a", &sq_bearer())).await?;
    ensure!(alone == "half a bo", "SQ stores {alone:?}");
    stack.tenant("alice")?.update("short", "before").await?.expect_ok()?;
    let aborted = "http.https.downstream_cx_destroy_remote_active_rq";
    let aborted_before = stack.envoy.stat(aborted).await?;
    let mut raw = Raw::connect(stack.listen.https, &stack.certs.ca()).await?;
    raw.write(truncated_update("short", stack.key("alice")?).as_bytes()).await?;
    drop(raw);
    until("Envoy to count the aborted request", PATIENCE, || async {
        (stack.envoy.stat(aborted).await.ok()? > aborted_before).then_some(())
    })
    .await?;
    let stored = stored_text(&stack, "short").await?;
    ensure!(stored == "before", "the gateway stored {stored:?}");
    Row {
        case: "sq_alone_stores_a_truncated_body",
        rule: "truncated body",
        sq: NEW,
        alone: "stores the part that arrived",
        gateway: "nothing reaches SQ",
    }
    .print();
    Ok(())
}

async fn sq_alone_accepts_longer_authorization_header_names(stack: Arc<Stack>) -> Result<()> {
    let alone = blocking(|| {
        let sq = BareSq::start(NEW)?;
        let head = "GET /api/v2/toc?p=a HTTP/1.1\r\nhost: x\r\n";
        Ok(sq.exchange(format!("{head}Authorization-Foo: {KEY}\r\n\r\n").as_bytes())?.status)
    })
    .await?;
    ensure!(alone == 200, "SQ responds with {alone}");
    let head = "GET /api/v2/toc?p=a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
    let response =
        send_to_gateway(&stack, &format!("{head}Authorization-Foo: KEY\r\n\r\n")).await?;
    ensure!(response.contains(" 401 "), "{response}");
    Row {
        case: "sq_alone_accepts_longer_authorization_header_names",
        rule: "Authorization-Foo",
        sq: NEW,
        alone: "200",
        gateway: status_line(&response),
    }
    .print();
    Ok(())
}
