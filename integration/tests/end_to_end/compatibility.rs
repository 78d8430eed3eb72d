//! The calls of every client that is known, as that client sends them. Each succeeds, or is refused
//! with a sentence that says what to do. The case prints the table of docs/compatibility.md.

use std::fmt::Write as _;
use std::fs;
use std::sync::Arc;

use anyhow::{Result, ensure};
use harness::host::tools;
use harness::{Http, Stack};
use hyper::Method;

use crate::shared_stack::MAIN;
use crate::suite::{Case, case};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(MAIN, calls_of_known_clients_work_or_explain),
        case!(MAIN, queue_made_by_counting_toc_keeps_its_order),
        case!(MAIN, form_instead_of_text_is_refused),
    ]
}

/// How a client sends its key.
#[derive(Clone, Copy)]
enum Key {
    Bearer,
    None,
}

/// One call, with the outcome before it was tried as the client sends it, and now.
struct Call {
    client: &'static str,
    key: Key,
    method: Method,
    path: &'static str,
    body: &'static str,
    /// Status that the gateway gave before.
    before: u16,
    now: u16,
    /// A part of the response's body.
    says: &'static str,
}

const SKILL: &str = "sq-memory 1.0.1 (OpenClaw)";
const PAPER: &str = "positioning paper";
const NOTEPAD: &str = "Phext Notepad 0.4.2";
const EXO: &str = "exo-skills (curl)";
const COMMUNITY: &str = "community docs";

#[rustfmt::skip]
fn calls() -> Vec<Call> {
    let call = |client, method: &Method, path, body, before, now, says| Call {
        client, key: Key::Bearer, method: method.clone(), path, body, before, now, says,
    };
    let get = &Method::GET;
    let post = &Method::POST;
    vec![
        call(SKILL, get, "/api/v2/update?p=agent&c=agent.1.1/user.name/1.1.1&s=Ada", "", 400, 400,
            "Scrolls have no names"),
        call(SKILL, get, "/api/v2/select?p=agent&c=agent.1.1/user.name/1.1.1", "", 400, 400,
            "/api/v2/where?p="),
        call(SKILL, post, "/api/v2/delete?p=agent&c=agent.1.1/user.name/1.1.1", "", 405, 400,
            "Scrolls have no names"),
        call(SKILL, get, "/api/v2/toc?p=agent", "", 200, 200, ""),
        call(PAPER, get, "/api/v2/insert?p=paper&c=1.1.1/1.1.1/1.1.2&s=hello", "", 200, 200,
            "Inserted 5 bytes"),
        call(PAPER, post, "/api/v2/delete?p=paper&c=1.1.1/1.1.1/1.1.2", "", 405, 200,
            "Removed 5 bytes"),
        call(NOTEPAD, post, "/api/v2/update?p=pad&c=1.1.1;1.1.1;1.1.1", "one", 200, 200,
            "Updated 3 bytes"),
        call(NOTEPAD, post, "/api/v2/delta?p=pad&c=1.1.1/1.1.1/1.1.1",
            "1.1.1/1.1.1/1.1.1: 99aa06d3014798d86001c324468d497f", 400, 200, "one"),
        call(NOTEPAD, get, "/api/v2/get?p=pad&c=1.1.1/1.1.1/1.1.1", "", 400, 200, "one"),
        call(EXO, get, "/api/v2/toc?p=pad&c=1.1.1/1.1.1/1.1.1", "", 400, 200,
            "* 1.1.1/1.1.1/1.1.1: one"),
        Call { key: Key::None, ..call(COMMUNITY, get, "/health", "", 401, 200, "ok") },
    ]
}

async fn calls_of_known_clients_work_or_explain(stack: Arc<Stack>) -> Result<()> {
    let bearer = format!("Bearer {}", stack.key("bob")?);
    let mut table = String::from("| client | call | before | now |\n|---|---|---|---|\n");
    for http in [Http::One, Http::Two] {
        let client = stack.client(http)?;
        for call in calls() {
            let mut headers = vec![("authorization", bearer.as_str())];
            if let Key::None = call.key {
                headers.clear();
            }
            let sent = client.send(call.method.clone(), call.path, &headers, call.body.into());
            let response = sent.await?;
            let path = format!("{} {}", call.method, call.path);
            ensure!(response.status == call.now, "{}: {path}: {response:?}", call.client);
            ensure!(response.text().contains(call.says), "{}: {path}: {response:?}", call.client);
            if let Http::Two = http {
                let now = outcome(call.now);
                writeln!(table, "| {} | `{path}` | {} | {now} |", call.client, call.before)?;
            }
        }
    }
    println!("{table}");
    let page = fs::read_to_string(tools::root().join("docs/compatibility.md"))?;
    ensure!(page.contains(&table), "docs/compatibility.md has another table than\n{table}");
    Ok(())
}

fn outcome(status: u16) -> String {
    if status < 400 { format!("**{status}**") } else { format!("{status}, says what to do") }
}

/// Clients use the number of lines of `toc` as the next free place.
async fn queue_made_by_counting_toc_keeps_its_order(stack: Arc<Stack>) -> Result<()> {
    let client = stack.tenant("bob")?;
    for (phext, first) in [("queue", "\n"), ("queue 2", " "), ("queue 3", "first")] {
        let phext = harness::client::encode(phext);
        let toc = format!("/api/v2/toc?p={phext}");
        client.get(&toc).await?.expect_text(200, "")?;
        for message in [first, "second"] {
            let lines = client.get(&toc).await?.expect_ok()?.text().lines().count();
            let next = format!("/api/v2/insert?p={phext}&c=1.1.1/1.1.1/1.1.{}", lines + 1);
            client.post(&next, message).await?.expect_ok()?;
        }
        let status = client.get(&format!("/api/v2/status?p={phext}")).await?.expect_ok()?;
        ensure!(status.text().ends_with("Scrolls: 2"), "{status:?}");
        for (place, message) in [(1, first), (2, "second")] {
            let at = format!("/api/v2/select?p={phext}&c=1.1.1/1.1.1/1.1.{place}");
            client.get(&at).await?.expect_text(200, message)?;
        }
    }
    let status = client.get("/api/v2/status?p=never-written").await?.expect_ok()?;
    ensure!(status.text().ends_with("Phext Size: 0\nScrolls: 0"), "{status:?}");
    Ok(())
}

async fn form_instead_of_text_is_refused(stack: Arc<Stack>) -> Result<()> {
    let client = stack.tenant("bob")?;
    let path = "/api/v2/update?p=form&c=1.1.1/1.1.1/1.1.1";
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let response = client.send(Method::POST, path, &form, "s=my+text".into()).await?;
    let problem = response.expect_problem(400, "bad-body")?;
    ensure!(problem.detail.contains("--data-binary"), "{}", problem.detail);
    ensure!(response.text().contains("\"example\":\"POST /api/v2/update?"), "{response:?}");
    client.send(Method::POST, path, &form, "my text".into()).await?.expect_ok()?;
    client.get("/api/v2/select?p=form&c=1.1.1/1.1.1/1.1.1").await?.expect_text(200, "my text")?;
    Ok(())
}
