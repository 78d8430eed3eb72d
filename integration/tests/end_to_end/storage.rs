//! What does not fit is refused before SQ sees it: SQ itself answers 200 and cuts.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use experiments::proof::disk::SmallDisk;
use harness::client::raw::Raw;
use harness::{Client, Response, Stack, StackBuilder, Tier, until};
use hyper::Method;
use serde_json::Value;

use crate::suite::{Case, On, case};

/// Long enough for the orchestrator's next measurement to reach every worker.
const MEASURED: Duration = Duration::from_secs(15);
const CAP: u64 = 400_000;
const BODY: usize = 20_000;
/// What a far coordinate may add to a text.
const DELIMITERS: u64 = 8_982;

/// A tier with few limits but those of storage.
fn tier(name: &str, storage: u64, phexts: u32, phext_max: &str) -> Tier {
    Tier::unlimited(name)
        .set("storage", format!("{storage} B"))
        .set("phexts", phexts)
        .set("phext-max", phext_max)
}

fn small() -> StackBuilder {
    Stack::builder()
        .workers(4)
        .tier(tier("tight", CAP, 100, "auto"))
        .tier(tier("few", 100_000_000, 3, "100 kB"))
        .tenant_in_tier("full", "tight")
        .tenant_in_tier("herd", "tight")
        .tenant_in_tier("held", "tight")
        .tenant_in_tier("turns", "few")
        .tenant_in_tier("few", "few")
        .tenant("reader")
}

fn one_tenant() -> StackBuilder {
    Stack::builder().tenant("alice")
}

fn no_room() -> StackBuilder {
    // More than any disk has.
    Stack::builder().tenant("alice").orchestrator("\n[host]\ndisk_floor = 1000000000000000\n")
}

pub(crate) fn cases() -> Vec<Case> {
    let small = On::Shared("storage", small);
    vec![
        case!(small, a_write_that_may_not_fit_is_told_what_is_used_and_what_to_do),
        case!(small, writers_at_many_workers_overshoot_by_less_than_one_body_each),
        case!(small, uploads_held_back_at_their_end_do_not_pass_the_cap_together),
        case!(small, texts_saved_by_turns_count_until_they_are_measured_and_no_longer),
        case!(small, one_phext_too_many_is_refused_and_those_that_are_there_work),
        case!(small, a_phext_larger_than_the_tier_s_memory_can_hold_is_refused),
        case!(small, empty_files_that_reads_left_behind_are_gone_after_a_sleep),
        case!(On::Own(one_tenant), a_tenant_on_a_disk_of_its_own_is_told_to_have_a_hard_limit),
        case!(On::Own(no_room), below_the_host_s_floor_nothing_is_changed_and_everything_is_read),
    ]
}

/// A refusal's document: its last part of `type`, and all of it.
fn problem(answer: &Response) -> Result<(String, Value)> {
    let document: Value = serde_json::from_slice(&answer.body)
        .with_context(|| format!("{} {}", answer.status, answer.text()))?;
    ensure!(answer.header("content-type") == "application/problem+json", "{answer:?}");
    let name = document["type"].as_str().unwrap_or_default();
    Ok((name.rsplit(':').next().unwrap_or_default().to_owned(), document))
}

async fn append(client: &Client, phext: &str, n: usize) -> Result<Response> {
    let path = format!("/api/v2/insert?p={phext}&c=1.1.1/1.1.1/1.1.{}", n % 900 + 1);
    client.post(&path, "x".repeat(BODY)).await
}

fn stored(stack: &Stack, tenant: &str) -> Result<u64> {
    let mut sum = 0;
    for file in fs::read_dir(stack.orchestrator.data().join(tenant))? {
        sum += file?.metadata()?.len();
    }
    Ok(sum)
}

async fn a_write_that_may_not_fit_is_told_what_is_used_and_what_to_do(
    stack: Arc<Stack>,
) -> Result<()> {
    let client = stack.tenant("full")?;
    // Counting is on the safe side, measuring exact: filled until measuring says that it is full.
    let refused = until("the storage to be full", MEASURED, || async {
        for n in 0..30 {
            let answer = append(&client, "a", n).await.ok()?;
            if answer.status == 507 && answer.header("retry-after").is_empty() {
                return Some(answer);
            }
        }
        None
    })
    .await?;
    let (name, document) = problem(&refused)?;
    ensure!(name == "storage-full" && document["cap"] == CAP, "{document}");
    let used = document["used"].as_u64().context("used")?;
    ensure!(used <= CAP && used + BODY as u64 + DELIMITERS > CAP, "{document}");
    let detail = document["detail"].as_str().unwrap_or_default();
    ensure!(detail.contains("Delete") && detail.contains("tier"), "{detail}");
    ensure!(stored(&stack, "full")? <= CAP, "more is stored than allowed");
    // Reading and removing always work, and make room.
    client.get("/api/v2/toc?p=a").await?.expect_ok()?;
    for n in 1..=6 {
        let path = format!("/api/v2/delete?p=a&c=1.1.1/1.1.1/1.1.{n}");
        client.send(Method::DELETE, &path, &[], "".into()).await?.expect_ok()?;
    }
    until("room after the deletes", MEASURED, || async {
        append(&client, "a", 0).await.ok()?.ok().then_some(())
    })
    .await
}

async fn writers_at_many_workers_overshoot_by_less_than_one_body_each(
    stack: Arc<Stack>,
) -> Result<()> {
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..24 {
        // A connection each, so that Envoy spreads them over its workers.
        let client = stack.tenant("herd")?;
        writers.spawn(async move {
            let (mut taken, mut last) = (0u64, Instant::now());
            // Longer than what is counted twice takes to be measured.
            while last.elapsed() < Duration::from_secs(3) {
                let answer = append(&client, &format!("p{}", writer % 4), writer).await?;
                match answer.status {
                    200 => (taken, last) = (taken + 1, Instant::now()),
                    507 => {}
                    other => anyhow::bail!("{other} {}", answer.text()),
                }
            }
            anyhow::Ok(taken)
        });
    }
    let mut taken = 0;
    while let Some(one) = writers.join_next().await {
        taken += one??;
    }
    let used = stored(&stack, "herd")?;
    println!("24 writers at 4 workers: {taken} bodies taken, {used} of {CAP} bytes used");
    ensure!(used <= CAP + 4 * BODY as u64, "{used} of {CAP} bytes");
    ensure!(used + 6 * (BODY as u64 + DELIMITERS) > CAP, "refused long before: {used} of {CAP}");
    Ok(())
}

async fn uploads_held_back_at_their_end_do_not_pass_the_cap_together(
    stack: Arc<Stack>,
) -> Result<()> {
    let client = stack.tenant("held")?;
    let mut held = Vec::new();
    for _ in 0..2 {
        for n in 0..16 {
            held.push(all_but_the_last_byte(&stack, n % 4).await?);
        }
        // Until what was measured at their heads is old.
        let old = Instant::now() + Duration::from_secs(7);
        until("measurements", MEASURED, || async {
            let asked = client.get("/api/v2/toc?p=p0").await.ok()?;
            (asked.ok() && Instant::now() > old).then_some(())
        })
        .await?;
    }
    let (uploads, mut taken) = (held.len(), 0);
    for mut upload in held {
        let answer = upload.request("x").await?;
        ensure!(answer.contains(" 200 ") || answer.contains(" 507 "), "{answer}");
        taken += u64::from(answer.contains(" 200 "));
    }
    let used = stored(&stack, "held")?;
    println!("{uploads} uploads held back: {taken} taken, {used} of {CAP} bytes used");
    ensure!(used <= CAP + BODY as u64, "{used} of {CAP} bytes");
    // For a moment each counts as measured and as much as it could take.
    let counted = (taken + 1) * (2 * BODY as u64 + DELIMITERS);
    ensure!(counted > CAP, "refused long before: {taken} taken, {used} of {CAP}");
    Ok(())
}

/// An upload whose end does not come.
async fn all_but_the_last_byte(stack: &Stack, phext: usize) -> Result<Raw> {
    let mut upload = Raw::connect(stack.listen.https, &stack.certs.ca()).await?;
    let head = format!(
        "POST /api/v2/insert?p=p{phext}&c=1.1.1/1.1.1/1.1.1 HTTP/1.1\r\nhost: sq\r\n\
         connection: close\r\nauthorization: Bearer {}\r\ncontent-length: {BODY}\r\n\r\n",
        stack.key("held")?
    );
    upload.write(head.as_bytes()).await?;
    upload.write("x".repeat(BODY - 1).as_bytes()).await?;
    Ok(upload)
}

async fn texts_saved_by_turns_count_until_they_are_measured_and_no_longer(
    stack: Arc<Stack>,
) -> Result<()> {
    let client = stack.tenant("turns")?;
    let text = "x".repeat(45_000);
    let begun = Instant::now();
    for save in 0.. {
        // Over some measurements.
        if begun.elapsed() > Duration::from_secs(5) {
            break;
        }
        // The phext may have 100 kB: what was saved last must be measured before the other's turn.
        let path = format!("/api/v2/update?p=turns&c=1.1.1/1.1.1/1.1.{}", save % 2 + 1);
        until(format!("save {save}"), MEASURED, || async {
            client.post(&path, text.clone()).await.ok()?.ok().then_some(())
        })
        .await?;
    }
    Ok(())
}

async fn one_phext_too_many_is_refused_and_those_that_are_there_work(
    stack: Arc<Stack>,
) -> Result<()> {
    let client = stack.tenant("few")?;
    let write = |p: &str| format!("/api/v2/update?p={p}&c=1.1.1/1.1.1/1.1.1&s=text");
    for p in ["one", "two", "three"] {
        client.get(&write(p)).await?.expect_ok()?;
    }
    let answer = client.get(&write("four")).await?;
    let (name, document) = problem(&answer)?;
    ensure!(answer.status == 507 && name == "too-many-phexts", "{document}");
    ensure!(document["cap"] == 3 && document["parameter"] == "p", "{document}");
    client.get(&write("three")).await?.expect_ok()?;
    Ok(())
}

async fn a_phext_larger_than_the_tier_s_memory_can_hold_is_refused(
    stack: Arc<Stack>,
) -> Result<()> {
    let client = stack.tenant("few")?;
    let answer =
        client.post("/api/v2/update?p=one&c=1.1.1/1.1.1/1.1.2", "x".repeat(150_000)).await?;
    let (name, document) = problem(&answer)?;
    ensure!(answer.status == 413 && name == "phext-too-large", "{document}");
    ensure!(document["cap"] == 100_000, "{document}");
    let detail = document["detail"].as_str().unwrap_or_default();
    ensure!(detail.contains("another phext") && detail.contains("tier"), "{detail}");
    let refused = until("many small writes to be too much", MEASURED, || async {
        let answer = append(&client, "two", 1).await.ok()?;
        (!answer.ok()).then_some(answer)
    })
    .await?;
    ensure!(refused.status == 413, "{} {}", refused.status, refused.text());
    client.get("/api/v2/toc?p=two").await?.expect_ok()?;
    Ok(())
}

async fn empty_files_that_reads_left_behind_are_gone_after_a_sleep(
    stack: Arc<Stack>,
) -> Result<()> {
    let client = stack.tenant("reader")?;
    client.get("/api/v2/update?p=kept&c=1.1.1/1.1.1/1.1.1&s=text").await?.expect_ok()?;
    for n in 0..5 {
        client.get(&format!("/api/v2/toc?p=looked{n}")).await?.expect_ok()?;
    }
    let folder = stack.orchestrator.data().join("reader");
    let files = || -> Result<Vec<String>> {
        let mut names = fs::read_dir(&folder)?
            .map(|file| Ok(file?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    };
    ensure!(files()?.len() == 6, "SQ makes no empty files any more: {:?}", files()?);
    stack.orchestrator.put_to_sleep("reader", Duration::from_secs(90)).await?;
    ensure!(files()? == ["kept.phext"], "{:?}", files()?);
    let answer = client.get("/api/v2/select?p=kept&c=1.1.1/1.1.1/1.1.1").await?;
    ensure!(answer.text() == "text", "{} {}", answer.status, answer.text());
    Ok(())
}

async fn a_tenant_on_a_disk_of_its_own_is_told_to_have_a_hard_limit(
    stack: Arc<Stack>,
) -> Result<()> {
    let folder = stack.orchestrator.data().join("alice");
    fs::create_dir(&folder)?;
    let disk = SmallDisk::mount(&folder, "size=8m")?;
    let client = stack.tenant("alice")?;
    client.get("/api/v2/update?p=a&c=1.1.1/1.1.1/1.1.1&s=text").await?.expect_ok()?;
    let alice = stack.orchestrator.tenant_status("alice").await?;
    ensure!(alice.storage_hard_bytes == Some(8 << 20), "{alice:?}");
    drop(disk);
    let alice = stack.orchestrator.tenant_status("alice").await?;
    ensure!(alice.storage_hard_bytes.is_none(), "{alice:?}");
    Ok(())
}

async fn below_the_host_s_floor_nothing_is_changed_and_everything_is_read(
    stack: Arc<Stack>,
) -> Result<()> {
    let client = stack.tenant("alice")?;
    let at = "p=a&c=1.1.1/1.1.1/1.1.1";
    for (method, path) in [
        (Method::GET, format!("update?{at}&s=text")),
        (Method::POST, format!("insert?{at}")),
        (Method::DELETE, format!("delete?{at}")),
    ] {
        let path = format!("/api/v2/{path}");
        let body = if method == Method::POST { "text" } else { "" };
        let answer = client.send(method, &path, &[], body.into()).await?;
        let (name, document) = problem(&answer)?;
        ensure!(answer.status == 507 && name == "host-full", "{path}: {document}");
        ensure!(!answer.header("retry-after").is_empty(), "{path}: {answer:?}");
    }
    for read in ["toc?p=a", "select?p=a&c=1.1.1/1.1.1/1.1.1", "get?p=a"] {
        client.get(&format!("/api/v2/{read}")).await?.expect_ok()?;
    }
    let status: Value =
        serde_json::from_slice(&stack.orchestrator.admin().get("/v1/tenants").await?.body)?;
    let disk = &status["host"]["disk"];
    ensure!(disk["floor_bytes"] == 1_000_000_000_000_000_u64, "{disk}");
    ensure!(disk["backstop"].as_str().is_some_and(|text| !text.is_empty()), "{disk}");
    Ok(())
}
