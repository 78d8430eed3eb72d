//! `integration proof`: SQ is killed, starved and cut off from its disk under writes, behind the
//! gateway and alone, and what its clients lose is counted.
//!
//! Every row says what was lost against two promises: whatever was there before, and every
//! acknowledged write older than the window, is there afterwards. `SEED` repeats a run's moments;
//! what SQ is doing just then is its own affair.

pub mod contained;
pub mod daemon;
pub mod disk;
pub mod kill;
pub mod memory;
pub mod model;
pub mod table;
pub mod target;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};

use disk::LoopDisk;
use harness::bare_sq::BareSq;
use harness::{Lifecycle, Runtime, Stack, StackBuilder, Tier};
use kill::{Series, Tally, WRITERS};
use target::{Blow, TENANT, Target};

/// Address space of an SQ alone that is to die of a large request.
const SMALL_KB: u64 = 110_000;
/// Room of the small disk.
const DISK_MB: u64 = 96;
/// Below this much room the gateway of the small disk takes no writes.
const FLOOR_BYTES: u64 = 32 << 20;

/// How much is done.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// SIGKILLs per phext size.
    pub kills: u64,
    /// Deaths of another request's memory.
    pub memory: u64,
    /// Full disks.
    pub disks: u64,
    /// Deaths of Docker's daemon.
    pub dockerd: u64,
    /// Sizes of phexts.
    pub sizes: &'static [usize],
}

impl Scale {
    /// About half an hour.
    pub const FULL: Self =
        Self { kills: 200, memory: 20, disks: 10, dockerd: 10, sizes: &[5_000_000, 25_000_000] };
    /// About two minutes.
    pub const QUICK: Self =
        Self { kills: 20, memory: 3, disks: 2, dockerd: 2, sizes: &[5_000_000] };
}

/// A part of the proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// SQ dies under writes.
    Deaths,
    /// The disk is full.
    Disks,
    /// Docker's daemon dies under writes.
    Dockerd,
    /// What SQ survives in the memory of each tier.
    Memory,
    /// SQ alone and the gateway, rule by rule.
    Table,
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// What runs tenants; `None`: what is here.
    pub runtime: Option<Runtime>,
    /// Few blows.
    pub quick: bool,
    /// Decides about all moments.
    pub seed: u64,
    /// One part instead of all.
    pub only: Option<Part>,
    /// The folder of a Docker daemon of our own, where this is the process that kills it.
    pub dockerd_in: Option<PathBuf>,
    /// How often it is killed; `None`: as the scale has it.
    pub dockerd_kills: Option<u64>,
}

/// The limits of what is struck: nothing but SQ's own memory stops a write.
pub fn tier(name: &str, memory_mib: u64) -> Tier {
    Tier::unlimited(name)
        .set("storage", "1 GB")
        .set("memory", format!("{memory_mib} MiB"))
        .set("phexts", 100)
        .set("phext-max", "200 MB")
        .set("body-max", "60 MB")
}

/// A gateway whose tenant has so much memory. It dies more often here than one in good health, and
/// is not made to wait for it.
pub fn gateway(runtime: Runtime, memory_mib: u64) -> StackBuilder {
    Stack::builder()
        .runtime(runtime)
        .lifecycle(Lifecycle::default().duration_ms("stable_after", 0))
        .tier(tier("struck", memory_mib))
        .tenant_in_tier(TENANT, "struck")
}

/// Kills behind the gateway.
pub async fn kills(runtime: Runtime, blows: u64, bytes: usize, seed: u64) -> Result<Tally> {
    struck(Arc::new(gateway(runtime, 512).start().await?), blows, bytes, seed).await
}

/// Kills behind a gateway of [`gateway`].
pub async fn struck(stack: Arc<Stack>, blows: u64, bytes: usize, seed: u64) -> Result<Tally> {
    kill::series(Target::gateway(stack)?, by_kill(blows, bytes, seed)).await
}

fn by_kill(blows: u64, bytes: usize, seed: u64) -> Series {
    Series { blow: Blow::Kill, blows, bytes, pause: Duration::from_millis(1_200), seed }
}

/// Deaths by another request's memory, behind the gateway.
pub async fn starved(runtime: Runtime, blows: u64, seed: u64) -> Result<Tally> {
    let stack = gateway(runtime, 64).start().await?;
    kill::series(Target::gateway(Arc::new(stack))?, by_memory(blows, seed)).await
}

fn by_memory(blows: u64, seed: u64) -> Series {
    let pause = Duration::from_secs(1);
    Series { blow: Blow::Memory, blows, bytes: 4_000_000, pause, seed }
}

/// Full disks behind the gateway.
pub async fn full_disks(runtime: Runtime, times: u64, seed: u64) -> Result<Tally> {
    let disk = Arc::new(LoopDisk::make(DISK_MB)?);
    let stack = gateway(runtime, 512)
        .data(&disk.data())
        .orchestrator(&format!("\n[host]\ndisk_floor = {FLOOR_BYTES}\n"))
        .start()
        .await?;
    disk::series(Target::gateway(Arc::new(stack))?, disk, (times, 5_000_000, seed)).await
}

/// Runs all of it and prints the tables; fails when a promise was broken.
pub async fn run(options: Options) -> Result<()> {
    // Who kills dockerd has none yet.
    let own = options.dockerd_in.as_ref().map(|_| Runtime::Docker);
    let runtime = own.map_or_else(|| Runtime::resolve(options.runtime), Ok)?;
    let scale = if options.quick { Scale::QUICK } else { Scale::FULL };
    let wanted = |part| options.only.is_none_or(|only| only == part);
    let mut report = Report::default();
    let dies = [Part::Deaths, Part::Disks, Part::Dockerd].into_iter().any(wanted);
    // The process that kills dockerd goes on with the table of the one that started it.
    if dies && options.dockerd_in.is_none() {
        println!("{WRITERS} writers, {} runtime, seed {}", runtime.name(), options.seed);
        println!(
            "promise: nothing from before missing or torn, and no acknowledged write lost that is \
             older than the window: 5 s and the longest copy"
        );
        println!("{}", Tally::HEADING);
    }
    if wanted(Part::Deaths) {
        deaths(&mut report, runtime, scale, options.seed).await?;
    }
    if wanted(Part::Disks) {
        disks(&mut report, runtime, scale, options.seed).await?;
    }
    if wanted(Part::Dockerd) {
        dockerd(&mut report, &options, scale).await?;
    }
    if wanted(Part::Memory) {
        println!();
        report.broken.extend(memory::run(options.quick).await?);
    }
    if wanted(Part::Table) {
        println!();
        report.broken.extend(table::run()?);
    }
    ensure!(report.broken.is_empty(), "broken: {}", report.broken.join("; "));
    if options.dockerd_in.is_none() {
        println!("kept");
    }
    Ok(())
}

async fn dockerd(report: &mut Report, options: &Options, scale: Scale) -> Result<()> {
    let times = options.dockerd_kills.unwrap_or(scale.dockerd);
    if let Some(dir) = &options.dockerd_in {
        let [gateway, alone] = daemon::kills(dir, times, options.seed).await?;
        report.kept("dockerd killed, 5 MB, gateway", &gateway);
        beside("dockerd killed, 5 MB, SQ alone", &alone);
        return Ok(());
    }
    match daemon::run(times, options.seed).await {
        Ok(true) => {}
        Ok(false) => report.broken.push("dockerd killed".to_owned()),
        Err(error) => {
            println!("DEATHS OF DOCKERD WERE NOT TRIED: {error:#}");
            report.broken.push("dockerd killed: not tried".to_owned());
        }
    }
    Ok(())
}

/// What was printed, and which promises did not hold.
#[derive(Default)]
struct Report {
    broken: Vec<String>,
}

impl Report {
    /// A row that must hold.
    fn kept(&mut self, title: &str, tally: &Tally) {
        println!("{}", tally.row(title));
        if !tally.good() {
            self.broken.push(title.to_owned());
        }
    }
}

/// A row beside it, for comparison.
fn beside(title: &str, tally: &Tally) {
    println!("{}", tally.row(title));
}

async fn deaths(report: &mut Report, runtime: Runtime, scale: Scale, seed: u64) -> Result<()> {
    for &bytes in scale.sizes {
        let title = |who: &str| format!("SIGKILL, {} MB, {who}", bytes / 1_000_000);
        report.kept(&title("gateway"), &kills(runtime, scale.kills, bytes, seed).await?);
        let alone = Target::alone(BareSq::start("0.6.0")?);
        let tally = kill::series(alone, by_kill(scale.kills, bytes, seed)).await?;
        beside(&title("SQ alone"), &tally);
    }
    let tally = starved(runtime, scale.memory, seed).await?;
    report.kept("out of memory, 4 MB, gateway", &tally);
    let alone = Target::alone(BareSq::start_with_memory_limit("0.6.0", SMALL_KB)?);
    beside(
        "out of memory, 4 MB, SQ alone",
        &kill::series(alone, by_memory(scale.memory, seed)).await?,
    );
    Ok(())
}

async fn disks(report: &mut Report, runtime: Runtime, scale: Scale, seed: u64) -> Result<()> {
    let disk = match LoopDisk::make(DISK_MB) {
        Ok(disk) => Arc::new(disk),
        Err(error) => {
            println!("DISK FULL WAS NOT TRIED: a small file system can't be mounted: {error:#}");
            report.broken.push("disk full: not tried".to_owned());
            return Ok(());
        }
    };
    let tally = full_disks(runtime, scale.disks, seed).await?;
    report.kept("disk full, 5 MB, gateway", &tally);
    let alone = Target::alone(BareSq::start_in_folder("0.6.0", &disk.data())?);
    let tally = disk::series(alone, disk, (scale.disks, 5_000_000, seed)).await?;
    beside("disk full, 5 MB, SQ alone", &tally);
    Ok(())
}
