//! The drills of `make drill` in their short form. Two kinds run in `make drill` only: a full disk,
//! which needs root, and restarts of the Docker daemon.

use std::sync::Arc;

use anyhow::{Result, ensure};
use experiments::drill::{
    self, ClientOutcomes, Drill, DrillSize, Expectation, clock, run_under_load,
};
use harness::host::tools;
use harness::{Stack, StackBuilder};

use crate::shared_stack::MAIN;
use crate::suite::{Case, On, case};

/// Defines a case per drill, each on its own stack.
macro_rules! drills {
    ($($name:ident: $drill:ident,)*) => {
        pub(crate) fn cases() -> Vec<Case> {
            vec![
                case!(MAIN, nothing_is_lost_when_the_clock_jumps),
                $({
                    fn stack() -> StackBuilder {
                        drill::stack(Drill::$drill, DrillSize::QUICK.tenants)
                    }
                    async fn $name(stack: Arc<Stack>) -> Result<()> {
                        run(Drill::$drill, &stack).await
                    }
                    case!(On::Own(stack), $name)
                },)*
            ]
        }
    };
}

drills! {
    nothing_is_lost_when_nothing_breaks: NoFault,
    nothing_is_lost_when_one_sq_is_killed: SqKilled,
    nothing_is_lost_when_sq_exhausts_its_memory: SqOutOfMemory,
    nothing_is_lost_when_all_sqs_are_killed: AllSqsKilled,
    nothing_is_lost_when_the_orchestrator_is_killed: OrchestratorKilled,
    nothing_is_lost_when_the_orchestrator_is_upgraded: OrchestratorUpgraded,
    nothing_is_lost_when_a_second_orchestrator_starts: SecondOrchestrator,
    nothing_is_lost_when_envoy_hot_restarts: EnvoyHotRestarted,
    nothing_is_lost_when_envoy_is_killed: EnvoyKilled,
    nothing_is_lost_when_the_relay_is_killed: RelayGone,
    nothing_is_lost_when_two_parts_fail_at_once: TwoAtOnce,
    nothing_is_lost_when_all_tenants_sleep: AllAsleep,
    nothing_is_lost_when_all_tenants_wake: AllAtOnce,
}

async fn nothing_is_lost_when_the_clock_jumps(_: Arc<Stack>) -> Result<()> {
    let program = tools::workspace_binary("integration")?;
    tokio::task::spawn_blocking(move || clock::run_with_shifted_clock(&program, true)).await?
}

/// Runs a drill under load. No read may fail and no acknowledged write may be lost, beyond what
/// the drill itself allows.
async fn run(drill: Drill, stack: &Stack) -> Result<()> {
    let outcomes = run_under_load(drill, stack, DrillSize::QUICK).await?;
    println!("{}\n{}", ClientOutcomes::heading(), outcomes.row(drill.title()));
    let missed = Expectation::new(drill).missed_goals(&outcomes);
    ensure!(missed.is_empty(), "{}\n{outcomes:?}", missed.join(", "));
    Ok(())
}
