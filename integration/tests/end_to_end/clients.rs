//! The gateway asked as its users ask it: each works, or is told what to change.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use harness::client::tls;
use harness::host::tools;
use harness::{Http, Response, Stack};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame};
use hyper::{Method, Request};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::rt::TokioExecutor;
use tokio::process::Command;

use crate::refusals::MAIN;
use crate::world::{Case, case};

const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(MAIN, the_calls_of_the_openclaw_skill_work),
        case!(MAIN, the_calls_of_phext_notepad_work),
        case!(MAIN, curl_stores_a_file_byte_for_byte),
        case!(MAIN, curl_is_told_what_to_change),
        case!(MAIN, a_name_that_is_not_encoded_is_refused_in_any_http),
        case!(MAIN, python_requests_work),
        case!(MAIN, a_stream_without_a_length_is_stored_whole_over_http_2),
        case!(MAIN, a_browser_s_calls_work_from_another_origin),
    ]
}

fn expect(answer: &Response, text: &str) -> Result<()> {
    ensure!(
        answer.ok() && answer.text().contains(text),
        "{} {:?}, not {text:?}",
        answer.status,
        answer.text()
    );
    Ok(())
}

async fn the_calls_of_the_openclaw_skill_work(stack: Arc<Stack>) -> Result<()> {
    let bearer = format!("Bearer {}", stack.key("alice")?);
    let at = "p=openclaw&c=3.1.4/1.5.9/2.6.5";
    for http in [Http::One, Http::Two] {
        let client = stack.client(http)?;
        let headers = [("authorization", &*bearer), ("content-type", "text/plain")];
        let send = |method: Method, path: String, body: &'static str| {
            let (client, path) = (client.clone(), format!("/api/v2/{path}"));
            async move { client.send(method, &path, &headers, body.into()).await }
        };
        send(Method::DELETE, format!("delete?{at}"), "").await?;
        let insert = send(Method::POST, format!("insert?{at}"), "remember the milk").await?;
        expect(&insert, "Inserted")?;
        expect(&send(Method::GET, format!("select?{at}"), "").await?, "remember the milk")?;
        expect(&send(Method::GET, "toc?p=openclaw".into(), "").await?, "3.1.4/1.5.9/2.6.5")?;
        expect(&send(Method::DELETE, format!("delete?{at}"), "").await?, "Removed")?;
        let gone = send(Method::GET, format!("select?{at}"), "").await?;
        ensure!(gone.ok() && gone.body.is_empty(), "{} {:?}", gone.status, gone.text());
    }
    Ok(())
}

async fn the_calls_of_phext_notepad_work(stack: Arc<Stack>) -> Result<()> {
    let headers = [("x-sq-api-key", stack.key("alice")?)];
    for http in [Http::One, Http::Two] {
        let client = stack.client(http)?;
        // Notepad writes coordinates with semicolons.
        let path = "/api/v2/update?p=notepad&c=1.1.1;1.1.1;1.1.2";
        let body = "line one\nline two".into();
        expect(&client.send(Method::POST, path, &headers, body).await?, "Updated 17 bytes")?;
        let path = "/api/v2/select?p=notepad&c=1.1.1;1.1.1;1.1.2";
        expect(&client.get_with_headers(path, &headers).await?, "line one\nline two")?;
        for read in ["get", "toc", "delta", "checksum"] {
            let answer =
                client.get_with_headers(&format!("/api/v2/{read}?p=notepad"), &headers).await?;
            ensure!(answer.ok() && !answer.body.is_empty(), "{read}: {} {answer:?}", answer.status);
        }
    }
    Ok(())
}

/// Runs a program with its input; gives what it printed.
async fn run(program: &str, args: &[&str], input: &[u8]) -> Result<String> {
    use tokio::io::AsyncWriteExt as _;
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("{program} is needed for this test"))?;
    let mut stdin = child.stdin.take().context("stdin")?;
    stdin.write_all(input).await?;
    drop(stdin);
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output())
        .await
        .with_context(|| format!("{program} takes too long"))??;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let faults = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {}\n{said}\n{faults}", output.status);
    Ok(said)
}

async fn curl(stack: &Stack, args: &[&str], path: &str, input: &[u8]) -> Result<String> {
    let bearer = format!("Authorization: Bearer {}", stack.key("alice")?);
    let (ca, url) = (stack.certs.ca().display().to_string(), format!("{}{path}", stack.url()));
    let mut all = vec!["--silent", "--show-error", "--cacert", &ca, "--header", &bearer];
    all.extend(args);
    all.push(&url);
    run("curl", &all, input).await
}

async fn curl_stores_a_file_byte_for_byte(stack: Arc<Stack>) -> Result<()> {
    let text = "first line\r\nsecond\tline, ünïcode 🙂\n".repeat(5_000);
    let path = "/api/v2/update?p=curl&c=1.1.1/1.1.1/1.1.1";
    for version in ["--http1.1", "--http2"] {
        // Larger than a megabyte, curl waits for 100-continue.
        let said = curl(&stack, &[version, "--data-binary", "@-"], path, text.as_bytes()).await?;
        ensure!(said == format!("Updated {} bytes", text.len()), "{said}");
        let back = curl(&stack, &[version], &path.replace("update", "select"), b"").await?;
        ensure!(back == text, "{} of {} bytes came back", back.len(), text.len());
    }
    // The usual `--data` drops line breaks before anything is sent; no gateway can tell.
    let said = curl(&stack, &["--data", "a b"], path, b"").await?;
    ensure!(said == "Updated 3 bytes", "{said}");
    Ok(())
}

async fn curl_is_told_what_to_change(stack: Arc<Stack>) -> Result<()> {
    let path = "/api/v2/update?p=curl&c=1.1.1/1.1.1/1.1.2";
    for (what, args, path, hint) in [
        ("a form", &["-F", "s=text"][..], path, "form"),
        ("no coordinate", &["--data-binary", "x"], "/api/v2/update?p=curl", "1.1.1/1.1.1/1.1.1"),
        ("PUT", &["-X", "PUT", "--data-binary", "x"], path, "POST"),
        ("gzip", &["-H", "Content-Encoding: gzip", "--data-binary", "x"], path, "encod"),
        ("a misspelt endpoint", &[], "/api/v2/selct?p=curl", "select"),
        ("a border in the text", &["--data-binary", "a\x17b"], path, "0x17"),
        (
            "another charset",
            &["--data-binary", "x", "-H", "Content-Type: text/plain; charset=latin1"],
            path,
            "UTF-8",
        ),
    ] {
        // By HTTP/1.1: curl 7.88 drops an answer over HTTP/2 that comes before all of its body is sent.
        let args = [&["--http1.1"], args].concat();
        let said = curl(&stack, &args, path, b"").await.with_context(|| what)?;
        ensure!(said.contains("urn:sq:problem:"), "{what}: {said}");
        ensure!(said.to_lowercase().contains(&hint.to_lowercase()), "{what}: {said}");
    }
    Ok(())
}

async fn a_name_that_is_not_encoded_is_refused_in_any_http(stack: Arc<Stack>) -> Result<()> {
    let (key, ca) = (stack.key("alice")?, stack.certs.ca().display().to_string());
    for version in ["--http1.1", "--http2"] {
        for name in [&b"caf\xe9"[..], b"caf\xe8", "café".as_bytes()] {
            let head = format!("header = \"Authorization: {key}\"\nurl = \"{}", stack.url());
            let config = [head.as_bytes(), b"/api/v2/toc?p=", name, b"\"\n"].concat();
            let status = ["--write-out", "%{http_code}", "--output", "-"];
            let args = ["--silent", "--show-error", "--cacert", &ca, version, "--config", "-"];
            let said = run("curl", &[&args[..], &status].concat(), &config).await?;
            let name = String::from_utf8_lossy(name);
            ensure!(said.ends_with("400"), "{version} {name}: {said}");
        }
    }
    Ok(())
}

async fn python_requests_work(stack: Arc<Stack>) -> Result<()> {
    let script = include_str!("clients/requests.py");
    let (url, ca) = (stack.url(), stack.certs.ca().display().to_string());
    let packages = tools::python().display().to_string();
    let args = ["-c", script, &url, &ca, stack.key("alice")?, &packages];
    let said = run("python3", &args, b"").await.context("see: scripts/setup.sh requests")?;
    ensure!(said.trim_end().ends_with("all good"), "{said}");
    println!("{}", said.lines().next().unwrap_or_default());
    Ok(())
}

async fn a_stream_without_a_length_is_stored_whole_over_http_2(stack: Arc<Stack>) -> Result<()> {
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls(&stack.certs.ca(), &[])?)
        .https_only()
        .enable_http2()
        .build();
    let path = "/api/v2/update?p=stream&c=1.1.1/1.1.1/1.1.1";
    let pieces: Vec<String> =
        (0..200).map(|n| format!("piece {n} {}\n", "x".repeat(700))).collect();
    let body = Pieces(pieces.clone().into_iter());
    let pool = Pool::builder(TokioExecutor::new()).http2_only(true).build(connector);
    let request = Request::post(format!("{}{path}", stack.url()))
        .header("authorization", format!("Bearer {}", stack.key("alice")?))
        .body(body)?;
    ensure!(!request.headers().contains_key("content-length"), "it has a length");
    let answer = tokio::time::timeout(PATIENCE, pool.request(request)).await??;
    let status = answer.status();
    let said = answer.into_body().collect().await?.to_bytes();
    let text = pieces.concat();
    let expected = format!("Updated {} bytes", text.len());
    ensure!(status == 200 && said == expected, "{status} {}", String::from_utf8_lossy(&said));
    let back = stack.tenant("alice")?.get(&path.replace("update", "select")).await?;
    ensure!(back.text() == text, "{} of {} bytes came back", back.body.len(), text.len());
    Ok(())
}

/// A body that tells no length.
struct Pieces(std::vec::IntoIter<String>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Ready(self.0.next().map(|piece| Ok(Frame::data(Bytes::from(piece)))))
    }
}

/// The wire of `fetch` with a header of one's own; `make user-test` does it in a real browser.
async fn a_browser_s_calls_work_from_another_origin(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client(Http::Two)?;
    let origin = ("origin", "https://app.example");
    let at = "p=browser&c=1.1.1/1.1.1/1.1.1";
    for (method, path, body) in [
        (Method::POST, format!("update?{at}"), "<script>alert(1)</script>"),
        (Method::GET, format!("select?{at}"), ""),
        (Method::DELETE, format!("delete?{at}"), ""),
    ] {
        let path = format!("/api/v2/{path}");
        let preflight = [
            origin,
            ("access-control-request-method", method.as_str()),
            ("access-control-request-headers", "authorization,content-type"),
        ];

        client.send(Method::OPTIONS, &path, &preflight, "".into()).await?.expect_status(204)?;
        let bearer = format!("Bearer {}", stack.key("alice")?);
        let headers =
            [origin, ("authorization", &*bearer), ("content-type", "text/plain;charset=UTF-8")];
        let answer = client.send(method, &path, &headers, body.into()).await?.expect_ok()?;
        ensure!(answer.header("access-control-allow-origin") == "*", "{path}: {answer:?}");
        // Stored HTML does nothing.
        ensure!(answer.header("content-type").starts_with("text/plain"), "{path}: {answer:?}");
        ensure!(answer.header("content-security-policy").contains("sandbox"), "{path}: {answer:?}");
    }
    Ok(())
}
