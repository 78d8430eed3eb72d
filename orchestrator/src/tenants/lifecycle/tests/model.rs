//! The model check: every order of events up to the given faults, breadth first, so that the first
//! broken promise comes with the shortest way to it.
//!
//! `MODEL=deep cargo test --release -p orchestrator model` searches two tenants and two Envoys with
//! every fault; without it there are the smaller searches that end within a minute unoptimised.
//!
//! Times are small whole numbers; worlds that differ only by when they are count as one, so the
//! search ends by itself.

use std::collections::{BTreeSet, HashSet, VecDeque};

use super::world::{Faults, Step, World};
use super::*;

/// A search that is larger than this was meant to be smaller.
const MOST: usize = 20_000_000;
/// Messages under way per Envoy.
const BACKLOG: usize = 3;

/// What a search saw.
#[derive(Debug, Default)]
struct Seen {
    worlds: usize,
    moved: BTreeSet<(&'static str, &'static str)>,
    granted: bool,
}

fn settings() -> Settings {
    Settings {
        lease_ms: 1,
        grace_ms: 1,
        doze_after_ms: 1,
        sleep_after_ms: 4,
        max_starts: 1,
        start_ms: 1,
        patience_ms: 2,
        head_start_ms: 1,
        ack_timeout_ms: 2,
        backoff_ms: 1,
        backoff_max_ms: 1,
        stable_ms: 2,
    }
}

fn search(world: World) -> Result<Seen, String> {
    let mut seen = Seen::default();
    let mut known = HashSet::from([world.fingerprint()]);
    // Of each world: which it came from, and by which step.
    let mut ways: Vec<(usize, Step)> = vec![(0, Step::Time(0))];
    let mut next = VecDeque::from([(0, world)]);
    while let Some((number, world)) = next.pop_front() {
        for step in world.steps(&[1]) {
            let mut after = world.clone();
            after.moved.clear();
            if let Err(broken) = after.take(step) {
                let mut way = vec![step];
                let mut at = number;
                while at != 0 {
                    way.push(ways[at].1);
                    at = ways[at].0;
                }
                way.reverse();
                return Err(format!("{broken} after {way:?}"));
            }
            seen.moved.extend(&after.moved);
            seen.granted |= after.granted > 0;
            if after.backlog() <= BACKLOG && known.insert(after.fingerprint()) {
                ways.push((number, step));
                next.push_back((ways.len() - 1, after));
            }
        }
        assert!(known.len() < MOST, "the search does not end");
    }
    seen.worlds = known.len();
    Ok(seen)
}

fn world(broken: Option<Rule>, tenants: usize, envoys: usize, faults: Faults) -> World {
    World::new(settings(), broken, vec![Limits::default(); tenants], envoys, faults)
}

/// Every fault alone.
fn each_fault(asks: u8) -> Vec<Faults> {
    let none = Faults { asks, ..Faults::NONE };
    vec![
        none,
        Faults { lost_answers: 1, ..none },
        Faults { refusals: 1, ..none },
        Faults { disconnects: 1, ..none },
        Faults { failures: 1, ..none },
        Faults { damages: 1, ..none },
        Faults { deaths: 1, ..none },
        Faults { restarts: 1, ..none },
        Faults { sleeps: 1, ..none },
        Faults { forced: 1, ..none },
        Faults { holds: 1, ..none },
        Faults { pressures: 1, ..none },
    ]
}

/// Searches for each of the faults; what all of them saw.
fn hold(tenants: usize, envoys: usize, prompt: bool, faults: &[Faults]) -> Seen {
    let mut all = Seen::default();
    let began = std::time::Instant::now();
    for faults in faults {
        let mut world = world(None, tenants, envoys, *faults);
        world.prompt = prompt;
        let seen = search(world).unwrap_or_else(|broken| panic!("{faults:?}: {broken}"));
        assert!(seen.granted, "{faults:?}: no lease is ever given");
        all.worlds += seen.worlds;
        all.moved.extend(seen.moved);
    }
    let took = began.elapsed();
    println!("{tenants} tenants, {envoys} Envoys: {} worlds in {took:.1?}", all.worlds);
    all
}

/// The arrows of the diagram in the header of the lifecycle.
fn diagram() -> BTreeSet<(&'static str, &'static str)> {
    let arrow = |line: &'static str| {
        let (from, rest) = line.strip_prefix("//! ")?.split_once(" --> ")?;
        Some((from, rest.split_once(": ")?.0))
    };
    include_str!("../../lifecycle.rs").lines().filter_map(arrow).collect()
}

#[test]
fn one_tenant_and_one_envoy_keep_every_promise_and_the_diagram_is_right() {
    let endless = Faults::ENDLESS;
    let mut seen = hold(1, 1, false, &each_fault(endless));
    let loops = Faults { asks: 2, deaths: 2, ..Faults::NONE };
    seen.moved.extend(hold(1, 1, true, &[loops]).moved);
    let found_dead = Faults { asks: 2, deaths: 1, restarts: 1, ..Faults::NONE };
    seen.moved.extend(hold(1, 1, true, &[found_dead]).moved);
    let queues = Faults { asks: 3, ..Faults::NONE };
    seen.moved.extend(hold(2, 1, true, &[queues]).moved);
    assert_eq!(seen.moved, diagram());
}

#[test]
fn one_tenant_and_two_envoys_keep_every_promise() {
    let mut faults = each_fault(2);
    // The two with most ways to go on.
    faults.retain(|f| f.deaths == 0 && f.forced == 0);
    hold(1, 2, true, &faults);
    let few = Faults { asks: 1, ..Faults::NONE };
    hold(1, 2, true, &[Faults { deaths: 1, ..few }, Faults { forced: 1, ..few }]);
}

#[test]
fn two_tenants_and_two_envoys_keep_every_promise() {
    let two = Faults { asks: 2, ..Faults::NONE };
    let mut faults = vec![two, Faults { restarts: 1, ..two }];
    if std::env::var_os("MODEL").is_some_and(|model| model == "deep") {
        faults = each_fault(2);
    }
    hold(2, 2, true, &faults);
}

#[test]
fn two_tenants_and_one_envoy_keep_every_promise() {
    let mut faults = each_fault(2);
    faults.retain(|f| f.deaths == 0 && f.forced == 0);
    hold(2, 1, true, &faults);
}

#[test]
fn without_any_one_of_the_rules_the_search_finds_what_breaks() {
    let death = Faults { deaths: 1, ..Faults::NONE };
    for (rule, faults, found) in [
        (Rule::Grace, Faults::NONE, "under way"),
        (Rule::RemovalAck, Faults::NONE, "still routes to it"),
        (Rule::LeaseAck, Faults::NONE, "a lease while Envoy"),
        (Rule::Nowhere, death, "a dead instance"),
    ] {
        let broken = search(world(Some(rule), 1, 1, faults)).expect_err("nothing broke");
        assert!(broken.contains(found), "{rule:?}: {broken}");
    }
}
