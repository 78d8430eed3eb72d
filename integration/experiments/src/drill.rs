//! `integration drill`: faults are injected under mixed load, and the outcomes of the clients'
//! requests are counted.
//!
//! Each tenant has one client, so that every response can be judged: a read returns the last
//! acknowledged text, or a text whose write was in flight when the fault came. The failures that a
//! drill may cause are its [`Expectation`]. The goal of all drills is the same: no failed read, no
//! wrong response, no acknowledged write lost, and an error response for every write that fails.
//!
//! ```text
//! load ─► fault ─► recovery ─► check of all scrolls ─┐
//!   ▲────────────────────────────────────────────────┘
//! ```

pub mod clock;
mod daemon;
mod disk;
pub mod doze;
mod expectation;
mod fault;
pub mod hostile;
mod mixed_load;
mod outcomes;
mod pairs;
mod scroll_history;
pub mod throttle;

use std::time::Duration;

use anyhow::{Context, Result, ensure};

pub use expectation::Expectation;
pub use outcomes::ClientOutcomes;

use disk::FillableDisk;
use harness::{EnvoyHost, Lifecycle, Runtime, Stack, StackBuilder, Tier};
use mixed_load::MixedLoad;

/// Longest wait for recovery from a fault.
const PATIENCE: Duration = Duration::from_mins(1);
/// Time for which clients wait for a wake: waking all tenants at once on two cores takes longer
/// than the default of nine seconds.
const PATIENCE_MS: u64 = 26_000;
/// A tier whose tenants may send bodies larger than their memory. No real tier allows this.
const TIER: &str = "drill";

/// The size of a drill.
#[derive(Debug, Clone, Copy)]
pub struct DrillSize {
    /// Tenants under load at the same time.
    pub tenants: usize,
    /// Requests between two faults, over all tenants.
    pub requests: u64,
    /// Faults per drill.
    pub faults: usize,
}

impl DrillSize {
    /// The size of `make drill`; takes some minutes.
    pub const FULL: Self = Self { tenants: 20, requests: 2000, faults: 5 };
    /// The size in the test suite; takes much less than a minute.
    pub const QUICK: Self = Self { tenants: 4, requests: 200, faults: 2 };

    /// Returns the requests of one client between two faults.
    fn requests_per_client(self) -> u64 {
        self.requests / u64::try_from(self.tenants.max(1)).unwrap_or(1)
    }
}

/// A drill, named by its fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drill {
    /// There is no fault; shows the load alone.
    NoFault,
    /// One tenant's SQ is killed.
    SqKilled,
    /// One tenant's SQ runs out of memory.
    SqOutOfMemory,
    /// All tenants' SQs are killed at once.
    AllSqsKilled,
    /// The orchestrator is killed and started again.
    OrchestratorKilled,
    /// The orchestrator's binary is replaced; it is stopped and started as in an upgrade.
    OrchestratorUpgraded,
    /// A second orchestrator is started on the same data root and must refuse.
    SecondOrchestrator,
    /// Envoy hands over to a new process.
    EnvoyHotRestarted,
    /// Envoy is killed and started again.
    EnvoyKilled,
    /// The relay is killed and started again.
    RelayGone,
    /// All tenants are put to sleep, and each wakes with its next request.
    AllAsleep,
    /// All tenants sleep, the orchestrator is killed and started again, and all tenants get a
    /// request at once.
    AllAtOnce,
    /// The disk temporarily has less room than its floor.
    DiskFull,
    /// The wall clock of all parts jumps an hour ahead and back.
    ClockJumps,
    /// The Docker daemon is killed and started again; containers survive.
    DaemonLiveRestore,
    /// The Docker daemon and all containers end, and the daemon is started again.
    DaemonRestarted,
    /// Two parts fail at the same time: each pair of one SQ, orchestrator, relay and Envoy.
    TwoAtOnce,
    /// The Docker daemon is restarted with all containers while another part fails.
    DaemonAndAnother,
}

impl Drill {
    /// All drills, in the order in which they run.
    pub const ALL: [Self; 18] = [
        Self::NoFault,
        Self::SqKilled,
        Self::SqOutOfMemory,
        Self::AllSqsKilled,
        Self::OrchestratorKilled,
        Self::OrchestratorUpgraded,
        Self::SecondOrchestrator,
        Self::EnvoyHotRestarted,
        Self::EnvoyKilled,
        Self::RelayGone,
        Self::AllAsleep,
        Self::AllAtOnce,
        Self::DiskFull,
        Self::ClockJumps,
        Self::DaemonLiveRestore,
        Self::DaemonRestarted,
        Self::TwoAtOnce,
        Self::DaemonAndAnother,
    ];

    /// Returns the title of the drill's row.
    pub fn title(self) -> &'static str {
        match self {
            Self::NoFault => "no fault",
            Self::SqKilled => "one SQ killed",
            Self::SqOutOfMemory => "one SQ out of memory",
            Self::AllSqsKilled => "all SQs killed at once",
            Self::OrchestratorKilled => "orchestrator kill -9",
            Self::OrchestratorUpgraded => "orchestrator upgraded",
            Self::SecondOrchestrator => "second orchestrator started",
            Self::EnvoyHotRestarted => "Envoy hot restart",
            Self::EnvoyKilled => "Envoy kill -9 (clients retry)",
            Self::RelayGone => "relay kill -9",
            Self::AllAsleep => "all put to sleep at once",
            Self::AllAtOnce => "all woken at once after a reboot",
            Self::DiskFull => "disk below its floor",
            Self::ClockJumps => "clock jumps 1 h ahead and back",
            Self::DaemonLiveRestore => "dockerd restart, live-restore",
            Self::DaemonRestarted => "dockerd restart",
            Self::TwoAtOnce => "two parts fail at once",
            Self::DaemonAndAnother => "dockerd restart and another failure",
        }
    }

    /// Ends this host's Docker daemon.
    fn ends_daemon(self) -> bool {
        matches!(self, Self::DaemonLiveRestore | Self::DaemonRestarted | Self::DaemonAndAnother)
    }

    /// Number of faults: each pair once, in both orders unless it is the short form.
    fn faults(self, size: DrillSize) -> usize {
        match self {
            Self::TwoAtOnce if size.faults < DrillSize::FULL.faults => pairs::count(self) / 2,
            Self::TwoAtOnce | Self::DaemonAndAnother => pairs::count(self),
            _ => size.faults,
        }
    }
}

/// Returns the lifecycle settings of a drill.
///
/// Crashes are forgiven at once: repeated faults are not a crash loop, which would cause back-off.
/// Drills in which tenants sleep have short leases, but a grace that is longer than a request takes
/// on a busy machine. All others have the default leases, which outlast the restart of a part.
fn lifecycle(drill: Drill) -> Lifecycle {
    let lifecycle =
        Lifecycle::default().duration_ms("stable_after", 0).duration_ms("patience", PATIENCE_MS);
    match drill {
        Drill::AllAsleep | Drill::AllAtOnce => {
            lifecycle.duration_ms("lease", 500).duration_ms("grace", 5000)
        }
        _ => lifecycle,
    }
}

/// Builds the stack of a drill.
pub fn stack(drill: Drill, tenants: usize) -> StackBuilder {
    let tier = Tier::unlimited(TIER).set("phext-max", "60 MB").set("body-max", "60 MB");
    let mut builder = Stack::builder().lifecycle(lifecycle(drill)).tier(tier);
    if drill == Drill::EnvoyHotRestarted {
        // The old Envoy passes its sockets to the new one, so both must run on the same host.
        builder = builder.hot_restart().envoy_host(EnvoyHost::Process);
    }
    let builder = builder.filter_config("lease_timeout", &format!("\"{}ms\"", PATIENCE_MS + 1_000));
    (1..=tenants).fold(builder, |builder, n| builder.tenant_in_tier(&format!("t{n}"), TIER))
}

/// Runs one drill on a new stack from [`stack`]. All scrolls are checked after each fault.
pub async fn run_under_load(
    drill: Drill,
    stack: &Stack,
    size: DrillSize,
) -> Result<ClientOutcomes> {
    let load = MixedLoad::start(stack).await?;
    for number in 0..drill.faults(size) {
        load.wait_for_requests(size.requests_per_client(), stack).await?;
        load.begin_fault();
        fault::inject(drill, stack, &load, number).await?;
        load.end_fault();
        load.check_all_scrolls().await?;
    }
    load.wait_for_requests(size.requests_per_client(), stack).await?;
    load.finish().await
}

/// Starts the drill's stack and runs the drill.
async fn run_on_new_stack(
    drill: Drill,
    runtime: Runtime,
    size: DrillSize,
) -> Result<ClientOutcomes> {
    let mut builder = stack(drill, size.tenants).runtime(runtime);
    let mut disk = None;
    if drill == Drill::DiskFull {
        let small = FillableDisk::create()?;
        builder = builder.data(&small.data()).orchestrator(&FillableDisk::orchestrator_config());
        disk = Some(small);
    }
    let stack = builder.start().await?;
    let result = match &disk {
        Some(disk) => disk::run_under_load(disk, &stack, size).await,
        None => run_under_load(drill, &stack, size).await,
    };
    let result = result.with_context(|| format!("{}\n{}", drill.title(), stack.log_tails()));
    // The stack is dropped before the disk, because its tenants have files there.
    drop(stack);
    drop(disk);
    result
}

/// The options of `integration drill`.
#[derive(Debug, Clone)]
pub struct DrillOptions {
    /// The runtime of the tenants; `None` selects Docker if its daemon responds.
    pub runtime: Option<Runtime>,
    /// Runs each drill in its short form.
    pub quick: bool,
    /// Includes the drills that end this host's Docker daemon.
    pub dockerd: bool,
    /// Runs only the drills whose titles contain this text.
    pub only: Option<String>,
}

impl DrillOptions {
    fn includes(&self, drill: Drill) -> bool {
        self.only.as_ref().is_none_or(|only| drill.title().contains(only.as_str()))
    }
}

/// Missed goals and drills that were not run.
#[derive(Debug, Default)]
struct Summary {
    missed: Vec<String>,
    skipped: Vec<String>,
}

/// Runs all drills and prints the table. Fails when a goal is missed.
pub async fn run(options: DrillOptions) -> Result<()> {
    let runtime = Runtime::resolve(options.runtime)?;
    let size = if options.quick { DrillSize::QUICK } else { DrillSize::FULL };
    println!("Mixed load on {} tenants, {} runtime", size.tenants, runtime.name());
    println!("{}", ClientOutcomes::heading());
    let mut summary = Summary::default();
    for drill in Drill::ALL.into_iter().filter(|drill| options.includes(*drill)) {
        run_and_print(drill, runtime, size, &options, &mut summary).await?;
    }
    println!("{}\n{}", ClientOutcomes::goals(), Expectation::NOTES);
    if options.only.as_ref().is_none_or(|only| throttle::TITLE.contains(only.as_str())) {
        summary.missed.extend(throttle::run(runtime, options.quick).await?);
    }
    if options.only.as_ref().is_none_or(|only| hostile::TITLE.contains(only.as_str())) {
        summary.missed.extend(hostile::run(runtime).await?);
    }
    if options.only.is_none() {
        let p50 = doze::median_wake(runtime, doze::ROUNDS).await?;
        println!(
            "request to a dozing tenant, p50 of {} wakes: {p50:.1?}; {}",
            doze::ROUNDS,
            doze::GOAL
        );
        if p50 > doze::LIMIT {
            summary.missed.push(format!("the wake of a dozing tenant took {p50:?}"));
        }
    }
    for drill in &summary.skipped {
        println!("NOT RUN: {drill}");
    }
    ensure!(summary.missed.is_empty(), "goals missed:\n{}", summary.missed.join("\n"));
    println!("all goals met");
    Ok(())
}

/// Runs one drill and prints its row.
async fn run_and_print(
    drill: Drill,
    runtime: Runtime,
    size: DrillSize,
    options: &DrillOptions,
    summary: &mut Summary,
) -> Result<()> {
    let title = drill.title();
    let outcomes = match drill {
        Drill::ClockJumps if !clock::can_shift() => {
            // The child process, whose clock can be shifted, prints the row.
            let program = std::env::current_exe()?;
            if let Err(error) = clock::run_with_shifted_clock(&program, options.quick) {
                summary.missed.push(format!("{title}: {error:#}"));
            }
            return Ok(());
        }
        _ if drill.ends_daemon() && !options.dockerd => {
            let reason = "it disturbs all containers of this host; run it with --dockerd";
            summary.skipped.push(format!("{title}: {reason}"));
            return Ok(());
        }
        _ if drill.ends_daemon() => daemon::run_drill(drill, size).await?,
        _ => run_on_new_stack(drill, runtime, size).await?,
    };
    let missed = Expectation::new(drill).missed_goals(&outcomes);
    let met = if missed.is_empty() { "met" } else { "MISSED" };
    println!("{}  {met}", outcomes.row(title));
    if !missed.is_empty() {
        let errors = outcomes.first_errors.join("; ");
        summary.missed.push(format!("{title}: {}: {errors}", missed.join(", ")));
    }
    Ok(())
}
