//! What files, folders and disks do to SQ alone, and what the gateway makes of the same; deaths under
//! writes.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use experiments::proof::disk::{LoopDisk, SmallDisk};
use experiments::proof::{self, target::TENANT};
use harness::bare_sq::BareSq;
use harness::host::tools;
use harness::{Lifecycle, Load, Runtime, Stack, StackBuilder, until};

use crate::alone::{AT, BOTH, NEW, OLD, PATIENCE, alone, alone_0_5_0, row, sq, stored};
use crate::refusals::MAIN;
use crate::world::{Case, On, case};

/// Tenants that write all the time.
const BUSY: u64 = 8;
/// How long they do: thrice the window.
const BUSY_FOR: Duration = Duration::from_secs(15);

fn hasty() -> StackBuilder {
    alone().lifecycle(Lifecycle::short_leases())
}

fn struck() -> StackBuilder {
    proof::gateway(Runtime::Process, 512)
}

fn busy() -> StackBuilder {
    let stack = Stack::builder().tier(proof::tier("busy", 256));
    (0..BUSY).fold(stack, |stack, n| stack.tenant_in_tier(&format!("busy-{n}"), "busy"))
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(On::Own(alone), sq_alone_loses_updates_when_it_runs_twice),
        case!(On::Own(hasty), sq_alone_makes_a_file_of_every_name_that_is_read),
        case!(On::Own(alone), sq_alone_reads_a_damaged_file_as_empty),
        case!(On::Own(alone_0_5_0), sq_alone_dies_of_a_damaged_file),
        case!(On::Own(alone), sq_alone_takes_a_folder_for_a_phext),
        case!(On::Own(alone), sq_alone_stores_nothing_in_a_folder_it_may_not_write),
        case!(MAIN, sq_alone_answers_200_when_the_disk_is_full),
        case!(MAIN, sq_alone_dies_when_the_disk_is_full),
        case!(
            On::Own(struck),
            twenty_kills_under_writes_lose_nothing_that_is_older_than_the_window
        ),
        case!(On::Own(busy), writes_of_many_busy_tenants_have_copies_within_the_window).alone(),
    ]
}

async fn sq_alone_loses_updates_when_it_runs_twice(stack: Arc<Stack>) -> Result<()> {
    let kept = sq(|| {
        let data = tempfile::tempdir()?;
        let (one, two) = (
            BareSq::start_in_folder(NEW, data.path())?,
            BareSq::start_in_folder(NEW, data.path())?,
        );
        let write = |sq: &BareSq, n: u32| {
            sq.send("GET", &format!("/api/v2/update?p=a&c=1.1.1/1.1.1/1.1.{n}&s=text{n}"), None)
        };
        for sq in [&one, &two] {
            sq.send("GET", "/api/v2/toc?p=a", None)?;
        }
        write(&one, 1)?;
        write(&two, 2)?;
        let file = fs::read_to_string(data.path().join("a.phext"))?;
        Ok(file.contains("text1") && file.contains("text2"))
    })
    .await?;
    ensure!(!kept, "two SQs keep each other's updates");
    let second = Command::new(tools::workspace_binary("orchestrator")?)
        .args(["serve", "--config"])
        .arg(stack.dir.join("orchestrator.toml"))
        .output()?;
    ensure!(!second.status.success(), "a second orchestrator started on the same data");
    row(
        "sq_alone_loses_updates_when_it_runs_twice",
        "two SQs on one folder",
        NEW,
        "the first one's update is gone",
        "one lock per data root, one SQ per tenant",
    );
    Ok(())
}

fn files(folder: &Path) -> Result<Vec<String>> {
    let mut names = fs::read_dir(folder)?
        .map(|file| Ok(file?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

async fn sq_alone_makes_a_file_of_every_name_that_is_read(stack: Arc<Stack>) -> Result<()> {
    for version in BOTH {
        let left = sq(move || {
            let mut sq = BareSq::start(version)?;
            for n in 0..20 {
                sq.send("GET", &format!("/api/v2/toc?p=looked{n}"), None)?;
            }
            sq.restart()?;
            Ok(sq.files()?.len())
        })
        .await?;
        ensure!(left == 20, "SQ {version} leaves {left} files");
        row(
            "sq_alone_makes_a_file_of_every_name_that_is_read",
            "any name, in reads too",
            version,
            "20 names read: 20 files for ever",
            "gone after a sleep; their number is capped",
        );
    }
    let alice = stack.tenant("alice")?;
    alice.get(&format!("/api/v2/update?p=kept&{AT}&s=text")).await?.expect_ok()?;
    for n in 0..20 {
        alice.get(&format!("/api/v2/toc?p=looked{n}")).await?.expect_ok()?;
    }
    let folder = stack.orchestrator.data().join("alice");
    ensure!(files(&folder)?.len() == 21, "SQ makes no empty files any more");
    stack.orchestrator.put_to_sleep("alice", PATIENCE).await?;
    ensure!(files(&folder)? == ["kept.phext"], "{:?}", files(&folder)?);
    Ok(())
}

/// Kills alice's SQ and damages her phext before it starts again.
async fn damaged(stack: &Stack) -> Result<String> {
    let alice = stack.tenant("alice")?;
    alice.get(&format!("/api/v2/update?p=a&{AT}&s=precious")).await?.expect_ok()?;
    let name = Path::new("alice").join("a.phext");
    let good = stack.orchestrator.state().join("vault/alice/good/a.phext");
    until("a good copy", PATIENCE, || async { fs::read(&good).ok().filter(|c| c == b"precious") })
        .await?;
    fs::write(stack.orchestrator.data().join(name), b"\xffprec")?;
    stack.kill_sq("alice")?;
    until("alice to be back", PATIENCE, || async {
        let tenant = stack.orchestrator.tenant("alice").await.ok()??;
        (tenant.deaths == 1 && tenant.state == "awake").then_some(())
    })
    .await?;
    let tenant = stack.orchestrator.tenant_status("alice").await?;
    ensure!(tenant.restored == 1, "{tenant:?}");
    stored(stack, "a").await
}

async fn sq_alone_reads_a_damaged_file_as_empty(stack: Arc<Stack>) -> Result<()> {
    let file = sq(|| {
        let mut sq = BareSq::start(NEW)?;
        fs::write(sq.file("a"), b"\xffprecious")?;
        sq.restart()?;
        sq.send("GET", "/api/v2/update?p=a&c=1.1.1/1.1.1/1.1.2&s=x", None)?;
        Ok(sq.stored("a"))
    })
    .await?;
    ensure!(!file.windows(8).any(|part| part == b"precious"), "SQ keeps it");
    let said = damaged(&stack).await?;
    ensure!(said == "precious", "{said:?}");
    row(
        "sq_alone_reads_a_damaged_file_as_empty",
        "file not UTF-8",
        NEW,
        "read as empty, overwritten",
        "put back, kept aside",
    );
    Ok(())
}

async fn sq_alone_dies_of_a_damaged_file(stack: Arc<Stack>) -> Result<()> {
    let exit = sq(|| {
        let mut sq = BareSq::start(OLD)?;
        fs::write(sq.file("a"), b"\xffprecious")?;
        sq.exit_caused_by("GET", "/api/v2/toc?p=a", None)
    })
    .await?;
    let said = damaged(&stack).await?;
    ensure!(said == "precious", "{said:?}");
    row(
        "sq_alone_dies_of_a_damaged_file",
        "file not UTF-8",
        OLD,
        &exit.to_string(),
        "put back, kept aside",
    );
    Ok(())
}

async fn sq_alone_takes_a_folder_for_a_phext(stack: Arc<Stack>) -> Result<()> {
    let write = format!("/api/v2/update?p=folder&{AT}&s=text");
    let path = write.clone();
    let (exit, said) = sq(move || {
        let mut old = BareSq::start(OLD)?;
        fs::create_dir(old.file("folder"))?;
        let exit = old.exit_caused_by("GET", &path, None)?;
        let new = BareSq::start(NEW)?;
        fs::create_dir(new.file("folder"))?;
        Ok((exit, new.send("GET", &path, None)?.text()))
    })
    .await?;
    ensure!(said == "Updated 4 bytes", "SQ {NEW} says {said}");
    let alice = stack.tenant("alice")?;
    let folder = stack.orchestrator.data().join("alice/folder.phext");
    fs::create_dir_all(&folder)?;
    alice.get(&write).await?.expect_status(503)?;
    let tenant = stack.orchestrator.tenant_status("alice").await?;
    ensure!(tenant.state == "damaged", "{tenant:?}");
    let cause = tenant.last_death.as_deref().unwrap_or_default();
    ensure!(cause.contains("folder.phext"), "{tenant:?}");
    fs::remove_dir(&folder)?;
    let repaired = stack.orchestrator.admin().post("/v1/tenants/alice/repaired", "").await?;
    ensure!(repaired.ok() && alice.get(&write).await?.ok(), "it stays damaged");
    for (version, alone) in [(OLD, exit.to_string()), (NEW, "200, nothing stored".into())] {
        row(
            "sq_alone_takes_a_folder_for_a_phext",
            "p naming a folder",
            version,
            &alone,
            "503; the status names it",
        );
    }
    Ok(())
}

async fn sq_alone_stores_nothing_in_a_folder_it_may_not_write(stack: Arc<Stack>) -> Result<()> {
    let write = format!("/api/v2/update?p=a&{AT}&s=text");
    let path = write.clone();
    let (exit, said) = sq(move || {
        let dir = tempfile::tempdir()?;
        let _disk = SmallDisk::mount(dir.path(), "ro,size=1m")?;
        let exit = BareSq::start_in_folder(OLD, dir.path())?.exit_caused_by("GET", &path, None)?;
        let new = BareSq::start_in_folder(NEW, dir.path())?;
        Ok((exit, new.send("GET", &path, None)?.text()))
    })
    .await?;
    ensure!(said == "Updated 4 bytes", "SQ {NEW} says {said}");
    let folder = stack.orchestrator.data().join("alice");
    fs::create_dir(&folder)?;
    let disk = SmallDisk::mount(&folder, "ro,size=1m")?;
    let alice = stack.tenant("alice")?;
    alice.get(&write).await?.expect_status(503)?;
    let tenant = stack.orchestrator.tenant_status("alice").await?;
    let why = tenant.last_death.as_deref().unwrap_or_default();
    ensure!(why.contains("can't be written by the tenant"), "{tenant:?}");
    drop(disk);
    let back = || async { alice.get(&write).await.ok()?.ok().then_some(()) };
    until("a write once the folder can be written", PATIENCE, back).await?;
    for (version, alone) in [(OLD, exit.to_string()), (NEW, "200, nothing stored".into())] {
        row(
            "sq_alone_stores_nothing_in_a_folder_it_may_not_write",
            "folder that can't be written",
            version,
            &alone,
            "503; the status names it",
        );
    }
    Ok(())
}

/// Takes all room, to the last block.
fn fill(path: &Path) -> Result<()> {
    use std::io::Write as _;
    let mut file = fs::File::create(path)?;
    for bytes in [1 << 20, 64 << 10, 4 << 10, 1 << 10] {
        while file.write_all(&vec![b'x'; bytes]).and_then(|()| file.sync_data()).is_ok() {}
    }
    Ok(())
}

/// A write of 100,000 bytes to SQ alone on a full disk: its end or status, and what is left.
fn write_on_full_disk(version: &str, data: &Path) -> Result<(String, usize)> {
    let mut sq = BareSq::start_in_folder(version, data)?;
    sq.send("GET", &format!("/api/v2/update?p=a&{AT}&s=precious"), None)?;
    fill(&data.join("filler"))?;
    let path = "/api/v2/update?p=a&c=1.1.1/1.1.1/1.1.2";
    let body = vec![b'y'; 100_000];
    let said = match version {
        OLD => sq.exit_caused_by("POST", path, Some(&body))?.to_string(),
        _ => sq.send("POST", path, Some(&body))?.status.to_string(),
    };
    Ok((said, sq.stored("a").len()))
}

async fn full_disk(test: &'static str, version: &'static str, says: &str) -> Result<()> {
    let disk = Arc::new(LoopDisk::make(16).context("this test mounts a small disk: run as root")?);
    let data = disk.data();
    let (said, left) = sq(move || write_on_full_disk(version, &data)).await?;
    ensure!(said == says && left < 100_000, "SQ: {said}, {left} bytes");
    let filler = disk.data().join("filler");
    fs::remove_file(&filler)?;
    let small = disk.data().join("gateway");
    fs::create_dir(&small)?;
    let floor = "\n[host]\ndisk_floor = 4000000\n";
    let stack = alone().sq(version).data(&small).orchestrator(floor).start().await?;
    let alice = stack.tenant("alice")?;
    let write = format!("/api/v2/update?p=a&{AT}&s=precious");
    alice.get(&write).await?.expect_ok()?;
    fill(&filler)?;
    until("writes to be refused", PATIENCE, || async {
        let answer = alice.get(&write).await.ok()?;
        (answer.status == 507).then_some(())
    })
    .await?;
    fs::remove_file(&filler)?;
    ensure!(stored(&stack, "a").await? == "precious", "a read");
    row(
        test,
        "disk full",
        version,
        &format!("{said}, {left} of 100,009 bytes stored"),
        "507 host-full below the floor",
    );
    Ok(())
}

async fn sq_alone_answers_200_when_the_disk_is_full(_: Arc<Stack>) -> Result<()> {
    full_disk("sq_alone_answers_200_when_the_disk_is_full", NEW, "200").await
}

async fn sq_alone_dies_when_the_disk_is_full(_: Arc<Stack>) -> Result<()> {
    full_disk("sq_alone_dies_when_the_disk_is_full", OLD, "exit status: 101").await
}

/// The short form of `make proof`.
async fn twenty_kills_under_writes_lose_nothing_that_is_older_than_the_window(
    stack: Arc<Stack>,
) -> Result<()> {
    ensure!(stack.keys.contains_key(TENANT), "no {TENANT}");
    let tally = proof::struck(stack, 20, 5_000_000, 1).await?;
    println!("{}\n{}", proof::kill::Tally::HEADING, tally.row("twenty kills"));
    ensure!(tally.good(), "{tally:?}");
    Ok(())
}

async fn writes_of_many_busy_tenants_have_copies_within_the_window(
    stack: Arc<Stack>,
) -> Result<()> {
    let clients = (0..BUSY).map(|n| stack.tenant(&format!("busy-{n}")));
    let clients = Arc::new(clients.collect::<Result<Vec<_>>>()?);
    let load = Load::start(BUSY, Duration::ZERO, move |worker, n| {
        let clients = clients.clone();
        async move {
            let path = format!("/api/v2/update?p=notes&c=1.1.1/1.1.1/1.1.{}", n % 300 + 1);
            let client = &clients[usize::try_from(worker).unwrap_or(0)];
            client.post(&path, "x".repeat(5_000)).await
        }
    });
    let began = Instant::now();
    let mut oldest = 0_f64;
    while began.elapsed() < BUSY_FOR {
        oldest = oldest
            .max(stack.orchestrator.metric("sq_orchestrator_vault_oldest_uncopied_seconds").await?);
    }
    let seen = load.finish().await;
    ensure!(seen.errors == 0, "{seen:?}");
    let slowest = stack.orchestrator.metric("sq_orchestrator_vault_slowest_copy_seconds").await?;
    println!(
        "{BUSY} busy tenants: oldest write without a copy {oldest:.1} s, slowest copy {slowest:.1} s"
    );
    ensure!(oldest > 0.5, "nobody was busy: {oldest}");
    ensure!(oldest <= 5.0 + slowest, "{oldest} s, and a copy took {slowest} s");
    Ok(())
}
