//! Tokens that are owed.

use protocol::limits::DEBT_MAX_S;
#[cfg(target_family = "wasm")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;

/// A map to which every write loses.
struct Busy<'a>(&'a Local);

impl Shared for Busy<'_> {
    fn get(&self, key: &str) -> Option<(Vec<u8>, u32)> {
        self.0.get(key)
    }

    fn now_ns(&self) -> u64 {
        self.0.now_ns()
    }

    fn set(&mut self, _: &str, _: &[u8], _: Option<u32>) -> Result<(), Changed> {
        Err(Changed)
    }
}

fn take(vm: &mut Buckets, limits: &Limits, at_ns: u64, shared: &mut dyn Shared) -> Rate {
    vm.take(&alice(), limits, 1, START + at_ns, shared)
}

#[test]
fn owed_tokens_are_paid_before_anything_passes() {
    let mut vm = Buckets::new(8);
    let mut map = Local::default();
    let limits = limits(10, 50);
    assert!(take(&mut vm, &limits, 0, &mut map).allowed);
    let rate = vm.owe(&alice(), &limits, 99, START);
    assert_eq!(rate.header(), "\"burst\";r=0;t=10", "100 of 50 are used");
    let refused = take(&mut vm, &limits, 0, &mut map);
    assert_eq!((refused.allowed, refused.retry_after_s), (false, Some(6)), "51 are missing");
    assert_eq!(refused.header(), "\"burst\";r=0;t=10");
    assert!(!take(&mut vm, &limits, 5 * SECOND, &mut map).allowed);
    assert!(take(&mut vm, &limits, 6 * SECOND, &mut map).allowed, "Retry-After was true");
}

#[test]
fn debt_at_one_vm_refuses_at_all() {
    let limits = limits(10, 50);
    let mut world = World::new(limits.clone());
    assert!(world.take(0, 1, None) && world.take(1, 1, None));
    world.vms[0].owe(&alice(), &limits, 200, world.now_ns);
    world.vms[0].settle(world.now_ns, &mut world.map);
    world.now_ns += BATCH_NS;
    assert!((0..VMS).all(|vm| !world.take(vm, 1, None)));
}

#[test]
fn debt_ends_after_five_minutes_at_most() {
    let mut vm = Buckets::new(8);
    let mut map = Local::default();
    let limits = limits(10, 50);
    for _ in 0..3 {
        vm.owe(&alice(), &limits, u32::MAX, START);
        vm.settle(START, &mut map);
    }
    let refused = take(&mut vm, &limits, 0, &mut map);
    assert_eq!(refused.retry_after_s.map(u64::from), Some(DEBT_MAX_S + 1));
    assert!(take(&mut vm, &limits, (DEBT_MAX_S + 1) * SECOND, &mut map).allowed);
}

#[test]
fn lost_write_forgives_no_debt() {
    let mut vm = Buckets::new(8);
    let mut map = Local::default();
    let limits = limits(10, 50);
    vm.owe(&alice(), &limits, 100, START);
    vm.settle(START, &mut Busy(&map));
    assert!(!take(&mut vm, &limits, 0, &mut Busy(&map)).allowed, "it could not be charged");
    vm.settle(START, &mut map);
    let refused = take(&mut vm, &limits, 0, &mut map);
    assert_eq!((refused.allowed, refused.retry_after_s), (false, Some(6)));
}

#[test]
fn tenant_that_owes_is_never_evicted() {
    let mut vm = Buckets::new(1);
    let mut map = Local::default();
    let limits = limits(10, 50);
    vm.owe(&alice(), &limits, 100, START);
    for name in ["a", "b", "c"] {
        let tenant = TenantId::parse(name).unwrap();
        let later = START + 2 * IDLE_NS;
        vm.take(&tenant, &limits, 1, later, &mut map);
    }
    assert!(!take(&mut vm, &limits, 0, &mut map).allowed);
}

#[test]
fn changed_limits_keep_the_debt() {
    let mut vm = Buckets::new(8);
    let mut map = Local::default();
    let small = limits(10, 50);
    vm.owe(&alice(), &small, 250, START);
    let refused = take(&mut vm, &small, 0, &mut map);
    assert_eq!(refused.retry_after_s, Some(21));
    let large = limits(100, 50);
    let refused = take(&mut vm, &large, 0, &mut map);
    assert_eq!(refused.retry_after_s, Some(3), "201 tokens at the new rate");
    // Not yet charged when the limits change.
    vm.owe(&alice(), &large, 1_000, START);
    assert_eq!(take(&mut vm, &small, 0, &mut map).retry_after_s, Some(121));
}

#[test]
fn backward_clock_step_keeps_the_debt() {
    let mut vm = Buckets::new(8);
    let mut map = Local::default();
    let limits = limits(10, 50);
    vm.owe(&alice(), &limits, 200, START);
    assert_eq!(take(&mut vm, &limits, 0, &mut map).retry_after_s, Some(16));
    for step_s in [10, 3_600] {
        let mut other = Buckets::new(8);
        let now_ns = START - step_s * SECOND;
        let refused = other.take(&alice(), &limits, 1, now_ns, &mut map);
        assert_eq!(refused.retry_after_s, Some(16), "{step_s} s back");
    }
}

#[derive(Debug, Clone)]
enum Event {
    Step(Step),
    Owe { vm: usize, tokens: u32 },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => step().prop_map(Event::Step),
        1 => (0..VMS, 1..80_u32).prop_map(|(vm, tokens)| Event::Owe { vm, tokens }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn requests_and_bytes_together_respect_the_rate(
        rate in 1..200_u32,
        burst in 1..100_u32,
        events in prop::collection::vec(event(), 1..200),
    ) {
        let limits = limits(rate, burst);
        let mut world = World::new(limits.clone());
        // A VM that dies forgets what it has not settled.
        let mut unsettled = [0; VMS];
        let mut owed = 0;
        for event in &events {
            match event {
                Event::Owe { vm, tokens } => {
                    world.vms[*vm].owe(&alice(), &limits, *tokens, world.now_ns);
                    unsettled[*vm] += u64::from(*tokens);
                }
                Event::Step(step) => {
                    if let Step::Die(vm) = step {
                        unsettled[*vm] = 0;
                    }
                    if let Step::Settle(vm) | Step::Take { vm, .. } = step {
                        owed += std::mem::take(&mut unsettled[*vm]);
                    }
                    world.run(std::slice::from_ref(step));
                }
            }
        }
        owed += unsettled.iter().sum::<u64>();
        for vm in &mut world.vms {
            vm.settle(world.now_ns, &mut world.map);
        }
        // Batches expire, and whatever is left in the record counts.
        world.now_ns += BATCH_NS;
        for vm in &mut world.vms {
            vm.settle(world.now_ns, &mut world.map);
        }
        let used = world.total() + owed;
        let most = u64::from(burst) + grown(rate, world.now_ns - START);
        let debt_max = u64::from(rate) * DEBT_MAX_S;
        let rate = world.vms[0].take(&alice(), &limits, 1, world.now_ns, &mut world.map);
        prop_assert!(!rate.allowed || used < most || used - most >= debt_max, "{used} of {most}");
        if let Some(wait_s) = rate.retry_after_s {
            let later = world.now_ns + u64::from(wait_s) * SECOND;
            let retried = world.vms[1].take(&alice(), &limits, 1, later, &mut world.map);
            prop_assert!(retried.allowed, "Retry-After: {wait_s} was too short");
        }
    }
}
