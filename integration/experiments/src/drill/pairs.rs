//! Two parts fail at the same time, each pair in both orders.

use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;

use super::fault::kill_one_sq;
use super::{Drill, daemon};
use harness::Stack;

/// Time from the second failure to the first recovery: long enough that requests meet it, and shorter
/// than the time for which Envoy tries to reach a tenant.
const BOTH_FAIL_FOR: Duration = Duration::from_millis(700);

/// A part and its failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// One tenant's SQ is killed.
    Sq,
    /// The orchestrator is killed.
    Orchestrator,
    /// The relay is killed.
    Relay,
    /// Envoy stands still.
    Envoy,
    /// The Docker daemon is restarted.
    Daemon,
}

use Part::{Daemon, Envoy, Orchestrator, Relay, Sq};

/// The parts that fail, the first one first.
const PAIRS: [(Part, Part); 12] = [
    (Sq, Orchestrator),
    (Orchestrator, Sq),
    (Sq, Relay),
    (Envoy, Sq),
    (Orchestrator, Relay),
    (Envoy, Orchestrator),
    (Relay, Envoy),
    (Relay, Sq),
    (Sq, Envoy),
    (Relay, Orchestrator),
    (Orchestrator, Envoy),
    (Envoy, Relay),
];

/// The pairs with the Docker daemon. Its restart takes longer than the other failure.
const PAIRS_WITH_DAEMON: [(Part, Part); 4] =
    [(Sq, Daemon), (Orchestrator, Daemon), (Relay, Daemon), (Envoy, Daemon)];

/// Number of pairs of a drill.
pub(super) fn count(drill: Drill) -> usize {
    pairs(drill).len()
}

fn pairs(drill: Drill) -> &'static [(Part, Part)] {
    if drill == Drill::DaemonAndAnother { &PAIRS_WITH_DAEMON } else { &PAIRS }
}

/// Has the two parts of one pair fail, and both recover.
pub(super) async fn inject(drill: Drill, stack: &Stack, number: usize) -> Result<()> {
    let pairs = pairs(drill);
    let (first, second) = pairs[number % pairs.len()];
    let failed = fail_both(stack, number, first, second).await;
    failed.with_context(|| format!("{first:?} and {second:?}"))
}

async fn fail_both(stack: &Stack, number: usize, first: Part, second: Part) -> Result<()> {
    first.fail(stack, number).await?;
    second.fail(stack, number).await?;
    tokio::time::sleep(BOTH_FAIL_FOR).await;
    // Envoy first: an orchestrator is ready only once Envoy could have connected.
    let mut failed = [first, second];
    failed.sort_by_key(|part| *part != Envoy);
    for part in failed {
        part.recover(stack).await?;
    }
    Ok(())
}

impl Part {
    async fn fail(self, stack: &Stack, number: usize) -> Result<()> {
        match self {
            Sq => kill_one_sq(stack, number),
            Orchestrator => {
                stack.orchestrator.service().kill();
                Ok(())
            }
            Relay => {
                stack.relay.service().kill();
                Ok(())
            }
            Envoy => stack.envoy.signal(Signal::STOP),
            Daemon => daemon::restart().await,
        }
    }

    async fn recover(self, stack: &Stack) -> Result<()> {
        match self {
            Sq | Daemon => Ok(()),
            Orchestrator => stack.orchestrator.start().await,
            Relay => stack.relay.start().await,
            Envoy => stack.envoy.signal(Signal::CONT),
        }
    }
}
