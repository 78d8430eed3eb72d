//! `integration proof`: SQ is killed, starved of memory and cut off from its disk during writes,
//! behind the gateway and alone. The writes that clients lose are counted.
//!
//! Each row is checked against two promises: everything that existed before a fault, and every
//! acknowledged write older than the window, exists after it. `SEED` repeats the moments of the
//! faults, but not SQ's state at these moments.

mod comparison;
mod daemon;
pub mod disk;
mod loss;
mod memory;
mod model;
mod series;
mod sq_container;
pub(crate) mod target;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};

pub use loss::LossReport;
pub use target::TENANT;

use disk::LoopDisk;
use harness::bare_sq::BareSq;
use harness::{Lifecycle, Runtime, Stack, StackBuilder, Tier};
use series::{FaultSeries, WRITERS};
use target::{Fault, Target};

/// The version of SQ that runs alone.
const SQ_VERSION: &str = "0.6.0";
/// Address space of an SQ alone that must die of a large request.
const SMALL_MEMORY_KB: u64 = 110_000;
/// Size of the small disk.
const DISK_MB: u64 = 96;
/// Free room on the small disk below which the gateway refuses writes.
const FLOOR_BYTES: u64 = 32 << 20;
/// Size of the phext in series on a full disk.
const DISK_PHEXT_BYTES: usize = 5_000_000;

/// The number of faults of each kind.
#[derive(Debug, Clone, Copy)]
struct ProofSize {
    /// Kills of SQ for each phext size.
    kills: u64,
    /// Deaths by another request's memory.
    memory: u64,
    /// Full disks.
    disks: u64,
    /// Kills of the Docker daemon.
    dockerd: u64,
    /// Sizes of phexts in bytes.
    phext_bytes: &'static [usize],
}

impl ProofSize {
    /// The size of `make proof`; takes about half an hour.
    const FULL: Self = Self {
        kills: 200,
        memory: 20,
        disks: 10,
        dockerd: 10,
        phext_bytes: &[5_000_000, 25_000_000],
    };
    /// The short form; takes about two minutes.
    const QUICK: Self =
        Self { kills: 20, memory: 3, disks: 2, dockerd: 2, phext_bytes: &[5_000_000] };
}

/// A part of the proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ProofPart {
    /// SQ dies during writes.
    Deaths,
    /// The disk is full during writes.
    Disks,
    /// The Docker daemon is killed during writes.
    Dockerd,
    /// The largest phext that SQ survives in the memory of each tier.
    Memory,
    /// SQ alone compared with the gateway, rule by rule.
    Table,
}

/// The options of `integration proof`.
#[derive(Debug, Clone)]
pub struct ProofOptions {
    /// The runtime of the tenants; `None` selects Docker if its daemon responds.
    pub runtime: Option<Runtime>,
    /// Runs the short form.
    pub quick: bool,
    /// Seed of all moments.
    pub seed: u64,
    /// Runs one part only.
    pub only: Option<ProofPart>,
    /// The folder of the proof's Docker daemon; set only in the child process that kills it.
    pub dockerd_in: Option<PathBuf>,
    /// Number of kills of the Docker daemon; `None` selects that of the size.
    pub dockerd_kills: Option<u64>,
}

impl ProofOptions {
    fn includes(&self, part: ProofPart) -> bool {
        self.only.is_none_or(|only| only == part)
    }
}

/// Returns a tier in which only SQ's memory limits writes.
pub fn tier(name: &str, memory_mib: u64) -> Tier {
    Tier::unlimited(name)
        .set("storage", "1 GB")
        .set("memory", format!("{memory_mib} MiB"))
        .set("phexts", 100)
        .set("phext-max", "200 MB")
        .set("body-max", "60 MB")
}

/// Builds a gateway with the tenant [`TENANT`]. Its crashes are forgiven at once, so that repeated
/// faults cause no back-off.
pub fn gateway(runtime: Runtime, memory_mib: u64) -> StackBuilder {
    Stack::builder()
        .runtime(runtime)
        .lifecycle(Lifecycle::default().duration_ms("stable_after", 0))
        .tier(tier("proof", memory_mib))
        .tenant_in_tier(TENANT, "proof")
}

/// Kills the SQ of a stack from [`gateway`] repeatedly during writes.
pub async fn run_kills(
    stack: Arc<Stack>,
    kills: u64,
    bytes: usize,
    seed: u64,
) -> Result<LossReport> {
    kill_series(kills, bytes, seed).run(Target::gateway(stack)?).await
}

fn kill_series(faults: u64, bytes: usize, seed: u64) -> FaultSeries {
    let pause = Duration::from_millis(1_200);
    FaultSeries { fault: Fault::Kill, faults, bytes, pause, seed }
}

fn memory_series(faults: u64, seed: u64) -> FaultSeries {
    let pause = Duration::from_secs(1);
    FaultSeries { fault: Fault::OutOfMemory, faults, bytes: 4_000_000, pause, seed }
}

/// Runs the selected parts and prints their tables. Fails when a promise was broken.
pub async fn run(options: ProofOptions) -> Result<()> {
    // The child process that kills dockerd has not started its daemon yet.
    let is_child = options.dockerd_in.is_some();
    let runtime = if is_child { Runtime::Docker } else { Runtime::resolve(options.runtime)? };
    let size = if options.quick { ProofSize::QUICK } else { ProofSize::FULL };
    let mut report = ProofReport::default();
    let with_losses = [ProofPart::Deaths, ProofPart::Disks, ProofPart::Dockerd];
    // The child process continues the table of its parent.
    if !is_child && with_losses.into_iter().any(|part| options.includes(part)) {
        print_heading(runtime, options.seed);
    }
    if options.includes(ProofPart::Deaths) {
        run_deaths(&mut report, runtime, size, options.seed).await?;
    }
    if options.includes(ProofPart::Disks) {
        run_disks(&mut report, runtime, size, options.seed).await?;
    }
    if options.includes(ProofPart::Dockerd) {
        run_dockerd(&mut report, &options, size).await?;
    }
    if options.includes(ProofPart::Memory) {
        println!();
        report.broken.extend(memory::run(options.quick).await?);
    }
    if options.includes(ProofPart::Table) {
        println!();
        report.broken.extend(comparison::run()?);
    }
    ensure!(report.broken.is_empty(), "promises broken: {}", report.broken.join("; "));
    if !is_child {
        println!("all promises held");
    }
    Ok(())
}

fn print_heading(runtime: Runtime, seed: u64) {
    println!("{WRITERS} writers, {} runtime, seed {seed}", runtime.name());
    println!(
        "promise: no earlier scroll is missing or torn, and no acknowledged write is lost that is \
         older than the window: 5 s and the longest copy"
    );
    println!("{}", LossReport::heading());
}

/// The promises that did not hold, by their rows.
#[derive(Default)]
struct ProofReport {
    broken: Vec<String>,
}

impl ProofReport {
    /// Prints a row of the gateway, whose promises must hold.
    fn print_gateway(&mut self, title: &str, losses: &LossReport) {
        println!("{}", losses.row(title));
        if !losses.promises_held() {
            self.broken.push(title.to_owned());
        }
    }
}

/// Prints a row of SQ alone, for comparison.
fn print_alone(title: &str, losses: &LossReport) {
    println!("{}", losses.row(title));
}

async fn run_deaths(
    report: &mut ProofReport,
    runtime: Runtime,
    size: ProofSize,
    seed: u64,
) -> Result<()> {
    for &bytes in size.phext_bytes {
        let title = |target: &str| format!("SIGKILL, {} MB, {target}", bytes / 1_000_000);
        let stack = Arc::new(gateway(runtime, 512).start().await?);
        let losses = run_kills(stack, size.kills, bytes, seed).await?;
        report.print_gateway(&title("gateway"), &losses);
        let alone = Target::alone(BareSq::start(SQ_VERSION)?);
        let losses = kill_series(size.kills, bytes, seed).run(alone).await?;
        print_alone(&title("SQ alone"), &losses);
    }
    let series = memory_series(size.memory, seed);
    let stack = Arc::new(gateway(runtime, 64).start().await?);
    let losses = series.run(Target::gateway(stack)?).await?;
    report.print_gateway("out of memory, 4 MB, gateway", &losses);
    let alone = BareSq::start_with_memory_limit(SQ_VERSION, SMALL_MEMORY_KB)?;
    let losses = series.run(Target::alone(alone)).await?;
    print_alone("out of memory, 4 MB, SQ alone", &losses);
    Ok(())
}

async fn run_disks(
    report: &mut ProofReport,
    runtime: Runtime,
    size: ProofSize,
    seed: u64,
) -> Result<()> {
    let disk = match LoopDisk::create(DISK_MB) {
        Ok(disk) => Arc::new(disk),
        Err(error) => {
            println!("FULL DISKS WERE NOT TESTED: cannot mount a small file system: {error:#}");
            report.broken.push("disk full: not tested".to_owned());
            return Ok(());
        }
    };
    let losses = run_full_disks(runtime, size.disks, seed).await?;
    report.print_gateway("disk full, 5 MB, gateway", &losses);
    let alone = Target::alone(BareSq::start_in_folder(SQ_VERSION, &disk.data())?);
    let losses = disk::run_series(alone, disk, size.disks, DISK_PHEXT_BYTES, seed).await?;
    print_alone("disk full, 5 MB, SQ alone", &losses);
    Ok(())
}

/// Fills the disk of a new gateway `times` times during writes.
async fn run_full_disks(runtime: Runtime, times: u64, seed: u64) -> Result<LossReport> {
    let disk = Arc::new(LoopDisk::create(DISK_MB)?);
    let stack = gateway(runtime, 512)
        .data(&disk.data())
        .orchestrator(&format!("\n[host]\ndisk_floor = {FLOOR_BYTES}\n"))
        .start()
        .await?;
    let target = Target::gateway(Arc::new(stack))?;
    disk::run_series(target, disk, times, DISK_PHEXT_BYTES, seed).await
}

async fn run_dockerd(
    report: &mut ProofReport,
    options: &ProofOptions,
    size: ProofSize,
) -> Result<()> {
    let kills = options.dockerd_kills.unwrap_or(size.dockerd);
    if let Some(dir) = &options.dockerd_in {
        let losses = daemon::run_kills(dir, kills, options.seed).await?;
        report.print_gateway("dockerd killed, 5 MB, gateway", &losses.gateway);
        print_alone("dockerd killed, 5 MB, SQ alone", &losses.alone);
        return Ok(());
    }
    match daemon::run(kills, options.seed).await {
        Ok(true) => {}
        Ok(false) => report.broken.push("dockerd killed".to_owned()),
        Err(error) => {
            println!("KILLS OF DOCKERD WERE NOT TESTED: {error:#}");
            report.broken.push("dockerd killed: not tested".to_owned());
        }
    }
    Ok(())
}
