//! The simulation: hours of virtual traffic with faults, by seed. `SEED=7 cargo test -p orchestrator
//! sim` replays one that failed.

use super::world::{Faults, Step, World};
use super::*;

/// Seeds of an ordinary run.
const SEEDS: u64 = 2_000;
/// Steps per seed: about an hour of virtual time.
const STEPS: usize = 400;

/// Marsaglia's xorshift64*: small, and good enough to choose steps.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap() % n
    }
}

fn settings() -> Settings {
    Settings {
        lease_ms: 3_000,
        grace_ms: 3_500,
        doze_after_ms: 12_000,
        sleep_after_ms: 60_000,
        max_starts: 2,
        start_ms: 400,
        patience_ms: 9_000,
        head_start_ms: 2_000,
        ack_timeout_ms: 10_000,
        backoff_ms: 1_000,
        backoff_max_ms: 30_000,
        stable_ms: 20_000,
    }
}

/// Time passes to the next deadline if that comes sooner: the driver never misses one by much.
fn pass(world: &mut World, ms: Ms) -> Result<(), String> {
    let end = world.now + ms;
    while let Some(at) = world.machine.next_deadline().filter(|at| *at <= end) {
        world.take(Step::Time(at.saturating_sub(world.now)))?;
    }
    world.take(Step::Time(end - world.now))
}

fn run(seed: u64, broken: Option<Rule>) -> Result<u64, String> {
    let mut random = Random::new(seed);
    let mut some = |most: usize| u8::try_from(random.below(most + 1)).unwrap();
    let faults = Faults {
        asks: Faults::ENDLESS,
        lost_answers: some(20),
        refusals: some(4),
        disconnects: some(10),
        failures: some(10),
        damages: some(1),
        deaths: some(20),
        restarts: some(4),
        sleeps: some(10),
        forced: some(2),
        holds: some(2),
        pressures: some(10),
    };
    let limits = (0..4).map(|t| Limits { priority: t / 2, wakes_per_hour: 0, ..Limits::default() });
    let mut world = World::new(settings(), broken, limits.collect(), 2, faults);
    for _ in 0..STEPS {
        // What is under way gets done more often than something new goes wrong.
        let choices = if random.below(3) == 0 { world.steps(&[]) } else { world.under_way() };
        if choices.is_empty() || random.below(4) == 0 {
            let ms = [1, 20, 300, 2_000, 8_000, 30_000][random.below(6)];
            pass(&mut world, ms)?;
        } else {
            world.take(choices[random.below(choices.len())])?;
        }
    }
    Ok(world.granted)
}

#[test]
fn no_promise_is_broken_in_hours_of_traffic_with_faults() {
    let seeds = match std::env::var("SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("SEED is a number");
            seed..seed + 1
        }
        Err(_) => 1..SEEDS + 1,
    };
    let mut granted = 0;
    for seed in seeds {
        match run(seed, None) {
            Ok(leases) => granted += leases,
            Err(broken) => panic!("{broken}; replay: SEED={seed} cargo test -p orchestrator sim"),
        }
    }
    assert!(granted > 0, "the simulation gives no lease");
}

#[test]
fn without_any_one_of_the_rules_some_seed_shows_what_breaks() {
    for rule in [Rule::Grace, Rule::RemovalAck, Rule::LeaseAck, Rule::Nowhere] {
        assert!((1..200).any(|seed| run(seed, Some(rule)).is_err()), "{rule:?}: nothing broke");
    }
}
