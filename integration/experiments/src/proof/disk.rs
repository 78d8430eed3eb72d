//! A full disk: a small file system in a file, and something that takes all its room.
//!
//! SQ truncates a phext before it writes it, and what takes the room does so just then: SQ 0.6.0
//! answers 200 all the same and leaves a cut file.

use harness::until;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tokio::task::spawn_blocking;

use super::kill::{Random, Tally, Writers};
use super::target::{PHEXT, TENANT, Target};

/// How long the disk stays full: longer than the gateway takes to see it.
const FULL: Duration = Duration::from_secs(4);
/// Longest wait until the gateway has put right what was cut.
const HEALED: Duration = Duration::from_secs(30);
/// Written at a time by what fills the disk: little, or SQ would find room in between.
const FILL_BYTES: usize = 64 * 1024;

/// An ext4 file system of its own; gone when dropped.
pub struct LoopDisk {
    dir: TempDir,
}

impl LoopDisk {
    /// Makes and mounts one of `megabytes`. Needs root and loop devices.
    pub fn make(megabytes: u64) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("sq-disk-").tempdir()?;
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let image = dir.path().join("image");
        File::create(&image)?.set_len(megabytes << 20)?;
        fs::create_dir(dir.path().join("mnt"))?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
        let disk = Self { dir };
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(disk.mounted()))?;
        fs::create_dir(disk.data())?;
        Ok(disk)
    }

    fn mounted(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// A folder on it.
    pub fn data(&self) -> PathBuf {
        self.mounted().join("data")
    }

    /// Takes all room, over and over, until `stop`; then gives it back.
    fn fill(&self, stop: &AtomicBool) -> Result<()> {
        let path = self.mounted().join("filler");
        let mut file = File::create(&path)?;
        let bytes = vec![b'x'; FILL_BYTES];
        while !stop.load(Ordering::SeqCst) {
            // Full: the next round takes what was given back meanwhile.
            if file.write_all(&bytes).is_err() {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        Ok(fs::remove_file(path)?)
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        // Lazily: an SQ that is just being killed may still have a file open.
        let _ = run(Command::new("umount").arg("-l").arg(self.mounted()));
    }
}

/// A file system in memory on a folder; gone when dropped.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one with `options`, such as `ro` or `size=8m`. Needs root.
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

/// Fills the disk `times` times under writes of a phext of `bytes`.
pub async fn series(
    target: Target,
    disk: Arc<LoopDisk>,
    (times, bytes, seed): (u64, usize, u64),
) -> Result<Tally> {
    let writers = Writers::start(Arc::new(target), bytes, seed).await?;
    let (mut tally, mut random) = (Tally::default(), Random(seed));
    for number in 0..times {
        tokio::time::sleep(Duration::from_millis(random.draw() % 1_500)).await;
        let full = Instant::now();
        let stop = Arc::new(AtomicBool::new(false));
        let filler = {
            let (disk, stop) = (disk.clone(), stop.clone());
            spawn_blocking(move || disk.fill(&stop))
        };
        tokio::time::sleep(FULL).await;
        writers.rest().await?;
        stop.store(true, Ordering::SeqCst);
        filler.await??;
        healed(writers.target()).await.with_context(|| format!("full disk {number}"))?;
        writers.look(&mut tally, full).await.with_context(|| format!("full disk {number}"))?;
        writers.go_on();
    }
    writers.finish(tally).await
}

/// Waits until the gateway's good copy and the file are the same: it has looked and, where need
/// was, put back.
async fn healed(target: &Target) -> Result<()> {
    let Target::Gateway(stack, _) = target else { return Ok(()) };
    let file = target.file();
    let name = format!("{PHEXT}.phext");
    let good = stack.orchestrator.state().join("vault").join(TENANT).join("good").join(name);
    let same = |a: &Path, b: &Path| fs::read(a).ok().is_some_and(|a| fs::read(b).ok() == Some(a));
    until("the file to be its copy", HEALED, || async { same(&file, &good).then_some(()) }).await
}
