use proptest::prelude::*;

use super::*;
use crate::shared::{Changed, Local};
#[cfg(target_family = "wasm")]
use wasm_bindgen_test::wasm_bindgen_test as test;

mod debt;

use protocol::time::SECOND_NS as SECOND;
const START: u64 = 1_800_000_000 * SECOND;

fn alice() -> TenantId {
    TenantId::parse("alice").unwrap()
}

fn limits(rate: u32, burst: u32) -> Limits {
    Limits { requests_per_s: rate, burst, ..Limits::default() }
}

/// Counts a VM's hostcalls, and lets a rival VM write between a read and a write.
struct Host<'a> {
    map: &'a mut Local,
    calls: std::cell::Cell<u32>,
    race: Option<(&'a mut Buckets, Limits, u64)>,
    rival_passed: bool,
}

impl<'a> Host<'a> {
    fn new(map: &'a mut Local) -> Self {
        Self { map, calls: 0.into(), race: None, rival_passed: false }
    }
}

impl Shared for Host<'_> {
    fn get(&self, key: &str) -> Option<(Vec<u8>, u32)> {
        self.calls.set(self.calls.get() + 1);
        self.map.get(key)
    }

    fn now_ns(&self) -> u64 {
        self.calls.set(self.calls.get() + 1);
        self.map.now_ns
    }

    fn set(&mut self, key: &str, value: &[u8], version: Option<u32>) -> Result<(), Changed> {
        self.calls.set(self.calls.get() + 1);
        if let Some((rival, limits, now_ns)) = self.race.take() {
            self.rival_passed = rival.take(&alice(), &limits, 1, now_ns, self.map).allowed;
        }
        self.map.set(key, value, version)
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// A request at a VM, with a rival that writes in between.
    Take {
        vm: usize,
        cost: u32,
        rival: Option<usize>,
    },
    Settle(usize),
    Die(usize),
    Wait(u64),
}

const VMS: usize = 4;

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..VMS, 1..3_u32, prop::option::weighted(0.3, 0..VMS))
            .prop_map(|(vm, cost, rival)| Step::Take { vm, cost, rival }),
        1 => (0..VMS).prop_map(Step::Settle),
        1 => (0..VMS).prop_map(Step::Die),
        3 => (0..2 * BATCH_NS).prop_map(Step::Wait),
    ]
}

/// A gateway of `VMS` VMs, each with its own clock and limits.
struct World {
    vms: Vec<Buckets>,
    limits: Vec<Limits>,
    skew_ns: Vec<u64>,
    /// Age of each VM's time.
    lag_ns: Vec<u64>,
    map: Local,
    now_ns: u64,
    /// Time and number of tokens of each pass, by the true clock.
    passed: Vec<(u64, u32)>,
}

impl World {
    fn new(limits: Limits) -> Self {
        Self {
            vms: (0..VMS).map(|_| Buckets::new(8)).collect(),
            limits: vec![limits; VMS],
            skew_ns: vec![0; VMS],
            lag_ns: vec![0; VMS],
            map: Local::default(),
            now_ns: START,
            passed: Vec::new(),
        }
    }

    fn clock(&self, vm: usize) -> u64 {
        self.now_ns + self.skew_ns[vm] - self.lag_ns[vm]
    }

    /// Envoy stands still for a time and goes on. The first events of each VM have the time of its
    /// last tick; the host tells the present one to who asks.
    fn stand_still(&mut self, ns: u64) {
        self.now_ns += ns;
        self.map.now_ns = self.now_ns;
        self.lag_ns.fill(ns);
    }

    /// A VM's timer runs: its events have the present time again.
    fn tick(&mut self, vm: usize) {
        self.lag_ns[vm] = 0;
        let at = self.clock(vm);
        self.vms[vm].settle(at, &mut self.map);
    }

    /// Sends a request to a VM and returns whether it passes.
    fn take(&mut self, vm: usize, cost: u32, rival: Option<usize>) -> bool {
        let rival = rival.filter(|r| *r != vm);
        let at = self.clock(vm);
        let rival_at = rival.map(|r| self.clock(r));
        let mut taker = std::mem::replace(&mut self.vms[vm], Buckets::new(8));
        let mut host = Host::new(&mut self.map);
        if let (Some(r), Some(at)) = (rival, rival_at) {
            host.race = Some((&mut self.vms[r], self.limits[r].clone(), at));
        }
        let cost = cost.min(self.limits[vm].burst.max(1));
        let rate = taker.take(&alice(), &self.limits[vm], cost, at, &mut host);
        let rival_passed = host.rival_passed;
        self.vms[vm] = taker;
        self.passed.extend(rate.allowed.then_some((self.now_ns, cost)));
        self.passed.extend(rival_passed.then_some((self.now_ns, 1)));
        rate.allowed
    }

    fn run(&mut self, steps: &[Step]) {
        for step in steps {
            match step {
                Step::Take { vm, cost, rival } => drop(self.take(*vm, *cost, *rival)),
                Step::Settle(vm) => {
                    let at = self.clock(*vm);
                    self.vms[*vm].settle(at, &mut self.map);
                }
                Step::Die(vm) => self.vms[*vm] = Buckets::new(8),
                Step::Wait(ns) => self.now_ns += ns,
            }
        }
    }

    fn total(&self) -> u64 {
        self.passed.iter().map(|(_, cost)| u64::from(*cost)).sum()
    }
}

fn grown(rate: u32, ns: u64) -> u64 {
    u64::try_from(u128::from(rate) * u128::from(ns) / u128::from(SECOND)).unwrap()
}

/// Cases per property; fewer in node, where each takes longer.
const CASES: u32 = if cfg!(target_family = "wasm") { 40 } else { 400 };

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn all_vms_together_respect_the_bucket(
        rate in 1..200_u32,
        burst in 1..100_u32,
        steps in prop::collection::vec(step(), 1..300),
    ) {
        let mut world = World::new(limits(rate, burst));
        world.run(&steps);
        let elapsed = world.now_ns - START;
        prop_assert!(world.total() <= u64::from(burst) + grown(rate, elapsed));
        // In any window, tokens drawn up to REFUND_NS before it may be spent too.
        for (first, (from, _)) in world.passed.iter().enumerate() {
            let mut sum = 0;
            for (at, cost) in &world.passed[first..] {
                sum += u64::from(*cost);
                let allowed = u64::from(burst) + grown(rate, at - from + REFUND_NS) + 1;
                prop_assert!(sum <= allowed, "{sum} > {allowed} in {} ns", at - from);
            }
        }
    }

    #[test]
    fn clock_skew_between_vms_adds_only_the_skew(
        rate in 1..200_u32,
        burst in 1..100_u32,
        skew_ns in prop::collection::vec(0..SECOND, VMS),
        steps in prop::collection::vec(step(), 1..300),
    ) {
        let mut world = World::new(limits(rate, burst));
        let spread = skew_ns.iter().max().unwrap() - skew_ns.iter().min().unwrap();
        world.skew_ns = skew_ns;
        world.run(&steps);
        let elapsed = world.now_ns - START + spread;
        prop_assert!(world.total() <= u64::from(burst) + grown(rate, elapsed));
    }

    #[test]
    fn standstill_of_envoy_grants_and_costs_nothing(
        rate in 1..200_u32,
        burst in 1..100_u32,
        parts in prop::collection::vec(
            (prop::collection::vec(step(), 1..40), 0..40 * SECOND, 0..VMS, 0..VMS), 1..6),
    ) {
        let mut world = World::new(limits(rate, burst));
        for (steps, still_ns, ticks_first, late) in &parts {
            world.run(steps);
            world.stand_still(*still_ns);
            let before = world.total();
            // One VM ticks and serves; another still has the time of before.
            world.tick(*ticks_first);
            while world.take(*ticks_first, 1, None) {}
            while world.take(*late, 1, None) {}
            let passed = world.total() - before;
            // Tokens in hand from before: at most an eighth of the burst in each VM.
            let in_hand = u64::from((burst / 8).max(1)) * VMS as u64;
            prop_assert!(passed <= u64::from(burst) + in_hand, "{passed} of {burst} at once");
            let full_ns = Pace::of(&limits(rate, burst)).depth_ns();
            if *still_ns >= full_ns {
                prop_assert!(passed + in_hand >= u64::from(burst), "{passed} of {burst}");
            }
            (0..VMS).for_each(|vm| world.tick(vm));
        }
        let elapsed = world.now_ns - START;
        prop_assert!(world.total() <= u64::from(burst) + grown(rate, elapsed));
    }

    #[test]
    fn clock_step_grants_only_its_forward_part(
        rate in 1..200_u32,
        burst in 1..100_u32,
        parts in prop::collection::vec(
            (prop::collection::vec(step(), 1..60), -3600..3600_i64), 1..6),
    ) {
        let mut world = World::new(limits(rate, burst));
        let mut forward = 0;
        for (steps, jump_s) in &parts {
            let before = world.now_ns;
            world.run(steps);
            forward += world.now_ns - before;
            let jump_ns = jump_s.unsigned_abs() * SECOND;
            if *jump_s > 0 {
                world.now_ns += jump_ns;
                forward += jump_ns;
            } else {
                world.now_ns -= jump_ns;
            }
        }
        prop_assert!(world.total() <= u64::from(burst) + grown(rate, forward));
    }

    #[test]
    fn disagreement_on_limits_gains_nothing(
        (rate_a, burst_a, rate_b, burst_b) in (1..200_u32, 1..100_u32, 1..200_u32, 1..100_u32),
        steps in prop::collection::vec(step(), 1..300),
    ) {
        let mut world = World::new(limits(rate_a, burst_a));
        for vm in 0..VMS / 2 {
            world.limits[vm] = limits(rate_b, burst_b);
        }
        world.run(&steps);
        let elapsed = world.now_ns - START;
        let allowed = u64::from(burst_a.max(burst_b)) + grown(rate_a + rate_b, elapsed) + 1;
        prop_assert!(world.total() <= allowed);
    }
}

#[test]
fn bursts_of_320_pass_exactly_50_each() {
    let mut world = World::new(limits(10, 50));
    for burst in 1..=10 {
        for request in 0..320 {
            world.take(request % VMS, 1, None);
        }
        assert_eq!(world.total(), 50 * burst);
        world.now_ns += 5 * SECOND;
    }
}

#[test]
fn lagging_vm_refuses_no_request_of_a_full_bucket() {
    let mut world = World::new(limits(10, 10));
    assert!(world.take(0, 1, None) && world.take(1, 1, None));
    world.stand_still(SECOND);
    world.tick(0);
    // The record of VM 0 is a second ahead of the time of VM 1.
    assert!(world.take(0, 1, None));
    let passed = (0..9).filter(|_| world.take(1, 1, None)).count();
    assert_eq!(passed, 9);
}

#[test]
fn other_vms_hold_at_most_an_eighth_each() {
    let rate = 1;
    let burst = 80;
    let mut world = World::new(limits(rate, burst));
    // Three VMs get busy together, then fall silent with tokens in hand.
    for request in 0..24 {
        world.take(1 + request % 3, 1, None);
    }
    let before = world.total();
    for _ in 0..200 {
        world.take(0, 1, None);
    }
    let alone = world.total() - before;
    let parked = u64::from(burst) - world.total();
    assert!(parked <= 3 * u64::from(burst / 8), "{parked} parked");
    assert!(parked > 0 && alone > 0, "the case must occur");
    world.now_ns += BATCH_NS;
    for vm in 1..VMS {
        let at = world.clock(vm);
        world.vms[vm].settle(at, &mut world.map);
    }
    for _ in 0..200 {
        world.take(0, 1, None);
    }
    assert_eq!(world.total(), u64::from(burst), "the one VM got the whole burst");
}

#[test]
fn busy_vm_makes_one_hostcall_in_four_requests() {
    let mut vm = Buckets::new(8);
    let mut map = Local::default();
    let mut host = Host::new(&mut map);
    let limits = limits(10_000, 500);
    for request in 0..10_000 {
        let now_ns = START + request * SECOND / 2_000;
        assert!(vm.take(&alice(), &limits, 1, now_ns, &mut host).allowed);
    }
    assert!(host.calls.get() < 2_500, "{} hostcalls", host.calls.get());
}

#[test]
fn flood_on_an_empty_bucket_costs_few_hostcalls() {
    let mut vm = Buckets::new(8);
    let mut map = Local::default();
    let mut host = Host::new(&mut map);
    for request in 0..100_000 {
        vm.take(&alice(), &limits(1, 1), 1, START + request * 10_000, &mut host);
    }
    assert!(host.calls.get() < 60, "{} hostcalls in a second", host.calls.get());
}

#[test]
fn changed_limits_apply_to_the_next_request() {
    let mut vm = Buckets::new(8);
    let mut map = Local::default();
    let small = limits(1, 2);
    let large = limits(1_000, 1_000);
    let mut take = |limits: &Limits, at: u64| vm.take(&alice(), limits, 1, START + at, &mut map);
    assert!(take(&small, 0).allowed && take(&small, 0).allowed);
    assert!(!take(&small, 0).allowed, "two is all");
    assert!(take(&large, 1).allowed, "a raised tier helps at once: it owes 2 of 1000");
    while take(&large, 2).allowed {}
    let refused = take(&small, SECOND / 10);
    assert!(!refused.allowed, "a lowered one applies at once");
    assert_eq!((refused.limit, refused.retry_after_s), (2, Some(1)));
}

#[test]
fn headers_follow_the_draft() {
    let mut vm = Buckets::new(8);
    let mut map = Local::default();
    let limits = limits(10, 50);
    let first = vm.take(&alice(), &limits, 1, START, &mut map);
    assert_eq!(first.header(), "\"burst\";r=49;t=1");
    assert_eq!(&*first.policy, "\"burst\";q=50;w=5");
    let mut last = first;
    for _ in 0..50 {
        last = vm.take(&alice(), &limits, 1, START, &mut map);
    }
    assert_eq!((last.allowed, last.retry_after_s), (false, Some(1)));
    assert_eq!(last.header(), "\"burst\";r=0;t=5");
}

#[test]
fn cost_is_capped_at_the_whole_bucket() {
    let mut vm = Buckets::new(8);
    let mut map = Local::default();
    let limits = limits(1, 5);
    assert!(vm.take(&alice(), &limits, 99, START, &mut map).allowed);
    assert!(!vm.take(&alice(), &limits, 1, START, &mut map).allowed);
}

#[test]
fn more_tenants_than_fit_are_still_limited() {
    let mut vm = Buckets::new(2);
    let mut map = Local::default();
    let limits = limits(1, 3);
    for name in ["a", "b", "c", "d"] {
        let tenant = TenantId::parse(name).unwrap();
        let passed = (0..10).filter(|_| vm.take(&tenant, &limits, 1, START, &mut map).allowed);
        assert_eq!(passed.count(), 3, "{name}");
    }
    assert_eq!(vm.tenants.len(), 2);
}

#[test]
fn record_of_another_layout_is_a_full_bucket() {
    let mut vm = Buckets::new(8);
    let mut map = Local::default();
    map.set("bucket/alice", b"\x07rubbish", None).unwrap();
    assert!(vm.take(&alice(), &limits(1, 1), 1, START, &mut map).allowed);
    assert!(!vm.take(&alice(), &limits(1, 1), 1, START, &mut map).allowed);
}

#[test]
fn tokens_are_refunded_once_despite_a_clock_jump() {
    let rate = 1;
    let burst = 80;
    let mut world = World::new(limits(rate, burst));
    let unspent = |world: &World| world.vms[0].tenants.get(&alice()).map_or(0, |b| b.tokens);
    while unspent(&world) < 5 {
        world.take(0, 1, None);
    }
    // Another VM spends the rest in the future.
    world.now_ns += 3_600 * SECOND;
    while world.take(1, 1, None) {}
    world.now_ns -= 3_600 * SECOND - BATCH_NS;
    let parked = unspent(&world);
    let before = world.total();
    assert!(!world.take(0, burst, None), "nothing else is left");
    world.now_ns += DENIAL_NS;
    let at = world.clock(0);
    world.vms[0].settle(at, &mut world.map);
    while world.take(2, 1, None) {}
    assert_eq!(world.total() - before, u64::from(parked), "the refund, once");
}

#[test]
fn backward_clock_step_keeps_the_fill_level() {
    let rate = 10;
    let burst = 50;
    let mut world = World::new(limits(rate, burst));
    for request in 0..20 {
        assert!(world.take(request % VMS, 1, None));
    }
    world.now_ns -= 3_600 * SECOND;
    for request in 0..burst - 20 - u32::try_from(VMS).unwrap() * (burst / 8) {
        assert!(world.take(usize::try_from(request).unwrap() % VMS, 1, None), "request {request}");
    }
    while world.take(0, 1, None) {}
    assert!(world.total() <= u64::from(burst));
}
