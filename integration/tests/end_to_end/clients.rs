//! Requests as the gateway's users send them: each works, or the response says what to change.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use harness::client::{FIRST_SCROLL, tls};
use harness::host::tools;
use harness::{Client, Http, Response, Stack};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame};
use hyper::{Method, Request};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::rt::TokioExecutor;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::shared_stack::MAIN;
use crate::suite::{Case, case};

/// Time-out of a program or a streamed request.
const TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(MAIN, openclaw_skill_calls_work),
        case!(MAIN, phext_notepad_calls_work),
        case!(MAIN, curl_stores_a_file_byte_for_byte),
        case!(MAIN, curl_errors_say_what_to_change),
        case!(MAIN, unencoded_phext_name_is_refused),
        case!(MAIN, python_requests_library_works),
        case!(MAIN, http2_stream_without_length_is_stored_whole),
        case!(MAIN, browser_calls_work_from_another_origin),
    ]
}

fn expect_text_within(response: Response, text: &str) -> Result<()> {
    let response = response.expect_ok()?;
    let body = response.text();
    ensure!(body.contains(text), "{}: {body:?} lacks {text:?}", response.request);
    Ok(())
}

async fn openclaw_skill_calls_work(stack: Arc<Stack>) -> Result<()> {
    for http in [Http::One, Http::Two] {
        let skill = OpenClaw { client: stack.client(http)?, key: stack.key("alice")? };
        skill.send(Method::DELETE, "delete?p=openclaw&c=3.1.4/1.5.9/2.6.5", "").await?;
        let insert = "insert?p=openclaw&c=3.1.4/1.5.9/2.6.5";
        let inserted = skill.send(Method::POST, insert, "remember the milk").await?;
        expect_text_within(inserted, "Inserted")?;
        let select = "select?p=openclaw&c=3.1.4/1.5.9/2.6.5";
        expect_text_within(skill.send(Method::GET, select, "").await?, "remember the milk")?;
        let toc = skill.send(Method::GET, "toc?p=openclaw", "").await?;
        expect_text_within(toc, "3.1.4/1.5.9/2.6.5")?;
        let delete = "delete?p=openclaw&c=3.1.4/1.5.9/2.6.5";
        expect_text_within(skill.send(Method::DELETE, delete, "").await?, "Removed")?;
        skill.send(Method::GET, select, "").await?.expect_text(200, "")?;
    }
    Ok(())
}

/// HTTP calls as the skill makes them: with a bearer key, and with a content type even on GET.
struct OpenClaw<'a> {
    client: Client,
    key: &'a str,
}

impl OpenClaw<'_> {
    async fn send(&self, method: Method, path: &str, body: &'static str) -> Result<Response> {
        let bearer = format!("Bearer {}", self.key);
        let headers = [("authorization", bearer.as_str()), ("content-type", "text/plain")];
        self.client.send(method, &format!("/api/v2/{path}"), &headers, body.into()).await
    }
}

async fn phext_notepad_calls_work(stack: Arc<Stack>) -> Result<()> {
    let headers = [("x-sq-api-key", stack.key("alice")?)];
    for http in [Http::One, Http::Two] {
        let client = stack.client(http)?;
        // Notepad writes coordinates with semicolons.
        let update = "/api/v2/update?p=notepad&c=1.1.1;1.1.1;1.1.2";
        let text = "line one\nline two";
        let updated = client.send(Method::POST, update, &headers, text.into()).await?;
        expect_text_within(updated, "Updated 17 bytes")?;
        let select = "/api/v2/select?p=notepad&c=1.1.1;1.1.1;1.1.2";
        expect_text_within(client.get_with_headers(select, &headers).await?, text)?;
        for read in ["get", "toc", "delta", "checksum"] {
            let path = format!("/api/v2/{read}?p=notepad");
            let response = client.get_with_headers(&path, &headers).await?.expect_ok()?;
            ensure!(!response.body.is_empty(), "{read}: {response:?}");
        }
    }
    Ok(())
}

/// Runs a program with this input and returns its stdout.
async fn run(program: &str, args: &[&str], input: &[u8]) -> Result<String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("this test needs {program}"))?;
    let mut stdin = child.stdin.take().context("stdin")?;
    stdin.write_all(input).await?;
    drop(stdin);
    let output = tokio::time::timeout(TIMEOUT, child.wait_with_output())
        .await
        .with_context(|| format!("{program} did not finish within {TIMEOUT:?}"))??;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {}\n{stdout}\n{stderr}", output.status);
    Ok(stdout)
}

/// Runs curl with alice's key and returns the body of the response.
async fn curl(stack: &Stack, args: &[&str], path: &str, input: &[u8]) -> Result<String> {
    let bearer = format!("Authorization: Bearer {}", stack.key("alice")?);
    let ca = stack.certs.ca().display().to_string();
    let url = format!("{}{path}", stack.url());
    let mut all = vec!["--silent", "--show-error", "--cacert", &ca, "--header", &bearer];
    all.extend(args);
    all.push(&url);
    run("curl", &all, input).await
}

async fn curl_stores_a_file_byte_for_byte(stack: Arc<Stack>) -> Result<()> {
    let text = "first line\r\nsecond\tline, ünïcode 🙂\n".repeat(5_000);
    let update = format!("/api/v2/update?p=curl&{FIRST_SCROLL}");
    let select = format!("/api/v2/select?p=curl&{FIRST_SCROLL}");
    for version in ["--http1.1", "--http2"] {
        // Above a megabyte, curl waits for `100 Continue`.
        let args = [version, "--data-binary", "@-"];
        let body = curl(&stack, &args, &update, text.as_bytes()).await?;
        ensure!(body == format!("Updated {} bytes", text.len()), "{body}");
        let stored = curl(&stack, &[version], &select, b"").await?;
        ensure!(stored == text, "{} of {} bytes came back", stored.len(), text.len());
    }
    // `--data` drops line breaks before it sends anything, so no gateway can notice.
    let body = curl(&stack, &["--data", "a b"], &update, b"").await?;
    ensure!(body == "Updated 3 bytes", "{body}");
    Ok(())
}

async fn curl_errors_say_what_to_change(stack: Arc<Stack>) -> Result<()> {
    let path = "/api/v2/update?p=curl&c=1.1.1/1.1.1/1.1.2";
    for (mistake, args, path, hint) in [
        ("a form", &["-F", "s=text"][..], path, "form"),
        ("no coordinate", &["--data-binary", "x"], "/api/v2/update?p=curl", "1.1.1/1.1.1/1.1.1"),
        ("PUT", &["-X", "PUT", "--data-binary", "x"], path, "POST"),
        ("gzip", &["-H", "Content-Encoding: gzip", "--data-binary", "x"], path, "encod"),
        ("a misspelt endpoint", &[], "/api/v2/selct?p=curl", "select"),
        ("a delimiter in the text", &["--data-binary", "a\x17b"], path, "0x17"),
        (
            "another charset",
            &["--data-binary", "x", "-H", "Content-Type: text/plain; charset=latin1"],
            path,
            "UTF-8",
        ),
    ] {
        // Over HTTP/2 curl 7.88 drops a response that arrives before all of its body is sent.
        let args = [&["--http1.1"], args].concat();
        let body = curl(&stack, &args, path, b"").await.context(mistake)?;
        ensure!(body.contains("urn:sq:problem:"), "{mistake}: {body}");
        ensure!(body.to_lowercase().contains(&hint.to_lowercase()), "{mistake}: {body}");
    }
    Ok(())
}

async fn unencoded_phext_name_is_refused(stack: Arc<Stack>) -> Result<()> {
    let key = stack.key("alice")?;
    let ca = stack.certs.ca().display().to_string();
    for version in ["--http1.1", "--http2"] {
        for name in [&b"caf\xe9"[..], b"caf\xe8", "café".as_bytes()] {
            // Only a config file can carry bytes that are not UTF-8.
            let head = format!("header = \"Authorization: {key}\"\nurl = \"{}", stack.url());
            let config = [head.as_bytes(), b"/api/v2/toc?p=", name, b"\"\n"].concat();
            let args = [
                "--silent",
                "--show-error",
                "--cacert",
                &ca,
                version,
                "--config",
                "-",
                "--write-out",
                "%{http_code}",
                "--output",
                "-",
            ];
            let output = run("curl", &args, &config).await?;
            let name = String::from_utf8_lossy(name);
            ensure!(output.ends_with("400"), "{version} {name}: {output}");
        }
    }
    Ok(())
}

async fn python_requests_library_works(stack: Arc<Stack>) -> Result<()> {
    let script = include_str!("clients/requests.py");
    let url = stack.url();
    let ca = stack.certs.ca().display().to_string();
    let packages = tools::python().display().to_string();
    let args = ["-c", script, &url, &ca, stack.key("alice")?, &packages];
    let output = run("python3", &args, b"").await.context("see: scripts/setup.sh requests")?;
    ensure!(output.trim_end().ends_with("all good"), "{output}");
    println!("{}", output.lines().next().unwrap_or_default());
    Ok(())
}

async fn http2_stream_without_length_is_stored_whole(stack: Arc<Stack>) -> Result<()> {
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls(&stack.certs.ca(), &[])?)
        .https_only()
        .enable_http2()
        .build();
    let pool = Pool::builder(TokioExecutor::new()).http2_only(true).build(connector);
    let pieces: Vec<String> =
        (0..200).map(|n| format!("piece {n} {}\n", "x".repeat(700))).collect();
    let text = pieces.concat();
    let url = format!("{}/api/v2/update?p=stream&{FIRST_SCROLL}", stack.url());
    let request = Request::post(url)
        .header("authorization", format!("Bearer {}", stack.key("alice")?))
        .body(Pieces(pieces.into_iter()))?;
    ensure!(!request.headers().contains_key("content-length"), "the request has a length");
    let response = tokio::time::timeout(TIMEOUT, pool.request(request)).await??;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    let expected = format!("Updated {} bytes", text.len());
    ensure!(status == 200 && body == expected, "{status} {}", String::from_utf8_lossy(&body));
    let stored = stack.tenant("alice")?.select("stream").await?;
    ensure!(stored.text() == text, "{} of {} bytes came back", stored.body.len(), text.len());
    Ok(())
}

/// A body without a known length.
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

/// Sends the bytes of a `fetch` with its own header: a preflight, then the request. `make
/// user-test` does the same in a real browser.
async fn browser_calls_work_from_another_origin(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client(Http::Two)?;
    let origin = ("origin", "https://app.example");
    let bearer = format!("Bearer {}", stack.key("alice")?);
    for (method, endpoint, body) in [
        (Method::POST, "update", "<script>alert(1)</script>"),
        (Method::GET, "select", ""),
        (Method::DELETE, "delete", ""),
    ] {
        let path = format!("/api/v2/{endpoint}?p=browser&{FIRST_SCROLL}");
        let preflight = [
            origin,
            ("access-control-request-method", method.as_str()),
            ("access-control-request-headers", "authorization,content-type"),
        ];
        client.send(Method::OPTIONS, &path, &preflight, "".into()).await?.expect_status(204)?;
        let headers =
            [origin, ("authorization", &*bearer), ("content-type", "text/plain;charset=UTF-8")];
        let response = client.send(method, &path, &headers, body.into()).await?.expect_ok()?;
        ensure!(response.header("access-control-allow-origin") == "*", "{path}: {response:?}");
        // A browser must not run stored HTML.
        let content_type = response.header("content-type");
        ensure!(content_type.starts_with("text/plain"), "{path}: {response:?}");
        let policy = response.header("content-security-policy");
        ensure!(policy.contains("sandbox"), "{path}: {response:?}");
    }
    Ok(())
}
