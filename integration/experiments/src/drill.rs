//! `integration drill`: parts are broken under mixed load; what clients saw is counted.
//!
//! Each tenant has one client, so that every answer can be judged: a read gives the last
//! acknowledged text, or one whose write was in flight when something broke. What a client may see
//! of each drill is its [`Allowance`]; the goal beside it is always the same: no failed read, no
//! wrong answer, no acknowledged write lost, and a write that fails says so.

mod allow;
pub mod clock;
mod daemon;
mod disk;
pub mod doze;
pub mod mixed;
mod scroll;
mod strike;
mod tally;

use harness::{EnvoyHost, Lifecycle, Runtime, Stack, StackBuilder, Tier};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

pub use allow::Allowance;
use mixed::Mixed;
pub use tally::Tally;

/// Longest wait for anything to come back.
const PATIENCE: Duration = Duration::from_mins(1);

/// How long clients wait for a wake: a herd on two cores takes longer than the usual nine seconds.
const PATIENCE_MS: u64 = 26_000;

/// A tier whose tenants can ask for more than their memory bears: no product has one.
const TIER: &str = "drill";
/// How much is done.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Tenants under load at the same time.
    pub tenants: usize,
    /// Requests between one blow and the next, over all tenants.
    pub requests: u64,
    /// Blows per drill.
    pub blows: usize,
}

impl Scale {
    /// Requests of one client between one blow and the next.
    fn each(self) -> u64 {
        self.requests / u64::try_from(self.tenants.max(1)).unwrap_or(1)
    }

    /// Some minutes.
    pub const FULL: Self = Self { tenants: 20, requests: 2000, blows: 5 };
    /// Well below a minute, for the test suite.
    pub const QUICK: Self = Self { tenants: 4, requests: 200, blows: 2 };
}

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drill {
    /// Nothing: what the load sees on its own.
    Nothing,
    /// One tenant's SQ is killed.
    SqKilled,
    /// One tenant's SQ runs out of memory.
    SqOutOfMemory,
    /// All tenants' SQs are killed at once.
    AllSqsKilled,
    /// The orchestrator is killed and started again.
    OrchestratorKilled,
    /// The orchestrator's binary is replaced, it is ended as an upgrade does, and started again.
    OrchestratorUpgraded,
    /// A second orchestrator is started on the same data root: it must refuse.
    SecondOrchestrator,
    /// Envoy hands over to a new process.
    EnvoyHotRestarted,
    /// Envoy is killed and started again.
    EnvoyKilled,
    /// The relay is killed and started again.
    RelayGone,
    /// All tenants are asked to sleep and wake with their next request.
    AllAsleep,
    /// All tenants sleep, the orchestrator is killed and started again, all are asked at once.
    AllAtOnce,
    /// The disk has less room than the floor for a while.
    DiskFull,
    /// The wall clock of all parts jumps an hour ahead and back.
    ClockJumps,
    /// Docker's daemon is killed and started again, containers live on.
    DaemonLiveRestore,
    /// Docker's daemon is killed and started again, and with it all containers.
    DaemonRestarted,
}

impl Drill {
    /// In the order in which they are run.
    pub const ALL: [Self; 16] = [
        Self::Nothing,
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
    ];

    /// What the table calls it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Nothing => "nothing broken",
            Self::SqKilled => "one SQ killed",
            Self::SqOutOfMemory => "one SQ out of memory",
            Self::AllSqsKilled => "all SQs killed at once",
            Self::OrchestratorKilled => "orchestrator kill -9",
            Self::OrchestratorUpgraded => "orchestrator upgraded",
            Self::SecondOrchestrator => "a second orchestrator",
            Self::EnvoyHotRestarted => "Envoy hot restart",
            Self::EnvoyKilled => "Envoy kill -9 (clients ask again)",
            Self::RelayGone => "relay gone and back",
            Self::AllAsleep => "all put to sleep at once",
            Self::AllAtOnce => "all woken at once after a reboot",
            Self::DiskFull => "disk below its floor",
            Self::ClockJumps => "clock jumps 1 h ahead and back",
            Self::DaemonLiveRestore => "dockerd restart, live-restore",
            Self::DaemonRestarted => "dockerd restart",
        }
    }
}

/// Crashes are forgiven at once: one blow after another is no crash loop, which would be answered
/// with a back-off. Where tenants are to sleep their leases are short, but the grace is still longer
/// than a request takes on a busy machine; elsewhere they are the product's, which outlast what is
/// being started again.
pub fn lifecycle(drill: Drill) -> Lifecycle {
    let lifecycle =
        Lifecycle::default().duration_ms("stable_after", 0).duration_ms("patience", PATIENCE_MS);
    match drill {
        Drill::AllAsleep | Drill::AllAtOnce => {
            lifecycle.duration_ms("lease", 500).duration_ms("grace", 5000)
        }
        _ => lifecycle,
    }
}

/// A stack with so many tenants to be struck.
pub fn stack(drill: Drill, tenants: usize) -> StackBuilder {
    let tier = Tier::unlimited(TIER).set("phext-max", "60 MB").set("body-max", "60 MB");
    let mut builder = Stack::builder().lifecycle(lifecycle(drill)).tier(tier);
    if drill == Drill::EnvoyHotRestarted {
        // Sockets are handed over on one host.
        builder = builder.hot_restart().envoy_host(EnvoyHost::Process);
    }
    let builder = builder.filter_config("lease_timeout", &format!("\"{}ms\"", PATIENCE_MS + 1_000));
    (1..=tenants).fold(builder, |builder, n| builder.tenant_in_tier(&format!("t{n}"), TIER))
}

/// Runs one drill on a stack of its own.
async fn one(drill: Drill, runtime: Runtime, scale: Scale) -> Result<Tally> {
    let mut builder = stack(drill, scale.tenants).runtime(runtime);
    let mut small = None;
    if drill == Drill::DiskFull {
        let disk = disk::Small::make()?;
        builder = builder.data(&disk.data()).orchestrator(&disk::Small::config());
        small = Some(disk);
    }
    let stack = builder.start().await?;
    let result = match &small {
        Some(disk) => disk::under_load(disk, &stack, scale).await,
        None => under_load(drill, &stack, scale).await,
    };
    let result = result.with_context(|| format!("{}\n{}", drill.title(), stack.log_tails()));
    // The stack first: its tenants have their files on the disk.
    drop(stack);
    drop(small);
    result
}

/// Runs one drill on a new stack of [`stack`], with all its tenants. After each blow all is read.
pub async fn under_load(drill: Drill, stack: &Stack, scale: Scale) -> Result<Tally> {
    let load = Mixed::start(stack).await?;
    for number in 0..scale.blows {
        load.each_sends(scale.each(), stack).await?;
        load.blow_begins();
        strike::strike(drill, stack, &load, number).await?;
        load.blow_has_ended();
        load.look().await?;
    }
    load.each_sends(scale.each(), stack).await?;
    load.finish().await
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// What runs SQ; `None`: Docker where it answers.
    pub runtime: Option<Runtime>,
    /// Each drill for a shorter time.
    pub quick: bool,
    /// Also kill this host's Docker daemon.
    pub dockerd: bool,
    /// Only drills whose titles have this in them.
    pub only: Option<String>,
}

/// Runs all drills and prints the table; fails when a goal is missed.
pub async fn run(options: Options) -> Result<()> {
    let runtime = Runtime::resolve(options.runtime)?;
    let scale = if options.quick { Scale::QUICK } else { Scale::FULL };
    println!("Mixed load on {} tenants, {} runtime", scale.tenants, runtime.name());
    println!("{}", Tally::HEADING);
    let (mut missed, mut left_out) = (Vec::new(), Vec::new());
    for drill in Drill::ALL {
        if options.only.as_ref().is_some_and(|only| !drill.title().contains(only.as_str())) {
            continue;
        }
        let tally = match drill {
            Drill::ClockJumps if !clock::is_shifted() => {
                // The table's row comes from a process whose clock can be shifted.
                if let Err(error) = clock::run_shifted(&std::env::current_exe()?, options.quick) {
                    missed.push(format!("{}: {error:#}", drill.title()));
                }
                continue;
            }
            Drill::DaemonLiveRestore | Drill::DaemonRestarted if !options.dockerd => {
                left_out.push(format!("{}: it disturbs all containers: --dockerd", drill.title()));
                continue;
            }
            Drill::DaemonLiveRestore | Drill::DaemonRestarted => {
                daemon::restarts(drill, scale).await?
            }
            _ => one(drill, runtime, scale).await?,
        };
        let broken = Allowance::of(drill).missed(&tally);
        println!(
            "{}{}",
            tally.row(drill.title()),
            if broken.is_empty() { "met" } else { "MISSED" }
        );
        if !broken.is_empty() {
            let errors = tally.first_errors.join("; ");
            missed.push(format!("{}: {}: {errors}", drill.title(), broken.join(", ")));
        }
    }
    println!("{}", Allowance::GOAL);
    if options.only.is_none() {
        let p50 = doze::wakes(runtime, doze::ROUNDS).await?;
        println!(
            "a dozing tenant's first byte, p50 of {}: {p50:.1?}; {}",
            doze::ROUNDS,
            doze::GOAL
        );
        if p50 > doze::LIMIT {
            missed.push(format!("a doze is left in {p50:?}"));
        }
    }
    for what in &left_out {
        println!("NOT RUN: {what}");
    }
    ensure!(missed.is_empty(), "missed:\n{}", missed.join("\n"));
    println!("met");
    Ok(())
}
