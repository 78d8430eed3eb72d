//! Files, folders and disks that make SQ alone lose data, and the gateway's behaviour on the same;
//! deaths of SQ under writes.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use experiments::proof::disk::{LoopDisk, SmallDisk};
use experiments::proof::{self, LossReport, TENANT};
use harness::bare_sq::BareSq;
use harness::client::FIRST_SCROLL;
use harness::host::tools;
use harness::{Lifecycle, Load, Runtime, Stack, StackBuilder, until};

use crate::shared_stack::MAIN;
use crate::sq_alone::{
    BOTH, NEW, OLD, PATIENCE, Row, blocking, stored_text, with_new_sq, with_old_sq,
};
use crate::suite::{Case, On, case};

/// Tenants that write all the time.
const BUSY: u64 = 8;
/// Time for which they write: three times the window.
const BUSY_FOR: Duration = Duration::from_secs(15);
/// Upper bound of the vault's window, in seconds.
const WINDOW_S: f64 = 5.0;

fn short_leases() -> StackBuilder {
    with_new_sq().lifecycle(Lifecycle::short_leases())
}

fn killed_often() -> StackBuilder {
    proof::gateway(Runtime::Process, 512)
}

fn busy_tenants() -> StackBuilder {
    let builder = Stack::builder().tier(proof::tier("busy", 256));
    (0..BUSY).fold(builder, |builder, n| builder.tenant_in_tier(&busy_tenant(n), "busy"))
}

fn busy_tenant(number: u64) -> String {
    format!("busy-{number}")
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(On::Own(with_new_sq), sq_alone_loses_updates_when_it_runs_twice),
        case!(On::Own(short_leases), sq_alone_creates_a_file_per_name_read),
        case!(On::Own(with_new_sq), sq_alone_reads_a_damaged_file_as_empty),
        case!(On::Own(with_old_sq), sq_alone_dies_of_a_damaged_file),
        case!(On::Own(with_new_sq), sq_alone_mistakes_a_folder_for_a_phext),
        case!(On::Own(with_new_sq), sq_alone_stores_nothing_in_an_unwritable_folder),
        case!(MAIN, sq_alone_reports_success_on_a_full_disk),
        case!(MAIN, sq_alone_dies_on_a_full_disk),
        case!(On::Own(killed_often), twenty_kills_lose_nothing_older_than_the_window),
        case!(On::Own(busy_tenants), busy_tenants_writes_are_copied_within_the_window).exclusive(),
    ]
}

/// Lets two SQs write to the same folder, each a scroll of the same phext. Returns the resulting
/// file.
fn write_from_two_sqs() -> Result<String> {
    let data = tempfile::tempdir()?;
    let first = BareSq::start_in_folder(NEW, data.path())?;
    let second = BareSq::start_in_folder(NEW, data.path())?;
    // Both load the empty phext before either writes.
    for sq in [&first, &second] {
        sq.send("GET", "/api/v2/toc?p=a", None)?;
    }
    first.send("GET", "/api/v2/update?p=a&c=1.1.1/1.1.1/1.1.1&s=text1", None)?;
    second.send("GET", "/api/v2/update?p=a&c=1.1.1/1.1.1/1.1.2&s=text2", None)?;
    Ok(fs::read_to_string(data.path().join("a.phext"))?)
}

async fn sq_alone_loses_updates_when_it_runs_twice(stack: Arc<Stack>) -> Result<()> {
    let file = blocking(write_from_two_sqs).await?;
    let lost = !file.contains("text1") || !file.contains("text2");
    ensure!(lost, "two SQs keep each other's updates: {file:?}");
    let second = Command::new(tools::workspace_binary("orchestrator")?)
        .args(["serve", "--config"])
        .arg(stack.dir.join("orchestrator.toml"))
        .output()?;
    ensure!(!second.status.success(), "a second orchestrator started on the same data");
    Row {
        case: "sq_alone_loses_updates_when_it_runs_twice",
        rule: "two SQs on one folder",
        sq: NEW,
        alone: "the first one's update is gone",
        gateway: "one lock per data root, one SQ per tenant",
    }
    .print();
    Ok(())
}

fn file_names(folder: &Path) -> Result<Vec<String>> {
    let mut names = fs::read_dir(folder)?
        .map(|file| Ok(file?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

async fn sq_alone_creates_a_file_per_name_read(stack: Arc<Stack>) -> Result<()> {
    for version in BOTH {
        let files = blocking(move || {
            let mut sq = BareSq::start(version)?;
            for n in 0..20 {
                sq.send("GET", &format!("/api/v2/toc?p=looked{n}"), None)?;
            }
            sq.restart()?;
            Ok(sq.files()?.len())
        })
        .await?;
        ensure!(files == 20, "SQ {version} leaves {files} files");
        Row {
            case: "sq_alone_creates_a_file_per_name_read",
            rule: "any name, in reads too",
            sq: version,
            alone: "20 names read: 20 files for ever",
            gateway: "gone after a sleep; their number is capped",
        }
        .print();
    }
    let alice = stack.tenant("alice")?;
    alice.update("kept", "text").await?.expect_ok()?;
    for n in 0..20 {
        alice.toc(&format!("looked{n}")).await?.expect_ok()?;
    }
    let folder = stack.orchestrator.data().join("alice");
    let files = file_names(&folder)?.len();
    ensure!(files == 21, "behind the gateway SQ creates {files} files");
    stack.orchestrator.put_to_sleep("alice", PATIENCE).await?;
    let files = file_names(&folder)?;
    ensure!(files == ["kept.phext"], "{files:?}");
    Ok(())
}

/// Damages a file of alice's and kills her SQ. Returns the text that the gateway serves after the
/// restart.
async fn text_after_damage(stack: &Stack) -> Result<String> {
    stack.tenant("alice")?.update("a", "precious").await?.expect_ok()?;
    let good = stack.orchestrator.state().join("vault/alice/good/a.phext");
    until("a good copy", PATIENCE, || async {
        fs::read(&good).ok().filter(|copy| copy == b"precious")
    })
    .await?;
    fs::write(stack.orchestrator.data().join("alice/a.phext"), b"\xffprec")?;
    stack.kill_sq("alice")?;
    let status = until("alice to be awake again", PATIENCE, || async {
        let status = stack.orchestrator.tenant_status("alice").await.ok()?;
        (status.deaths == 1 && status.state == "awake").then_some(status)
    })
    .await?;
    ensure!(status.restored == 1, "{status:?}");
    stored_text(stack, "a").await
}

async fn sq_alone_reads_a_damaged_file_as_empty(stack: Arc<Stack>) -> Result<()> {
    let file = blocking(|| {
        let mut sq = BareSq::start(NEW)?;
        fs::write(sq.file("a"), b"\xffprecious")?;
        sq.restart()?;
        sq.send("GET", "/api/v2/update?p=a&c=1.1.1/1.1.1/1.1.2&s=x", None)?;
        Ok(sq.stored("a"))
    })
    .await?;
    ensure!(!file.windows(8).any(|part| part == b"precious"), "SQ keeps the text");
    let text = text_after_damage(&stack).await?;
    ensure!(text == "precious", "{text:?}");
    Row {
        case: "sq_alone_reads_a_damaged_file_as_empty",
        rule: "file not UTF-8",
        sq: NEW,
        alone: "read as empty, overwritten",
        gateway: "good copy restored, damaged file in quarantine",
    }
    .print();
    Ok(())
}

async fn sq_alone_dies_of_a_damaged_file(stack: Arc<Stack>) -> Result<()> {
    let exit = blocking(|| {
        let mut sq = BareSq::start(OLD)?;
        fs::write(sq.file("a"), b"\xffprecious")?;
        sq.exit_caused_by("GET", "/api/v2/toc?p=a", None)
    })
    .await?;
    let text = text_after_damage(&stack).await?;
    ensure!(text == "precious", "{text:?}");
    Row {
        case: "sq_alone_dies_of_a_damaged_file",
        rule: "file not UTF-8",
        sq: OLD,
        alone: &exit.to_string(),
        gateway: "good copy restored, damaged file in quarantine",
    }
    .print();
    Ok(())
}

/// Results of a write to SQ alone that can't be stored.
struct UnstorableWrite {
    /// Exit status of the old SQ.
    old: String,
    /// Response of the new SQ.
    new: String,
}

impl UnstorableWrite {
    fn check_and_print(&self, case: &str, rule: &str) -> Result<()> {
        ensure!(self.new == "Updated 4 bytes", "SQ {NEW} responds {:?}", self.new);
        for (sq, alone) in [(OLD, self.old.as_str()), (NEW, "200, nothing stored")] {
            Row { case, rule, sq, alone, gateway: "503; the status names it" }.print();
        }
        Ok(())
    }
}

fn write_to_folder_named_as_phext() -> Result<UnstorableWrite> {
    let path = format!("/api/v2/update?p=folder&{FIRST_SCROLL}&s=text");
    let mut old = BareSq::start(OLD)?;
    fs::create_dir(old.file("folder"))?;
    let exit = old.exit_caused_by("GET", &path, None)?;
    let new = BareSq::start(NEW)?;
    fs::create_dir(new.file("folder"))?;
    let new = new.send("GET", &path, None)?.text();
    Ok(UnstorableWrite { old: exit.to_string(), new })
}

async fn sq_alone_mistakes_a_folder_for_a_phext(stack: Arc<Stack>) -> Result<()> {
    let alone = blocking(write_to_folder_named_as_phext).await?;
    let alice = stack.tenant("alice")?;
    let folder = stack.orchestrator.data().join("alice/folder.phext");
    fs::create_dir_all(&folder)?;
    alice.update("folder", "text").await?.expect_status(503)?;
    let status = stack.orchestrator.tenant_status("alice").await?;
    ensure!(status.state == "damaged", "{status:?}");
    let reason = status.last_death.clone().unwrap_or_default();
    ensure!(reason.contains("folder.phext"), "{status:?}");
    fs::remove_dir(&folder)?;
    let admin = stack.orchestrator.admin();
    admin.post("/v1/tenants/alice/repaired", "").await?.expect_ok()?;
    alice.update("folder", "text").await?.expect_ok()?;
    alone.check_and_print("sq_alone_mistakes_a_folder_for_a_phext", "p naming a folder")
}

fn write_to_read_only_disk() -> Result<UnstorableWrite> {
    let path = format!("/api/v2/update?p=a&{FIRST_SCROLL}&s=text");
    let dir = tempfile::tempdir()?;
    let _disk = SmallDisk::mount(dir.path(), "ro,size=1m")?;
    let mut old = BareSq::start_in_folder(OLD, dir.path())?;
    let exit = old.exit_caused_by("GET", &path, None)?;
    let new = BareSq::start_in_folder(NEW, dir.path())?;
    let new = new.send("GET", &path, None)?.text();
    Ok(UnstorableWrite { old: exit.to_string(), new })
}

async fn sq_alone_stores_nothing_in_an_unwritable_folder(stack: Arc<Stack>) -> Result<()> {
    let alone = blocking(write_to_read_only_disk).await?;
    let folder = stack.orchestrator.data().join("alice");
    fs::create_dir(&folder)?;
    let disk = SmallDisk::mount(&folder, "ro,size=1m")?;
    let alice = stack.tenant("alice")?;
    alice.update("a", "text").await?.expect_status(503)?;
    let status = stack.orchestrator.tenant_status("alice").await?;
    let reason = status.last_death.clone().unwrap_or_default();
    ensure!(reason.contains("can't be written by the tenant"), "{status:?}");
    drop(disk);
    until("a write once the folder is writable", PATIENCE, || async {
        alice.update("a", "text").await.ok()?.ok().then_some(())
    })
    .await?;
    alone.check_and_print(
        "sq_alone_stores_nothing_in_an_unwritable_folder",
        "folder that can't be written",
    )
}

/// Fills the disk to its last block.
fn fill_disk(path: &Path) -> Result<()> {
    let mut file = fs::File::create(path)?;
    for bytes in [1 << 20, 64 << 10, 4 << 10, 1 << 10] {
        while file.write_all(&vec![b'x'; bytes]).and_then(|()| file.sync_data()).is_ok() {}
    }
    Ok(())
}

/// A write of 100,000 bytes to SQ alone on a full disk.
struct WriteOnFullDisk {
    /// SQ's exit status or the status of its response.
    result: String,
    /// Size of the phext afterwards.
    stored_bytes: usize,
}

fn write_on_full_disk(version: &str, data: &Path) -> Result<WriteOnFullDisk> {
    let mut sq = BareSq::start_in_folder(version, data)?;
    sq.send("GET", &format!("/api/v2/update?p=a&{FIRST_SCROLL}&s=precious"), None)?;
    fill_disk(&data.join("filler"))?;
    let path = "/api/v2/update?p=a&c=1.1.1/1.1.1/1.1.2";
    let body = vec![b'y'; 100_000];
    let result = if version == OLD {
        sq.exit_caused_by("POST", path, Some(&body))?.to_string()
    } else {
        sq.send("POST", path, Some(&body))?.status.to_string()
    };
    Ok(WriteOnFullDisk { result, stored_bytes: sq.stored("a").len() })
}

/// Shows that SQ alone truncates the phext on a full disk with the result `expected`, and that the
/// gateway refuses the write before the disk is full.
async fn check_full_disk(case: &str, version: &'static str, expected: &str) -> Result<()> {
    let disk =
        Arc::new(LoopDisk::create(16).context("this test mounts a small disk: run as root")?);
    let data = disk.data();
    let alone = blocking(move || write_on_full_disk(version, &data)).await?;
    let WriteOnFullDisk { result, stored_bytes } = &alone;
    ensure!(result == expected && *stored_bytes < 100_000, "SQ: {result}, {stored_bytes} bytes");
    let filler = disk.data().join("filler");
    fs::remove_file(&filler)?;
    let data = disk.data().join("gateway");
    fs::create_dir(&data)?;
    let floor = "\n[host]\ndisk_floor = 4000000\n";
    let stack = with_new_sq().sq(version).data(&data).orchestrator(floor).start().await?;
    let alice = stack.tenant("alice")?;
    alice.update("a", "precious").await?.expect_ok()?;
    fill_disk(&filler)?;
    until("writes to be refused", PATIENCE, || async {
        (alice.update("a", "precious").await.ok()?.status == 507).then_some(())
    })
    .await?;
    fs::remove_file(&filler)?;
    let text = stored_text(&stack, "a").await?;
    ensure!(text == "precious", "{text:?}");
    Row {
        case,
        rule: "disk full",
        sq: version,
        alone: &format!("{result}, {stored_bytes} of 100,009 bytes stored"),
        gateway: "507 host-full below the floor",
    }
    .print();
    Ok(())
}

async fn sq_alone_reports_success_on_a_full_disk(_: Arc<Stack>) -> Result<()> {
    check_full_disk("sq_alone_reports_success_on_a_full_disk", NEW, "200").await
}

async fn sq_alone_dies_on_a_full_disk(_: Arc<Stack>) -> Result<()> {
    check_full_disk("sq_alone_dies_on_a_full_disk", OLD, "exit status: 101").await
}

/// A short form of `make proof`.
async fn twenty_kills_lose_nothing_older_than_the_window(stack: Arc<Stack>) -> Result<()> {
    ensure!(stack.keys.contains_key(TENANT), "the stack has no tenant {TENANT}");
    let losses = proof::run_kills(stack, 20, 5_000_000, 1).await?;
    println!("{}\n{}", LossReport::heading(), losses.row("twenty kills"));
    ensure!(losses.promises_held(), "{losses:?}");
    Ok(())
}

/// Loads all tenants and watches the age of the oldest write without a copy. It may exceed the
/// window by the duration of one copy.
async fn busy_tenants_writes_are_copied_within_the_window(stack: Arc<Stack>) -> Result<()> {
    let clients = (0..BUSY).map(|n| stack.tenant(&busy_tenant(n)));
    let clients = Arc::new(clients.collect::<Result<Vec<_>>>()?);
    let load = Load::start(BUSY, Duration::ZERO, move |worker, n| {
        let clients = clients.clone();
        async move {
            let path = format!("/api/v2/update?p=notes&c=1.1.1/1.1.1/1.1.{}", n % 300 + 1);
            let client = &clients[usize::try_from(worker)?];
            client.post(&path, "x".repeat(5_000)).await
        }
    });
    let orchestrator = &stack.orchestrator;
    let started = Instant::now();
    let mut oldest_s = 0_f64;
    while started.elapsed() < BUSY_FOR {
        let age_s = orchestrator.metric("sq_orchestrator_vault_oldest_uncopied_seconds").await?;
        oldest_s = oldest_s.max(age_s);
    }
    let outcome = load.finish().await;
    ensure!(outcome.errors == 0, "{outcome:?}");
    let slowest_s = orchestrator.metric("sq_orchestrator_vault_slowest_copy_seconds").await?;
    println!(
        "{BUSY} busy tenants: oldest write without a copy {oldest_s:.1} s, \
         slowest copy {slowest_s:.1} s"
    );
    ensure!(oldest_s > 0.5, "no write was without a copy: {oldest_s} s");
    ensure!(oldest_s <= WINDOW_S + slowest_s, "{oldest_s} s, and a copy took {slowest_s} s");
    Ok(())
}
