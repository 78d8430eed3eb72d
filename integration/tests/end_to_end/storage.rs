//! A write that exceeds a storage limit is refused before it reaches SQ, which would respond 200 and
//! truncate the file.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use experiments::proof::disk::SmallDisk;
use harness::client::raw::Raw;
use harness::{Client, Response, Stack, StackBuilder, Tier, until};
use hyper::Method;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::suite::{Case, On, case};

/// Time in which the orchestrator's next measurement reaches every worker.
const MEASURED: Duration = Duration::from_secs(15);
const CAP: u64 = 400_000;
const BODY: u64 = 20_000;
/// Bytes that a distant coordinate may add to a text.
const DELIMITERS: u64 = 8_982;

/// A tier with no limits but those of storage.
fn tier(name: &str, storage: u64, phexts: u32, phext_max: &str) -> Tier {
    Tier::unlimited(name)
        .set("storage", format!("{storage} B"))
        .set("phexts", phexts)
        .set("phext-max", phext_max)
}

fn small_limits() -> StackBuilder {
    Stack::builder()
        .workers(4)
        .tier(tier("tight", CAP, 100, "auto"))
        .tier(tier("few", 100_000_000, 3, "100 kB"))
        .tenant_in_tier("full", "tight")
        .tenant_in_tier("concurrent", "tight")
        .tenant_in_tier("delayed", "tight")
        .tenant_in_tier("alternating", "few")
        .tenant_in_tier("few", "few")
        .tenant("reader")
}

fn one_tenant() -> StackBuilder {
    Stack::builder().tenant("alice")
}

fn below_floor() -> StackBuilder {
    // More than the free space of any disk.
    Stack::builder().tenant("alice").orchestrator("\n[host]\ndisk_floor = 1000000000000000\n")
}

pub(crate) fn cases() -> Vec<Case> {
    let small_limits = On::Shared("storage", small_limits);
    vec![
        case!(small_limits, full_storage_refusal_names_usage_and_remedy),
        case!(small_limits, concurrent_writers_overshoot_by_one_body_each),
        case!(small_limits, delayed_uploads_do_not_pass_the_cap_together),
        case!(small_limits, alternating_saves_count_only_until_measured),
        case!(small_limits, excess_phext_is_refused_and_others_still_work),
        case!(small_limits, phext_larger_than_the_tier_allows_is_refused),
        case!(small_limits, empty_files_from_reads_vanish_during_sleep),
        case!(On::Own(one_tenant), size_of_own_disk_is_reported_as_limit),
        case!(On::Own(below_floor), host_below_its_floor_allows_reads_only),
    ]
}

/// Inserts a body into one of 900 scrolls of a phext.
async fn insert(client: &Client, phext: &str, n: usize) -> Result<Response> {
    let path = format!("/api/v2/insert?p={phext}&c=1.1.1/1.1.1/1.1.{}", n % 900 + 1);
    client.post(&path, body(BODY)).await
}

fn body(bytes: u64) -> Vec<u8> {
    vec![b'x'; usize::try_from(bytes).unwrap_or_default()]
}

/// Bytes of a tenant's files.
fn stored(stack: &Stack, tenant: &str) -> Result<u64> {
    let mut sum = 0;
    for file in fs::read_dir(stack.orchestrator.data().join(tenant))? {
        sum += file?.metadata()?.len();
    }
    Ok(sum)
}

async fn full_storage_refusal_names_usage_and_remedy(stack: Arc<Stack>) -> Result<()> {
    let client = stack.tenant("full")?;
    // Between measurements writes are counted with their worst case, and such a refusal has a
    // `Retry-After`. Fill up until the measured size itself leaves no room.
    let refused = until("the storage to be full", MEASURED, || async {
        for n in 0..30 {
            let response = insert(&client, "a", n).await.ok()?;
            if response.status == 507 && response.header("retry-after").is_empty() {
                return Some(response);
            }
        }
        None
    })
    .await?;
    let problem = refused.expect_problem(507, "storage-full")?;
    ensure!(problem.cap == Some(CAP), "{problem:?}");
    let used = problem.used.context("used")?;
    ensure!(used <= CAP && used + BODY + DELIMITERS > CAP, "{problem:?}");
    let remedies = ["Delete", "tier"];
    ensure!(remedies.iter().all(|text| problem.detail.contains(text)), "{problem:?}");
    ensure!(stored(&stack, "full")? <= CAP, "more is stored than the tier allows");
    // Reads and deletions always work, and deletions make room.
    client.get("/api/v2/toc?p=a").await?.expect_ok()?;
    for n in 1..=6 {
        let path = format!("/api/v2/delete?p=a&c=1.1.1/1.1.1/1.1.{n}");
        client.send(Method::DELETE, &path, &[], "".into()).await?.expect_ok()?;
    }
    until("room after the deletions", MEASURED, || async {
        insert(&client, "a", 0).await.ok()?.ok().then_some(())
    })
    .await
}

async fn concurrent_writers_overshoot_by_one_body_each(stack: Arc<Stack>) -> Result<()> {
    let mut writers = JoinSet::new();
    for writer in 0..24 {
        // Each writer has its own connection, so that Envoy spreads them over its workers.
        writers.spawn(write_until_full(stack.tenant("concurrent")?, writer));
    }
    let mut accepted = 0;
    while let Some(writer) = writers.join_next().await {
        accepted += writer??;
    }
    let used = stored(&stack, "concurrent")?;
    println!("24 writers at 4 workers: {accepted} bodies accepted, {used} of {CAP} bytes used");
    // Each of the four workers may be one body ahead of the others' knowledge.
    ensure!(used <= CAP + 4 * BODY, "{used} of {CAP} bytes");
    ensure!(used + 6 * (BODY + DELIMITERS) > CAP, "refused too early: {used} of {CAP}");
    Ok(())
}

/// Writes until nothing was accepted for three seconds, in which all that was counted twice is
/// measured. Returns the number of accepted bodies.
async fn write_until_full(client: Client, writer: usize) -> Result<u64> {
    let phext = format!("p{}", writer % 4);
    let mut accepted = 0;
    let mut last = Instant::now();
    while last.elapsed() < Duration::from_secs(3) {
        let response = insert(&client, &phext, writer).await?;
        match response.status {
            200 => {
                accepted += 1;
                last = Instant::now();
            }
            507 => {}
            other => bail!("{other} {}", response.text()),
        }
    }
    Ok(accepted)
}

async fn delayed_uploads_do_not_pass_the_cap_together(stack: Arc<Stack>) -> Result<()> {
    let client = stack.tenant("delayed")?;
    let mut delayed = Vec::new();
    for _ in 0..2 {
        for n in 0..16 {
            delayed.push(start_upload(&stack, n % 4).await?);
        }
        // Wait until the measurements that the heads were checked with are out of date.
        let outdated = Instant::now() + Duration::from_secs(7);
        until("measurements", MEASURED, || async {
            let response = client.get("/api/v2/toc?p=p0").await.ok()?;
            (response.ok() && Instant::now() > outdated).then_some(())
        })
        .await?;
    }
    let uploads = delayed.len();
    let mut accepted = 0;
    for mut upload in delayed {
        let response = upload.request("x").await?;
        ensure!(response.contains(" 200 ") || response.contains(" 507 "), "{response}");
        accepted += u64::from(response.contains(" 200 "));
    }
    let used = stored(&stack, "delayed")?;
    println!("{uploads} delayed uploads: {accepted} accepted, {used} of {CAP} bytes used");
    ensure!(used <= CAP + BODY, "{used} of {CAP} bytes");
    // For a moment an upload counts twice: as measured, and with its worst case.
    let counted = (accepted + 1) * (2 * BODY + DELIMITERS);
    ensure!(counted > CAP, "refused too early: {accepted} accepted, {used} of {CAP}");
    Ok(())
}

/// Sends an upload except its last byte.
async fn start_upload(stack: &Stack, phext: usize) -> Result<Raw> {
    let mut upload = Raw::connect(stack.listen.https, &stack.certs.ca()).await?;
    let head = format!(
        "POST /api/v2/insert?p=p{phext}&c=1.1.1/1.1.1/1.1.1 HTTP/1.1\r\nhost: sq\r\n\
         connection: close\r\nauthorization: Bearer {}\r\ncontent-length: {BODY}\r\n\r\n",
        stack.key("delayed")?
    );
    upload.write(head.as_bytes()).await?;
    upload.write(&body(BODY - 1)).await?;
    Ok(upload)
}

async fn alternating_saves_count_only_until_measured(stack: Arc<Stack>) -> Result<()> {
    let client = stack.tenant("alternating")?;
    let text = "x".repeat(45_000);
    let began = Instant::now();
    let mut save = 0;
    // Several measurements happen in this time.
    while began.elapsed() < Duration::from_secs(5) {
        // The phext may have 100 kB, which two texts fit into but not three: the last save must be
        // measured before the other scroll's turn.
        let path = format!("/api/v2/update?p=turns&c=1.1.1/1.1.1/1.1.{}", save % 2 + 1);
        until(format!("save {save}"), MEASURED, || async {
            client.post(&path, text.clone()).await.ok()?.ok().then_some(())
        })
        .await?;
        save += 1;
    }
    Ok(())
}

async fn excess_phext_is_refused_and_others_still_work(stack: Arc<Stack>) -> Result<()> {
    let client = stack.tenant("few")?;
    for phext in ["one", "two", "three"] {
        client.update(phext, "text").await?.expect_ok()?;
    }
    let problem = client.update("four", "text").await?.expect_problem(507, "too-many-phexts")?;
    ensure!(problem.cap == Some(3), "{problem:?}");
    ensure!(problem.parameter.as_deref() == Some("p"), "{problem:?}");
    client.update("three", "text").await?.expect_ok()?;
    Ok(())
}

async fn phext_larger_than_the_tier_allows_is_refused(stack: Arc<Stack>) -> Result<()> {
    let client = stack.tenant("few")?;
    let response = client.post("/api/v2/update?p=one&c=1.1.1/1.1.1/1.1.2", body(150_000)).await?;
    let problem = response.expect_problem(413, "phext-too-large")?;
    ensure!(problem.cap == Some(100_000), "{problem:?}");
    let remedies = ["another phext", "tier"];
    ensure!(remedies.iter().all(|text| problem.detail.contains(text)), "{problem:?}");
    let refused = until("many small writes to be too much", MEASURED, || async {
        let response = insert(&client, "two", 1).await.ok()?;
        (!response.ok()).then_some(response)
    })
    .await?;
    refused.expect_status(413)?;
    client.get("/api/v2/toc?p=two").await?.expect_ok()?;
    Ok(())
}

async fn empty_files_from_reads_vanish_during_sleep(stack: Arc<Stack>) -> Result<()> {
    let client = stack.tenant("reader")?;
    client.update("kept", "text").await?.expect_ok()?;
    for n in 0..5 {
        client.get(&format!("/api/v2/toc?p=looked{n}")).await?.expect_ok()?;
    }
    let files = file_names(&stack, "reader")?;
    ensure!(files.len() == 6, "SQ no longer creates empty files: {files:?}");
    stack.orchestrator.put_to_sleep("reader", Duration::from_secs(90)).await?;
    let files = file_names(&stack, "reader")?;
    ensure!(files == ["kept.phext"], "{files:?}");
    client.select("kept").await?.expect_text(200, "text")?;
    Ok(())
}

fn file_names(stack: &Stack, tenant: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for file in fs::read_dir(stack.orchestrator.data().join(tenant))? {
        names.push(file?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

async fn size_of_own_disk_is_reported_as_limit(stack: Arc<Stack>) -> Result<()> {
    let folder = stack.orchestrator.data().join("alice");
    fs::create_dir(&folder)?;
    let disk = SmallDisk::mount(&folder, "size=8m")?;
    stack.tenant("alice")?.update("a", "text").await?.expect_ok()?;
    let status = stack.orchestrator.tenant_status("alice").await?;
    ensure!(status.storage_hard_bytes == Some(8 << 20), "{status:?}");
    drop(disk);
    let status = stack.orchestrator.tenant_status("alice").await?;
    ensure!(status.storage_hard_bytes.is_none(), "{status:?}");
    Ok(())
}

async fn host_below_its_floor_allows_reads_only(stack: Arc<Stack>) -> Result<()> {
    let client = stack.tenant("alice")?;
    let scroll = "p=a&c=1.1.1/1.1.1/1.1.1";
    for (method, path, body) in [
        (Method::GET, format!("update?{scroll}&s=text"), ""),
        (Method::POST, format!("insert?{scroll}"), "text"),
        (Method::DELETE, format!("delete?{scroll}"), ""),
    ] {
        let path = format!("/api/v2/{path}");
        let response = client.send(method, &path, &[], body.into()).await?;
        let problem = response.expect_problem(507, "host-full")?;
        ensure!(problem.retry_after_s.is_some(), "{path}: {problem:?}");
    }
    for read in ["toc?p=a", "select?p=a&c=1.1.1/1.1.1/1.1.1", "get?p=a"] {
        client.get(&format!("/api/v2/{read}")).await?.expect_ok()?;
    }
    let status: Value = stack.orchestrator.admin().get("/v1/tenants").await?.expect_ok()?.json()?;
    let disk = &status["host"]["disk"];
    ensure!(disk["floor_bytes"] == 1_000_000_000_000_000_u64, "{disk}");
    ensure!(disk["backstop"].as_str().is_some_and(|text| !text.is_empty()), "{disk}");
    Ok(())
}
