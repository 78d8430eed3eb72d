//! Sleep on the operator's request, and the restore lock.

use super::*;

#[test]
fn gentle_sleep_waits_for_leases_and_forced_does_not() {
    let mut bench = Bench::new();
    bench.wake("a");
    bench.wake("b");
    bench.put_to_sleep("a", Drain::Gently);
    bench.put_to_sleep("b", Drain::Forced);
    assert_eq!((bench.state("a"), bench.state("b")), ("awake", "stopping"));
    bench.pass(65_000);
    assert_eq!(bench.state("a"), "stopping");
    assert!(bench.wants_stop("a", true));
    assert!(bench.wants_stop("b", false));
}

#[test]
fn tenant_in_use_restarts_after_a_forced_sleep() {
    let mut bench = Bench::new();
    bench.wake("a");
    bench.put_to_sleep("a", Drain::Forced);
    assert!(bench.wants(&Effect::PointNowhere(id("a"))));
    assert!(!bench.wants(&Effect::Withdraw(id("a"))));
    bench.stopped("a");
    assert_eq!(bench.starts(), ["a"]);
    bench.started("a");
    bench.pass(65_000);
    bench.put_to_sleep("a", Drain::Forced);
    bench.stopped("a");
    assert_eq!(bench.state("a"), "asleep", "not in use");
    assert_eq!(bench.starts(), [""; 0]);
}

#[test]
fn requests_wait_out_a_sleep_with_short_grace() {
    let mut bench = Bench::with(Settings { lease_ms: 500, grace_ms: 1_000, ..settings() });
    bench.wake("a");
    bench.put_to_sleep("a", Drain::Gently);
    bench.pass(600);
    let waiter = bench.ask("a");
    bench.pass(900);
    assert_eq!((bench.state("a"), bench.decision(waiter)), ("stopping", None));
    bench.stopped("a");
    bench.started("a");
    assert_eq!(bench.granted(waiter), WakeKind::Start);
}

#[test]
fn requests_wait_while_a_restore_locks_the_tenant() {
    let mut bench = Bench::new();
    bench.wake("a");
    bench.on(Event::RestoreLocked(id("a")));
    bench.pass(65_000);
    bench.stopped("a");
    let waiter = bench.ask("a");
    assert_eq!((bench.state("a"), bench.decision(waiter)), ("asleep", None));
    bench.on(Event::RestoreUnlocked(id("a")));
    bench.started("a");
    assert_eq!(bench.granted(waiter), WakeKind::Start);
}

#[test]
fn restore_lock_adds_an_unknown_tenant() {
    let mut bench = Bench::new();
    bench.on(Event::RestoreLocked(id("new")));
    assert_eq!(bench.state("new"), "asleep");
}
