//! The model check: explores every order of actions up to the given faults, breadth first, so that
//! a broken promise is reported with a shortest way to it.
//!
//! `MODEL=deep cargo test --release -p orchestrator model` searches two tenants and two Envoys with
//! every fault. Without it, smaller searches run that end within a minute or two unoptimised.
//!
//! Durations are small integers. Worlds that differ only in their time count as one (see
//! `world/fingerprint.rs`), so each search ends.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::time::Instant;

use super::world::{Action, Faults, Sabotage, World};
use super::*;

/// Bound on the worlds of a search. A search that exceeds it does not end.
const WORLDS_MAX: usize = 20_000_000;

/// Bound on the messages under way per Envoy. Worlds beyond it are not explored.
const BACKLOG_MAX: usize = 3;

type StateChanges = BTreeSet<(&'static str, &'static str)>;

/// Result of one or several searches.
#[derive(Debug, Default)]
struct Explored {
    worlds: usize,
    state_changes: StateChanges,
    lease_was_granted: bool,
}

fn tiny_settings() -> Settings {
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

fn search(world: World) -> Result<Explored, String> {
    let mut explored = Explored::default();
    let mut fingerprints = HashSet::from([world.fingerprint()]);
    // For each world, its predecessor and the action that led to it.
    let mut ways: Vec<(usize, Action)> = vec![(0, Action::Time(0))];
    let mut queue = VecDeque::from([(0, world)]);
    while let Some((number, world)) = queue.pop_front() {
        for action in world.actions(&[1]) {
            let mut next = world.clone();
            next.state_changes.clear();
            if let Err(violation) = next.take(action) {
                let way = way_to(number, action, &ways);
                return Err(format!("{violation} after {way:?}"));
            }
            explored.state_changes.extend(&next.state_changes);
            explored.lease_was_granted |= next.granted > 0;
            if next.backlog() <= BACKLOG_MAX && fingerprints.insert(next.fingerprint()) {
                ways.push((number, action));
                queue.push_back((ways.len() - 1, next));
            }
        }
        assert!(fingerprints.len() < WORLDS_MAX, "the search does not end");
    }
    explored.worlds = fingerprints.len();
    Ok(explored)
}

/// The actions that lead to a world, and one more.
fn way_to(world: usize, last: Action, ways: &[(usize, Action)]) -> Vec<Action> {
    let mut way = vec![last];
    let mut at = world;
    while at != 0 {
        let (predecessor, action) = ways[at];
        way.push(action);
        at = predecessor;
    }
    way.reverse();
    way
}

fn world(sabotage: Option<Sabotage>, tenants: usize, envoys: usize, faults: Faults) -> World {
    World::new(tiny_settings(), sabotage, vec![Limits::default(); tenants], envoys, faults)
}

/// One search without faults, and one for each fault alone.
fn each_fault(requests: u8) -> Vec<Faults> {
    let none = Faults { requests, ..Faults::NONE };
    vec![
        none,
        Faults { lost_decisions: 1, ..none },
        Faults { rejections: 1, ..none },
        Faults { disconnects: 1, ..none },
        Faults { failures: 1, ..none },
        Faults { damages: 1, ..none },
        Faults { deaths: 1, ..none },
        Faults { restarts: 1, ..none },
        Faults { sleeps: 1, ..none },
        Faults { forced_sleeps: 1, ..none },
        Faults { restores: 1, ..none },
        Faults { memory_shortages: 1, ..none },
    ]
}

/// Searches with each of the faults. Panics if a promise is broken, or if no lease is ever granted.
fn check(tenants: usize, envoys: usize, acks_at_once: bool, faults: &[Faults]) -> StateChanges {
    let mut all = Explored::default();
    let began = Instant::now();
    for faults in faults {
        let mut world = world(None, tenants, envoys, *faults);
        world.acks_at_once = acks_at_once;
        let explored = search(world).unwrap_or_else(|violation| panic!("{faults:?}: {violation}"));
        assert!(explored.lease_was_granted, "{faults:?}: no lease is ever granted");
        all.worlds += explored.worlds;
        all.state_changes.extend(explored.state_changes);
    }
    let took = began.elapsed();
    println!("{tenants} tenants, {envoys} Envoys: {} worlds in {took:.1?}", all.worlds);
    all.state_changes
}

/// The arrows of the diagram in the header of `lifecycle.rs`.
fn diagram() -> StateChanges {
    let arrow = |line: &'static str| {
        let (from, rest) = line.strip_prefix("//! ")?.split_once(" --> ")?;
        let (to, _) = rest.split_once(": ")?;
        Some((from, to))
    };
    include_str!("../../lifecycle.rs").lines().filter_map(arrow).collect()
}

#[test]
fn model_takes_exactly_the_arrows_of_the_diagram() {
    let mut taken = check(1, 1, false, &each_fault(Faults::ENDLESS));
    let crash_loop = Faults { requests: 2, deaths: 2, ..Faults::NONE };
    taken.extend(check(1, 1, true, &[crash_loop]));
    let found_dead = Faults { requests: 2, deaths: 1, restarts: 1, ..Faults::NONE };
    taken.extend(check(1, 1, true, &[found_dead]));
    let queue = Faults { requests: 3, ..Faults::NONE };
    taken.extend(check(2, 1, true, &[queue]));
    assert_eq!(taken, diagram());
}

#[test]
fn model_of_a_crash_amid_each_call_keeps_leases() {
    let crash = Faults { requests: 2, restarts: 1, ..Faults::NONE };
    let faults = [
        Faults { deaths: 1, ..crash },
        Faults { forced_sleeps: 1, ..crash },
        Faults { failures: 1, ..crash },
        Faults { requests: 1, deaths: 1, restarts: 2, ..crash },
    ];
    check(1, 1, true, &faults);
}

#[test]
fn model_of_two_envoys_keeps_every_promise() {
    let mut faults = each_fault(2);
    // Deaths and forced sleeps have the most continuations: they are searched with one request.
    faults.retain(|f| f.deaths == 0 && f.forced_sleeps == 0);
    check(1, 2, true, &faults);
    let one = Faults { requests: 1, ..Faults::NONE };
    let death = Faults { deaths: 1, ..one };
    let forced_sleep = Faults { forced_sleeps: 1, ..one };
    check(1, 2, true, &[death, forced_sleep]);
}

#[test]
fn model_of_two_tenants_and_envoys_keeps_promises() {
    let two = Faults { requests: 2, ..Faults::NONE };
    let mut faults = vec![two, Faults { restarts: 1, ..two }];
    if std::env::var_os("MODEL").is_some_and(|model| model == "deep") {
        faults = each_fault(2);
    }
    check(2, 2, true, &faults);
}

#[test]
fn model_of_two_tenants_keeps_every_promise() {
    let mut faults = each_fault(2);
    faults.retain(|f| f.deaths == 0 && f.forced_sleeps == 0);
    check(2, 1, true, &faults);
}

#[test]
fn model_check_notices_each_broken_rule() {
    let death = Faults { deaths: 1, ..Faults::NONE };
    for (sabotage, faults, expected) in [
        (Sabotage::NoGrace, Faults::NONE, "in flight"),
        (Sabotage::EarlyRemovalAck, Faults::NONE, "still routes to it"),
        (Sabotage::EarlyPublicationAck, Faults::NONE, "a lease while Envoy"),
        (Sabotage::DeadAddressKept, death, "a dead instance"),
        (Sabotage::NoAwakeRecords, Faults { restarts: 1, ..death }, "despite its live leases"),
    ] {
        let violation =
            search(world(Some(sabotage), 1, 1, faults)).expect_err("no promise is broken");
        assert!(violation.contains(expected), "{sabotage:?}: {violation}");
    }
}
