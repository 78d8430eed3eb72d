//! Every endpoint of both SQ versions, over HTTP/1.1 and HTTP/2, and any text unchanged.

use std::sync::Arc;

use anyhow::{Result, ensure};
use harness::client::encode;
use harness::{Client, Http, Response, Stack, StackBuilder};
use hyper::{Method, Version};
use serde_json::Value;

use crate::suite::{Case, On, case};

fn sq_0_6_0() -> StackBuilder {
    Stack::builder().tenant("one").tenant("two")
}

fn sq_0_5_0() -> StackBuilder {
    sq_0_6_0().sq("0.5.0")
}

pub(crate) fn cases() -> Vec<Case> {
    let new = On::Shared("sq 0.6.0", sq_0_6_0);
    let old = On::Shared("sq 0.5.0", sq_0_5_0);
    vec![
        case!(new, every_sq_0_6_endpoint_works_over_http1),
        case!(new, every_sq_0_6_endpoint_works_over_http2),
        case!(old, every_sq_0_5_endpoint_works_over_http1),
        case!(old, every_sq_0_5_endpoint_works_over_http2),
        case!(new, sq_0_6_returns_text_as_stored),
        case!(old, sq_0_5_returns_text_as_stored),
    ]
}

async fn every_sq_0_6_endpoint_works_over_http1(stack: Arc<Stack>) -> Result<()> {
    let api = Api::new(&stack, Http::One, "one")?;
    check_endpoints(&api, "0.6.0").await?;
    check_query(&api).await
}

async fn every_sq_0_6_endpoint_works_over_http2(stack: Arc<Stack>) -> Result<()> {
    let api = Api::new(&stack, Http::Two, "two")?;
    check_endpoints(&api, "0.6.0").await?;
    check_query(&api).await
}

async fn every_sq_0_5_endpoint_works_over_http1(stack: Arc<Stack>) -> Result<()> {
    let api = Api::new(&stack, Http::One, "one")?;
    check_endpoints(&api, "0.5.0").await?;
    check_query_is_unsupported(&api).await
}

async fn every_sq_0_5_endpoint_works_over_http2(stack: Arc<Stack>) -> Result<()> {
    let api = Api::new(&stack, Http::Two, "two")?;
    check_endpoints(&api, "0.5.0").await?;
    check_query_is_unsupported(&api).await
}

async fn sq_0_6_returns_text_as_stored(stack: Arc<Stack>) -> Result<()> {
    check_texts(&stack).await
}

async fn sq_0_5_returns_text_as_stored(stack: Arc<Stack>) -> Result<()> {
    check_texts(&stack).await
}

/// A tenant's client of `/api/v2/`, and the HTTP version of its responses.
struct Api {
    client: Client,
    version: Version,
}

impl Api {
    fn new(stack: &Stack, http: Http, tenant: &str) -> Result<Self> {
        let client = stack.client(http)?.key(stack.key(tenant)?);
        let version = if http == Http::One { Version::HTTP_11 } else { Version::HTTP_2 };
        Ok(Self { client, version })
    }

    /// Sends a request and checks status, HTTP version and the headers of every response.
    async fn send(&self, method: Method, path: &str, body: &str) -> Result<Response> {
        let path = format!("/api/v2/{path}");
        let response = self.client.send(method, &path, &[], body.to_owned().into()).await?;
        let response = response.expect_ok()?;
        ensure!(response.version == self.version, "{path}: {:?}", response.version);
        ensure!(!response.header("content-type").is_empty(), "{path} has no content type");
        ensure!(response.header("x-content-type-options") == "nosniff", "{path}: {response:?}");
        ensure!(!response.header("x-request-id").is_empty(), "{path} has no request id");
        Ok(response)
    }

    async fn get(&self, path: &str) -> Result<String> {
        Ok(self.send(Method::GET, path, "").await?.text())
    }

    async fn expect(&self, method: Method, path: &str, body: &str, text: &str) -> Result<()> {
        let response = self.send(method, path, body).await?.text();
        ensure!(response.contains(text), "{path} returns {response:?} without {text:?}");
        Ok(())
    }

    /// Checks the text of [`SCROLL`].
    async fn expect_stored(&self, text: &str) -> Result<()> {
        let stored = self.get(&format!("select?{SCROLL}")).await?;
        ensure!(stored == text, "stored {stored:?}, expected {text:?}");
        Ok(())
    }
}

const SCROLL: &str = "p=book&c=1.1.1/1.1.1/1.1.2";

async fn check_endpoints(api: &Api, sq: &str) -> Result<()> {
    api.expect(Method::GET, "version", "", sq).await?;
    check_writes(api).await?;
    check_reads(api).await?;
    check_deletes(api).await?;
    let head = api.send(Method::HEAD, "toc?p=book", "").await?;
    ensure!(head.body.is_empty(), "the response to HEAD has a body");
    Ok(())
}

/// Leaves the text `newer` in [`SCROLL`]. `insert` appends, `update` overwrites.
async fn check_writes(api: &Api) -> Result<()> {
    api.expect(Method::GET, &format!("insert?{SCROLL}&s=a%20b"), "", "Inserted").await?;
    api.expect(Method::POST, &format!("insert?{SCROLL}"), "+c", "Inserted").await?;
    api.expect_stored("a b+c").await?;
    api.expect(Method::GET, &format!("update?{SCROLL}&s=new"), "", "Updated").await?;
    api.expect_stored("new").await?;
    api.expect(Method::POST, &format!("update?{SCROLL}"), "newer", "Updated").await?;
    api.expect_stored("newer").await
}

async fn check_reads(api: &Api) -> Result<()> {
    api.expect(Method::GET, "toc?p=book", "", "1.1.2").await?;
    for (read, expected) in [
        ("get", "\x17newer"),
        ("delta", "\x17newer"),
        // The checksum of these six bytes.
        ("checksum", "67f40a5e1f3d58287ac95d0d7d64e974"),
        // The gateway removes the path on the server.
        ("load", "Loaded book"),
    ] {
        let text = api.get(&format!("{read}?p=book")).await?;
        ensure!(text == expected, "{read} returns {text:?}, not {expected:?}");
    }
    let status = api.get("status?p=book").await?;
    let lines: Vec<&str> = status.lines().collect();
    ensure!(lines.contains(&"Hosting: book") && lines.contains(&"Phext Size: 6"), "{status}");
    let export = api.get("json-export?p=book").await?;
    ensure!(serde_json::from_str::<Value>(&export).is_ok(), "json-export is not JSON: {export}");
    let stale = format!("1.1.1/1.1.1/1.1.2: {}\n", "0".repeat(32));
    api.expect(Method::POST, "delta?p=book", &stale, "newer").await
}

async fn check_deletes(api: &Api) -> Result<()> {
    let delete = format!("delete?{SCROLL}");
    api.expect(Method::GET, &delete, "", "Removed").await?;
    api.expect_stored("").await?;
    api.send(Method::GET, &format!("update?{SCROLL}&s=again"), "").await?;
    api.expect(Method::DELETE, &delete, "", "Removed").await?;
    api.expect_stored("").await
}

/// Checks `query`, by a range and by a list of coordinates.
async fn check_query(api: &Api) -> Result<()> {
    api.send(Method::GET, &format!("update?{SCROLL}&s=newer"), "").await?;
    let set = "1.1.1/1.1.1/1.1.2\n";
    for (method, path, body) in [(Method::GET, RANGE, ""), (Method::POST, "query?p=book", set)] {
        let found: Value = api.send(method, path, body).await?.json()?;
        ensure!(found.as_array().is_some_and(|all| all.len() == 1), "{path}: {found}");
    }
    Ok(())
}

const RANGE: &str = "query?p=book&from=1.1.1/1.1.1/1.1.1&to=1.1.1/1.1.1/1.1.9&limit=5";

/// SQ 0.5.0 has no `query`, and the gateway says so.
async fn check_query_is_unsupported(api: &Api) -> Result<()> {
    api.client.get(&format!("/api/v2/{RANGE}")).await?.expect_status(501)?;
    Ok(())
}

/// Texts that break encoders, parsers and framing.
const TEXTS: [&str; 9] = [
    "two words",
    "1+1=2",
    "a&b=c&p=other",
    "100 % %20 %zz %",
    "emoji 🙂 and ünïcode",
    "line one\nline two\r\nline three\n",
    "a#b?c/d;e:f",
    "\"quoted\" \\ 'text' <b>",
    "   spaces around   ",
];

async fn check_texts(stack: &Stack) -> Result<()> {
    for (tenant, http) in [("one", Http::One), ("two", Http::Two)] {
        let client = stack.client(http)?.key(stack.key(tenant)?);
        for (number, text) in (1..).zip(TEXTS) {
            let scroll = format!("p=texts&c=1.1.1/1.1.1/1.1.{number}");
            let in_query = format!("/api/v2/update?{scroll}&s={}", encode(text));
            client.get(&in_query).await?.expect_ok()?;
            check_text(&client, &scroll, text).await?;
            client.post(&format!("/api/v2/update?{scroll}"), text).await?.expect_ok()?;
            check_text(&client, &scroll, text).await?;
        }
        // In a query `+` is a space.
        let scroll = "p=texts&c=1.1.1/1.1.1/1.2.1";
        client.get(&format!("/api/v2/update?{scroll}&s=a+b")).await?.expect_ok()?;
        check_text(&client, scroll, "a b").await?;
    }
    Ok(())
}

async fn check_text(client: &Client, scroll: &str, text: &str) -> Result<()> {
    client.get(&format!("/api/v2/select?{scroll}")).await?.expect_text(200, text)?;
    Ok(())
}
