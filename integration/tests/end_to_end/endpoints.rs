//! Every endpoint, for both SQ versions, over HTTP/1.1 and HTTP/2: what was stored comes back.

use std::sync::Arc;

use anyhow::{Result, ensure};
use harness::client::encode;
use harness::{Client, Http, Response, Stack, StackBuilder};
use hyper::{Method, Version};
use serde_json::Value;

use crate::world::{Case, On, case};

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
        case!(new, every_endpoint_of_sq_0_6_0_answers_over_http_1),
        case!(new, every_endpoint_of_sq_0_6_0_answers_over_http_2),
        case!(old, every_endpoint_of_sq_0_5_0_answers_over_http_1),
        case!(old, every_endpoint_of_sq_0_5_0_answers_over_http_2),
        case!(new, any_text_comes_back_from_sq_0_6_0_as_it_was_stored),
        case!(old, any_text_comes_back_from_sq_0_5_0_as_it_was_stored),
    ]
}

async fn every_endpoint_of_sq_0_6_0_answers_over_http_1(stack: Arc<Stack>) -> Result<()> {
    every_endpoint(&stack, "0.6.0", Http::One, "one").await
}

async fn every_endpoint_of_sq_0_6_0_answers_over_http_2(stack: Arc<Stack>) -> Result<()> {
    every_endpoint(&stack, "0.6.0", Http::Two, "two").await
}

async fn every_endpoint_of_sq_0_5_0_answers_over_http_1(stack: Arc<Stack>) -> Result<()> {
    every_endpoint(&stack, "0.5.0", Http::One, "one").await
}

async fn every_endpoint_of_sq_0_5_0_answers_over_http_2(stack: Arc<Stack>) -> Result<()> {
    every_endpoint(&stack, "0.5.0", Http::Two, "two").await
}

async fn any_text_comes_back_from_sq_0_6_0_as_it_was_stored(stack: Arc<Stack>) -> Result<()> {
    any_text(&stack).await
}

async fn any_text_comes_back_from_sq_0_5_0_as_it_was_stored(stack: Arc<Stack>) -> Result<()> {
    any_text(&stack).await
}

/// A client, and what it is to see in every answer.
struct Asker {
    client: Client,
    version: Version,
}

impl Asker {
    async fn ask(&self, method: Method, path: &str, body: &str) -> Result<Response> {
        let path = format!("/api/v2/{path}");
        let answer =
            self.client.send(method, &path, &[], body.to_owned().into()).await?.expect_ok()?;
        ensure!(answer.version == self.version, "{path}: {:?}", answer.version);
        ensure!(!answer.header("content-type").is_empty(), "{path} has no content type");
        ensure!(answer.header("x-content-type-options") == "nosniff", "{path}: {answer:?}");
        ensure!(!answer.header("x-request-id").is_empty(), "{path} has no request id");
        Ok(answer)
    }

    async fn get(&self, path: &str) -> Result<String> {
        Ok(self.ask(Method::GET, path, "").await?.text())
    }

    async fn expect(&self, method: Method, path: &str, body: &str, text: &str) -> Result<()> {
        let said = self.ask(method, path, body).await?.text();
        ensure!(said.contains(text), "{path} says {said:?}, not {text:?}");
        Ok(())
    }
}

const C: &str = "c=1.1.1/1.1.1/1.1.2";

async fn every_endpoint(stack: &Stack, sq: &str, http: Http, tenant: &str) -> Result<()> {
    let client = stack.client(http)?.key(stack.key(tenant)?);
    let version = if http == Http::One { Version::HTTP_11 } else { Version::HTTP_2 };
    let a = Asker { client, version };
    a.expect(Method::GET, "version", "", sq).await?;
    // Writes.
    let p = "p=book";
    a.expect(Method::GET, &format!("insert?{p}&{C}&s=a%20b"), "", "Inserted").await?;
    a.expect(Method::POST, &format!("insert?{p}&{C}"), "+c", "Inserted").await?;
    ensure!(a.get(&format!("select?{p}&{C}")).await? == "a b+c", "inserts append");
    a.expect(Method::GET, &format!("update?{p}&{C}&s=new"), "", "Updated").await?;
    ensure!(a.get(&format!("select?{p}&{C}")).await? == "new", "an update overwrites");
    a.expect(Method::POST, &format!("update?{p}&{C}"), "newer", "Updated").await?;
    ensure!(a.get(&format!("select?{p}&{C}")).await? == "newer", "an update overwrites");
    // Reads.
    a.expect(Method::GET, &format!("toc?{p}"), "", "1.1.2").await?;
    for (read, said) in [
        ("get", "\x17newer"),
        ("delta", "\x17newer"),
        // Of these six bytes; where it lies on the server is not told.
        ("checksum", "67f40a5e1f3d58287ac95d0d7d64e974"),
        ("load", "Loaded book"),
    ] {
        let answer = a.get(&format!("{read}?{p}")).await?;
        ensure!(answer == said, "{read} says {answer:?}, not {said:?}");
    }
    let status = a.get(&format!("status?{p}")).await?;
    let lines: Vec<&str> = status.lines().collect();
    ensure!(lines.contains(&"Hosting: book") && lines.contains(&"Phext Size: 6"), "{status}");
    let export = a.get(&format!("json-export?{p}")).await?;
    ensure!(serde_json::from_str::<Value>(&export).is_ok(), "json-export is no JSON: {export}");
    let stale = format!("1.1.1/1.1.1/1.1.2: {}\n", "0".repeat(32));
    a.expect(Method::POST, &format!("delta?{p}"), &stale, "newer").await?;
    query(&a, sq, p).await?;
    // And gone.
    a.expect(Method::GET, &format!("delete?{p}&{C}"), "", "Removed").await?;
    ensure!(a.get(&format!("select?{p}&{C}")).await?.is_empty(), "deleted is gone");
    a.ask(Method::GET, &format!("update?{p}&{C}&s=again"), "").await?;
    a.expect(Method::DELETE, &format!("delete?{p}&{C}"), "", "Removed").await?;
    ensure!(a.get(&format!("select?{p}&{C}")).await?.is_empty(), "deleted is gone");
    let head = a.ask(Method::HEAD, &format!("toc?{p}"), "").await?;
    ensure!(head.body.is_empty(), "HEAD has no body");
    Ok(())
}

/// `query` is younger than SQ 0.5.0, and the gateway says so there.
async fn query(a: &Asker, sq: &str, p: &str) -> Result<()> {
    let path = format!("query?{p}&from=1.1.1/1.1.1/1.1.1&to=1.1.1/1.1.1/1.1.9&limit=5");
    if sq == "0.5.0" {
        a.client.get(&format!("/api/v2/{path}")).await?.expect_status(501)?;
        return Ok(());
    }
    for (method, path, body) in
        [(Method::GET, path, ""), (Method::POST, format!("query?{p}"), "1.1.1/1.1.1/1.1.2\n")]
    {
        let answer: Value = serde_json::from_str(&a.ask(method, &path, body).await?.text())?;
        ensure!(answer.as_array().is_some_and(|all| all.len() == 1), "{path}: {answer}");
    }
    Ok(())
}

/// What breaks encoders, parsers and framings.
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

async fn any_text(stack: &Stack) -> Result<()> {
    for (tenant, http) in [("one", Http::One), ("two", Http::Two)] {
        let client = stack.client(http)?.key(stack.key(tenant)?);
        for (number, text) in TEXTS.iter().enumerate() {
            for by_body in [false, true] {
                let at = format!("p=texts&c=1.1.1/1.1.1/1.1.{}", number + 1);
                let answer = if by_body {
                    client.post(&format!("/api/v2/update?{at}"), *text).await?
                } else {
                    let s = encode(text);
                    client.get(&format!("/api/v2/update?{at}&s={s}")).await?
                };
                ensure!(answer.ok(), "{text:?}: {} {}", answer.status, answer.text());
                let back = client.get(&format!("/api/v2/select?{at}")).await?;
                ensure!(back.text() == *text, "{text:?} came back as {:?}", back.text());
            }
        }
        let plus = "/api/v2/update?p=texts&c=1.1.1/1.1.1/1.2.1&s=a+b";
        client.get(plus).await?.expect_ok()?;
        let back = client.get("/api/v2/select?p=texts&c=1.1.1/1.1.1/1.2.1").await?;
        ensure!(back.text() == "a b", "+ came back as {:?}", back.text());
    }
    Ok(())
}
