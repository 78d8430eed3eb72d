//! The drills of `make drill`, in their short form. Left to `make drill` alone: a full disk and a
//! jump of the clock, which need root and a preloaded library, and the restarts of Docker's daemon.
//! On Docker those that break tenants; `make drill` has all of them there.

use std::sync::Arc;

use anyhow::{Result, ensure};
use integration::drill::{self, Allowance, Drill, Scale, Tally, under_load};
use integration::stack::{Builder, Stack};

use crate::world::{Case, On, case};

/// A case per drill, each on a stack of its own.
macro_rules! drills {
    ($($name:ident: $drill:ident,)*) => {
        pub(crate) fn cases() -> Vec<Case> {
            vec![$({
                fn four_tenants() -> Builder {
                    drill::stack(Drill::$drill, Scale::QUICK.tenants)
                }
                async fn $name(stack: Arc<Stack>) -> Result<()> {
                    no_read_fails_and_no_acknowledged_write_is_lost(Drill::$drill, &stack).await
                }
                let case = case!(On::Own(four_tenants), $name);
                if breaks_tenants(Drill::$drill) { case } else { case }
            },)*]
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

/// Or their keeper: what Docker does of it is not what processes do.
fn breaks_tenants(drill: Drill) -> bool {
    matches!(
        drill,
        Drill::SqKilled
            | Drill::SqOutOfMemory
            | Drill::AllSqsKilled
            | Drill::OrchestratorKilled
            | Drill::AllAsleep
            | Drill::AllAtOnce
    )
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
