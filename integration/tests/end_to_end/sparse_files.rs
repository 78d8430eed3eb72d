//! Files that occupy nothing on the disk, as code within SQ could make them: no copy of them is made,
//! and they keep nothing else from being copied.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use harness::{Stack, StackBuilder, until};

use crate::suite::{Case, On, case};

/// Number of files, and the length of each.
const FILES: usize = 3;
const FILE_BYTES: u64 = 1_000_000_000;
/// Bound on what they cost the vault: twice the storage of the free tier, which copies may have.
const VAULT_MAX_BYTES: u64 = 50_000_000;
/// Bound on the growth of the orchestrator's memory. It was 4 GB when each file was read whole.
const GROWTH_MAX_KIB: u64 = 64 << 10;
/// Bound on the wake after a death, on a busy machine. It was more than 8 s.
const WOKEN_WITHIN: Duration = Duration::from_secs(5);
/// Time for the vault's looks, which are half a second apart.
const PATIENCE: Duration = Duration::from_secs(15);

fn one_tenant() -> StackBuilder {
    Stack::builder().tenant("hostile")
}

pub(crate) fn cases() -> Vec<Case> {
    vec![case!(On::Own(one_tenant), sparse_files_cost_the_host_nothing).exclusive()]
}

/// Bytes that the files below a folder occupy on the disk.
fn occupied_bytes(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() {
            occupied_bytes(&entry.path())?
        } else {
            metadata.blocks() * 512
        };
    }
    Ok(bytes)
}

/// Highest resident memory that the process has had, in KiB.
fn peak_kib(pid: i32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

async fn sparse_files_cost_the_host_nothing(stack: Arc<Stack>) -> Result<()> {
    let client = stack.tenant("hostile")?;
    client.update("notes", "first").await?.expect_ok()?;
    let data = stack.orchestrator.data().join("hostile");
    let vault = stack.orchestrator.state().join("vault/hostile");
    let orchestrator = stack.orchestrator.service().process()?.pid();
    let before_kib = peak_kib(orchestrator)?;
    // 1. The files appear, and the tenant goes on writing.
    for number in 0..FILES {
        fs::File::create(data.join(format!("sparse-{number}.phext")))?.set_len(FILE_BYTES)?;
    }
    client.update("notes", "second").await?.expect_ok()?;
    until("the last write to be copied", PATIENCE, || async {
        let copy = fs::read_to_string(vault.join("good/notes.phext")).ok()?;
        (copy == "second").then_some(())
    })
    .await?;
    let reason = until("the status to name a file", PATIENCE, || async {
        stack.orchestrator.tenant_status("hostile").await.ok()?.copies_failing
    })
    .await?;
    ensure!(reason.starts_with("sparse-0.phext: its 1000000000 bytes"), "{reason}");
    // 2. SQ dies: they are neither repaired nor restored.
    stack.kill_sq("hostile")?;
    let died = Instant::now();
    until("the text of the last write", WOKEN_WITHIN, || async {
        (client.select("notes").await.ok()?.text() == "second").then_some(())
    })
    .await?;
    let woken = died.elapsed();
    // 3. What they have cost.
    let copies = occupied_bytes(&vault)?;
    let files = occupied_bytes(&data)?;
    let growth_kib = peak_kib(orchestrator)?.saturating_sub(before_kib);
    println!(
        "{FILES} files of {FILE_BYTES} bytes: {copies} bytes in the vault, {files} in the folder, \
         {growth_kib} KiB of memory, served {woken:?} after a death"
    );
    ensure!(copies < VAULT_MAX_BYTES, "{copies} bytes in the vault");
    ensure!(files < VAULT_MAX_BYTES, "{files} bytes in the folder");
    ensure!(growth_kib < GROWTH_MAX_KIB, "the orchestrator grew by {growth_kib} KiB");
    for number in 0..FILES {
        let length = fs::metadata(data.join(format!("sparse-{number}.phext")))?.len();
        ensure!(length == FILE_BYTES, "it has {length} bytes now");
    }
    Ok(())
}
