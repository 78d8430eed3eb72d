//! The simulation: hours of virtual traffic with faults, chosen at random from a seed.
//! `SEED=7 cargo test -p orchestrator sim` replays one run.

use super::world::{Action, Faults, Sabotage, World};
use super::*;

/// Seeds of an ordinary run.
const SEEDS: u64 = 2_000;

/// Actions per seed: about an hour of virtual time.
const ACTIONS: usize = 400;

/// Marsaglia's xorshift64*: small, and good enough to choose actions.
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

fn fast_settings() -> Settings {
    Settings {
        lease_ms: 3_000,
        grace_ms: 3_500,
        doze_after_ms: 12_000,
        sleep_after_ms: 60_000,
        backoff_max_ms: 30_000,
        stable_ms: 20_000,
        ..settings()
    }
}

/// Lets time pass, but no further than to the next deadline at once, because the driver never
/// misses one by much.
fn pass(world: &mut World, ms: Ms) -> Result<(), String> {
    let end = world.now + ms;
    while let Some(at) = world.machine.next_deadline().filter(|at| *at <= end) {
        world.take(Action::Time(at.saturating_sub(world.now)))?;
    }
    world.take(Action::Time(end - world.now))
}

/// Runs one seed. Returns the number of leases granted.
fn run(seed: u64, sabotage: Option<Sabotage>) -> Result<u64, String> {
    let mut random = Random::new(seed);
    let mut up_to = |max: usize| u8::try_from(random.below(max + 1)).unwrap();
    let faults = Faults {
        requests: Faults::ENDLESS,
        lost_decisions: up_to(20),
        rejections: up_to(4),
        disconnects: up_to(10),
        failures: up_to(10),
        damages: up_to(1),
        deaths: up_to(20),
        restarts: up_to(4),
        sleeps: up_to(10),
        forced_sleeps: up_to(2),
        restores: up_to(2),
        memory_shortages: up_to(10),
    };
    let limits = (0..4).map(|t| Limits {
        priority: t / 2,
        wakes_per_hour: CountLimit::Unlimited,
        ..Limits::default()
    });
    let mut world = World::new(fast_settings(), sabotage, limits.collect(), 2, faults);
    for _ in 0..ACTIONS {
        // Completions are more frequent than new faults.
        let choices = if random.below(3) == 0 { world.actions(&[]) } else { world.completions() };
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
fn simulated_hours_with_faults_keep_every_promise() {
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
            Err(error) => panic!("{error}; replay: SEED={seed} cargo test -p orchestrator sim"),
        }
    }
    assert!(granted > 0, "the simulation grants no lease");
}

#[test]
fn simulation_notices_each_broken_rule() {
    for sabotage in [
        Sabotage::NoGrace,
        Sabotage::EarlyRemovalAck,
        Sabotage::EarlyPublicationAck,
        Sabotage::DeadAddressKept,
        Sabotage::NoAwakeRecords,
    ] {
        let is_noticed = (1..=SEEDS).any(|seed| run(seed, Some(sabotage)).is_err());
        assert!(is_noticed, "{sabotage:?}: no promise is broken");
    }
}
