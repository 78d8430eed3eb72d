//! The drills of `make drill`, in their short form. Left to `make drill` alone: a full disk, which
//! needs root, and the restarts of Docker's daemon.

use std::sync::Arc;

use anyhow::{Result, ensure};
use experiments::drill::{self, Allowance, Drill, Scale, Tally, clock, under_load};
use harness::host::tools;
use harness::{Stack, StackBuilder};

use crate::refusals::MAIN;
use crate::world::{Case, On, case};

/// A case per drill, each on a stack of its own.
macro_rules! drills {
    ($($name:ident: $drill:ident,)*) => {
        pub(crate) fn cases() -> Vec<Case> {
            let clock = case!(MAIN, drill_nothing_is_lost_when_the_clock_jumps);
            let mut cases = vec![clock];
            cases.extend([$({
                fn four_tenants() -> StackBuilder {
                    drill::stack(Drill::$drill, Scale::QUICK.tenants)
                }
                async fn $name(stack: Arc<Stack>) -> Result<()> {
                    no_read_fails_and_no_acknowledged_write_is_lost(Drill::$drill, &stack).await
                }
                case!(On::Own(four_tenants), $name)
            },)*]);
            cases
        }
    };
}

drills! {
    drill_nothing_is_lost_when_nothing_breaks: Nothing,
    drill_nothing_is_lost_when_one_sq_is_killed: SqKilled,
    drill_nothing_is_lost_when_one_sq_runs_out_of_memory: SqOutOfMemory,
    drill_nothing_is_lost_when_all_sqs_are_killed_at_once: AllSqsKilled,
    drill_nothing_is_lost_when_the_orchestrator_is_killed: OrchestratorKilled,
    drill_nothing_is_lost_when_the_orchestrator_is_upgraded: OrchestratorUpgraded,
    drill_nothing_is_lost_when_a_second_orchestrator_is_started: SecondOrchestrator,
    drill_nothing_is_lost_when_envoy_hands_over: EnvoyHotRestarted,
    drill_nothing_is_lost_when_envoy_is_killed: EnvoyKilled,
    drill_nothing_is_lost_when_the_relay_is_gone: RelayGone,
    drill_nothing_is_lost_when_all_are_put_to_sleep: AllAsleep,
    drill_nothing_is_lost_when_all_wake_at_once: AllAtOnce,
}

async fn drill_nothing_is_lost_when_the_clock_jumps(_: Arc<Stack>) -> Result<()> {
    let program = tools::workspace_binary("integration")?;
    tokio::task::spawn_blocking(move || clock::run_shifted(&program, true)).await?
}

async fn no_read_fails_and_no_acknowledged_write_is_lost(
    drill: Drill,
    stack: &Stack,
) -> Result<()> {
    let tally = under_load(drill, stack, Scale::QUICK).await?;
    println!("{}\n{}", Tally::HEADING, tally.row(drill.title()));
    let missed = Allowance::of(drill).missed(&tally);
    ensure!(missed.is_empty(), "{}\n{tally:?}", missed.join(", "));
    Ok(())
}
