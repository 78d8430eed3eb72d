//! What HTTP framing does to SQ alone, and what the gateway makes of the same bytes.

use std::net::TcpStream;
use std::sync::Arc;

use anyhow::{Result, ensure};
use harness::bare_sq::{BareSq, KEY};
use harness::client::raw::Raw;
use harness::{Stack, until};

use crate::alone::{AT, NEW, PATIENCE, row, sq, status, stored, through};
use crate::refusals::MAIN;
use crate::world::{Case, case};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(MAIN, sq_alone_glues_http_1_0_to_the_text),
        case!(MAIN, sq_alone_stores_the_framing_of_chunks),
        case!(MAIN, sq_alone_stores_what_follows_a_request),
        case!(MAIN, sq_alone_stores_a_body_that_was_cut_short),
        case!(MAIN, sq_alone_takes_a_longer_header_name_for_the_key),
    ]
}

async fn sq_alone_glues_http_1_0_to_the_text(stack: Arc<Stack>) -> Result<()> {
    let alone = sq(|| {
        let sq = BareSq::start(NEW)?;
        let line = format!("GET /api/v2/update?p=a&{AT}&s=text HTTP/1.0\r\n");
        sq.exchange(format!("{line}authorization: Bearer {KEY}\r\n\r\n").as_bytes())?;
        Ok(sq.send("GET", &format!("/api/v2/select?p=a&{AT}"), None)?.text())
    })
    .await?;
    ensure!(alone != "text", "SQ does it right: {alone:?}");
    let line = format!("GET /api/v2/update?p=http10&{AT}&s=text HTTP/1.0\r\n");
    let said = through(&stack, &format!("{line}host: x\r\nauthorization: KEY\r\n\r\n")).await?;
    ensure!(said.contains(" 426 ") && stored(&stack, "http10").await?.is_empty(), "{said}");
    row(
        "sq_alone_glues_http_1_0_to_the_text",
        "HTTP/1.0",
        NEW,
        &format!("stores {alone:?}"),
        &status(&said),
    );
    Ok(())
}

async fn sq_alone_stores_the_framing_of_chunks(stack: Arc<Stack>) -> Result<()> {
    let chunks = "4\r\ntext\r\n0\r\n\r\n";
    let head = |p: &str, key: &str| {
        format!(
            "POST /api/v2/update?p={p}&{AT} HTTP/1.1\r\nhost: x\r\nauthorization: {key}\r\n\
             transfer-encoding: chunked\r\nconnection: close\r\n\r\n{chunks}"
        )
    };
    let bytes = head("a", &format!("Bearer {KEY}"));
    let alone = sq(move || {
        let sq = BareSq::start(NEW)?;
        sq.send("POST", &format!("/api/v2/update?p=a&{AT}"), Some(b"before"))?;
        sq.exchange(bytes.as_bytes())?;
        Ok(sq.send("GET", &format!("/api/v2/select?p=a&{AT}"), None)?.text())
    })
    .await?;
    ensure!(alone != "text", "SQ does it right");
    let said = through(&stack, &head("chunks", "KEY")).await?;
    ensure!(said.contains(" 200 ") && stored(&stack, "chunks").await? == "text", "{said}");
    row(
        "sq_alone_stores_the_framing_of_chunks",
        "chunked body",
        NEW,
        &format!("stores {alone:?}"),
        "stores \"text\"",
    );
    Ok(())
}

async fn sq_alone_stores_what_follows_a_request(stack: Arc<Stack>) -> Result<()> {
    let two = |p: &str, key: &str| {
        let head = format!("host: x\r\nauthorization: {key}\r\n");
        format!(
            "POST /api/v2/update?p={p}&{AT} HTTP/1.1\r\n{head}content-length: 4\r\n\r\ntext\
             GET /api/v2/toc?p={p} HTTP/1.1\r\n{head}connection: close\r\n\r\n"
        )
    };
    let bytes = two("a", &format!("Bearer {KEY}"));
    let alone = sq(move || {
        let sq = BareSq::start(NEW)?;
        sq.exchange(bytes.as_bytes())?;
        Ok(sq.send("GET", &format!("/api/v2/select?p=a&{AT}"), None)?.text())
    })
    .await?;
    ensure!(alone.contains("authorization"), "SQ does it right: {alone:?}");
    let said = through(&stack, &two("pipeline", "KEY")).await?;
    ensure!(said.matches("HTTP/1.1 200").count() == 2, "{said}");
    ensure!(stored(&stack, "pipeline").await? == "text", "more than the body is stored");
    row(
        "sq_alone_stores_what_follows_a_request",
        "pipelined request, bytes after Content-Length",
        NEW,
        "stores the second request, its key included",
        "two requests, two answers",
    );
    Ok(())
}

async fn sq_alone_stores_a_body_that_was_cut_short(stack: Arc<Stack>) -> Result<()> {
    let head = |p: &str, key: &str| {
        format!(
            "POST /api/v2/update?p={p}&{AT} HTTP/1.1\r\nhost: x\r\nauthorization: {key}\r\n\
             content-length: 1000\r\n\r\nhalf a bo"
        )
    };
    let bytes = head("a", &format!("Bearer {KEY}"));
    let alone = sq(move || {
        use std::io::Write as _;
        let sq = BareSq::start(NEW)?;
        sq.send("POST", &format!("/api/v2/update?p=a&{AT}"), Some(b"before"))?;
        let mut stream = TcpStream::connect(sq.address())?;
        stream.write_all(bytes.as_bytes())?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let _ = std::io::Read::read_to_end(&mut stream, &mut Vec::new());
        Ok(sq.send("GET", &format!("/api/v2/select?p=a&{AT}"), None)?.text())
    })
    .await?;
    ensure!(alone == "half a bo", "SQ does it right: {alone:?}");
    let write = format!("/api/v2/update?p=short&{AT}&s=before");
    stack.tenant("alice")?.get(&write).await?.expect_ok()?;
    let bytes = head("short", stack.key("alice")?);
    let gone = "http.https.downstream_cx_destroy_remote_active_rq";
    let before = stack.envoy.stat(gone).await?;
    let mut raw = Raw::connect(stack.listen.https, &stack.certs.ca()).await?;
    raw.write(bytes.as_bytes()).await?;
    drop(raw);
    until("Envoy to notice", PATIENCE, || async {
        (stack.envoy.stat(gone).await.ok()? > before).then_some(())
    })
    .await?;
    ensure!(stored(&stack, "short").await? == "before", "half a body is stored");
    row(
        "sq_alone_stores_a_body_that_was_cut_short",
        "truncated body",
        NEW,
        "stores what has come",
        "nothing reaches SQ",
    );
    Ok(())
}

async fn sq_alone_takes_a_longer_header_name_for_the_key(stack: Arc<Stack>) -> Result<()> {
    let alone = sq(|| {
        let sq = BareSq::start(NEW)?;
        let line = "GET /api/v2/toc?p=a HTTP/1.1\r\nhost: x\r\n";
        Ok(sq.exchange(format!("{line}Authorization-Foo: {KEY}\r\n\r\n").as_bytes())?.status)
    })
    .await?;
    ensure!(alone == 200, "SQ does it right: {alone}");
    let line = "GET /api/v2/toc?p=a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
    let said = through(&stack, &format!("{line}Authorization-Foo: KEY\r\n\r\n")).await?;
    ensure!(said.contains(" 401 "), "{said}");
    row(
        "sq_alone_takes_a_longer_header_name_for_the_key",
        "Authorization-Foo",
        NEW,
        "200",
        &status(&said),
    );
    Ok(())
}
