//! Deaths and failures of tenants.

use super::*;

#[test]
fn dead_tenants_cluster_points_nowhere_until_its_restart() {
    let mut bench = Bench::new();
    bench.wake("a");
    bench.dies("a");
    assert!(bench.wants(&Effect::PointNowhere(id("a"))));
    assert!(!bench.wants(&Effect::Publish(id("a"))));
    bench.started("a");
    assert!(bench.wants(&Effect::Publish(id("a"))));
    bench.wanted.clear();
    bench.dies("a");
    assert!(bench.wants(&Effect::Withdraw(id("a"))), "it crashes repeatedly");
}

#[test]
fn leased_tenant_that_dies_restarts_at_once() {
    let mut bench = Bench::new();
    bench.wake("a");
    bench.now += 61_000;
    bench.ask("a");
    bench.dies("a");
    assert_eq!(bench.starts(), ["a"]);
    bench.started("a");
    assert_eq!(bench.state("a"), "awake");
}

#[test]
fn unused_tenant_that_dies_stays_asleep() {
    let mut bench = Bench::new();
    bench.wake("a");
    bench.pass(65_000);
    bench.dies("a");
    assert_eq!(bench.state("a"), "asleep");
    assert_eq!(bench.starts(), [""; 0]);
}

#[test]
fn stop_after_a_failed_pause_is_not_orderly() {
    let mut bench = Bench::new();
    bench.wake("a");
    bench.pass(130_000);
    assert_eq!(bench.state("a"), "pausing");
    bench.on(Event::Paused { tenant: id("a"), result: failed_call() });
    assert!(bench.wants_stop("a", false));
    bench.on(Event::Stopped { tenant: id("a"), result: failed_call() });
    bench.wanted.clear();
    bench.pass(1_000);
    assert!(bench.wants_stop("a", false), "the stop is tried again");
}

#[test]
fn death_within_the_grace_restarts_for_requests_in_flight() {
    let mut bench = Bench::new();
    bench.wake("a");
    bench.pass(64_000);
    bench.dies("a");
    assert_eq!(bench.starts(), ["a"]);
}

#[test]
fn restart_is_dropped_when_its_leases_end() {
    let mut bench = Bench::with(Settings { max_starts: 1, ..settings() });
    bench.wake("a");
    bench.ask("slow");
    bench.dies("a");
    assert_eq!(bench.state("a"), "queued");
    bench.wanted.clear();
    bench.pass(65_000);
    assert_eq!(bench.state("a"), "asleep");
    assert!(bench.wants(&Effect::Withdraw(id("a"))));
}

#[test]
fn death_of_an_earlier_instance_is_ignored() {
    let mut bench = Bench::new();
    bench.wake("a");
    let instance = InstanceId("an earlier one".to_owned());
    bench.on(Event::Died(Died { tenant: id("a"), instance, exit: ExitKind::Gone }));
    assert_eq!(bench.state("a"), "awake");
}

/// Crashes a tenant repeatedly and compares its back-offs, in seconds.
#[track_caller]
fn check_backoffs(exit: ExitKind, backoffs_s: [u32; 5]) {
    let mut bench = Bench::new();
    bench.wake("a");
    bench.wake("b");
    bench.dies_of("a", exit);
    bench.started("a");
    for backoff_s in backoffs_s {
        bench.dies_of("a", exit);
        assert_eq!(bench.state("a"), "failing");
        let waiter = bench.ask("a");
        assert_eq!(bench.refusal(waiter), Some((LeaseRefusalKind::Failing, backoff_s)));
        bench.pass(Ms::from(backoff_s) * 1_000);
        bench.ask("a");
        bench.started("a");
        assert_eq!(bench.state("b"), "awake", "others are not affected");
    }
}

#[test]
fn backoff_doubles_with_each_crash() {
    check_backoffs(ExitKind::OutOfMemory, [1, 2, 4, 8, 8]);
}

#[test]
fn backoff_after_a_panic_does_not_grow() {
    check_backoffs(ExitKind::Crashed(101), [1; 5]);
}
