//! A full disk: a small file system in a file, and a task that takes all its room.
//!
//! SQ truncates a phext before it writes it, and the task takes the room in between. SQ 0.6.0 then
//! responds with 200 nevertheless and leaves a truncated file.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use tempfile::TempDir;
use tokio::task::spawn_blocking;

use super::loss::LossReport;
use super::series::Writers;
use super::target::{PHEXT, TENANT, Target};
use harness::until;

/// Time for which the disk stays full: longer than the gateway needs to detect it.
const FULL: Duration = Duration::from_secs(4);
/// Longest time from recovery to the next full disk, in milliseconds.
const PAUSE_MS: u64 = 1_500;
/// Longest wait until the gateway has repaired truncated files.
const REPAIR: Duration = Duration::from_secs(30);
/// Size of one write of the filling task. With larger writes SQ would find room in between.
const FILL_BYTES: usize = 64 * 1024;

/// An ext4 file system in a file, unmounted on drop.
pub struct LoopDisk {
    dir: TempDir,
}

impl LoopDisk {
    /// Creates and mounts a file system of `megabytes`. Needs root and loop devices.
    pub fn create(megabytes: u64) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("sq-disk-").tempdir()?;
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let image = dir.path().join("image");
        File::create(&image)?.set_len(megabytes << 20)?;
        fs::create_dir(dir.path().join("mnt"))?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
        let disk = Self { dir };
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(disk.mount_point()))?;
        fs::create_dir(disk.data())?;
        Ok(disk)
    }

    fn mount_point(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// Returns the folder for tenants' data on this file system.
    pub fn data(&self) -> PathBuf {
        self.mount_point().join("data")
    }

    /// Takes all free room repeatedly until `stop` is set, and frees it then.
    fn fill(&self, stop: &AtomicBool) -> Result<()> {
        let path = self.mount_point().join("filler");
        let mut file = File::create(&path)?;
        let bytes = vec![b'x'; FILL_BYTES];
        while !stop.load(Ordering::SeqCst) {
            // The disk is full: the next round takes the room that SQ has freed until then.
            if file.write_all(&bytes).is_err() {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        Ok(fs::remove_file(path)?)
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        // A lazy unmount: an SQ that is just being killed may still have a file open.
        let _ = run(Command::new("umount").arg("-l").arg(self.mount_point()));
    }
}

/// A file system in memory, mounted on a folder and unmounted on drop.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts a file system with `options`, such as `ro` or `size=8m`. Needs root.
    pub fn mount(folder: &Path, options: &str) -> Result<Self> {
        run(Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(folder))
            .context("this test mounts a small disk: run as root")?;
        Ok(Self(folder.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("-l").arg(&self.0));
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Fills the disk `times` times during writes of a phext of `bytes`.
pub(super) async fn run_series(
    target: Target,
    disk: Arc<LoopDisk>,
    times: u64,
    bytes: usize,
    seed: u64,
) -> Result<LossReport> {
    let writers = Writers::start(Arc::new(target), bytes, seed).await?;
    let mut report = LossReport::default();
    let mut random = Rng::with_seed(seed);
    for number in 0..times {
        tokio::time::sleep(Duration::from_millis(random.u64(..PAUSE_MS))).await;
        let full = Instant::now();
        let stop = Arc::new(AtomicBool::new(false));
        let filler = {
            let disk = disk.clone();
            let stop = stop.clone();
            spawn_blocking(move || disk.fill(&stop))
        };
        tokio::time::sleep(FULL).await;
        writers.pause().await?;
        stop.store(true, Ordering::SeqCst);
        filler.await??;
        let context = || format!("full disk {number}");
        wait_for_repair(writers.target()).await.with_context(context)?;
        writers.check(&mut report, full).await.with_context(context)?;
        writers.resume();
    }
    writers.finish(report).await
}

/// Waits until the file equals the gateway's good copy: the gateway has examined the file and, if
/// it was truncated, replaced it.
async fn wait_for_repair(target: &Target) -> Result<()> {
    let Target::Gateway(stack, _) = target else { return Ok(()) };
    let file = target.file();
    let copy_name = format!("{PHEXT}.phext");
    let copy = stack.orchestrator.state().join("vault").join(TENANT).join("good").join(copy_name);
    until("the file to equal its good copy", REPAIR, || async {
        let bytes = fs::read(&file).ok()?;
        (fs::read(&copy).ok()? == bytes).then_some(())
    })
    .await
}
