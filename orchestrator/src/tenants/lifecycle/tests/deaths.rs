//! What becomes of a tenant whose SQ dies.

use super::*;

#[test]
fn the_cluster_of_a_dead_tenant_points_nowhere_until_it_runs_again() {
    let mut bench = Bench::new();
    bench.wake("a");
    bench.dies("a");
    assert!(bench.wanted.contains(&Effect::PointNowhere(id("a"))));
    assert!(!bench.wanted.contains(&Effect::Publish(id("a"))));
    bench.started("a");
    assert!(bench.wanted.contains(&Effect::Publish(id("a"))));
    bench.wanted.clear();
    bench.dies("a");
    assert!(bench.wanted.contains(&Effect::Withdraw(id("a"))), "a crash loop");
}

#[test]
fn a_tenant_that_dies_while_leased_is_started_again_at_once() {
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
fn a_tenant_that_dies_unused_is_left_asleep() {
    let mut bench = Bench::new();
    bench.wake("a");
    bench.pass(65_000);
    bench.dies("a");
    assert_eq!((bench.state("a"), bench.starts()), ("asleep", Vec::new()));
}

#[test]
fn a_tenant_that_can_not_be_frozen_is_not_stopped_in_order() {
    let mut bench = Bench::new();
    bench.wake("a");
    bench.pass(130_000);
    assert_eq!(bench.state("a"), "pausing");
    bench.on(Event::Paused(id("a"), false));
    assert!(bench.wanted.contains(&Effect::Stop { tenant: id("a"), orderly: false }));
    bench.on(Event::Stopped(id("a"), false));
    bench.wanted.clear();
    bench.pass(1_000);
    assert!(bench.wanted.contains(&Effect::Stop { tenant: id("a"), orderly: false }), "again");
}

#[test]
fn a_tenant_that_dies_within_the_grace_is_started_for_requests_under_way() {
    let mut bench = Bench::new();
    bench.wake("a");
    bench.pass(64_000);
    bench.dies("a");
    assert_eq!(bench.starts(), ["a"]);
}

#[test]
fn a_restart_that_comes_too_late_for_its_leases_is_not_made() {
    let mut bench = Bench::with(Settings { max_starts: 1, ..settings() });
    bench.wake("a");
    bench.ask("slow");
    bench.dies("a");
    assert_eq!(bench.state("a"), "queued");
    bench.wanted.clear();
    bench.pass(65_000);
    assert_eq!(bench.state("a"), "asleep");
    assert!(bench.wanted.contains(&Effect::Withdraw(id("a"))));
}

#[test]
fn old_news_of_a_death_change_nothing() {
    let mut bench = Bench::new();
    bench.wake("a");
    let instance = InstanceId("an older life".to_owned());
    bench.on(Event::Died(Died { tenant: id("a"), instance, exit: ExitKind::Gone }));
    assert_eq!(bench.state("a"), "awake");
}

#[test]
fn a_tenant_that_panics_again_and_again_backs_off_no_longer_each_time() {
    let mut bench = Bench::new();
    bench.wake("a");
    bench.dies_of("a", ExitKind::Crashed(101));
    bench.started("a");
    for _ in 0..5 {
        bench.dies_of("a", ExitKind::Crashed(101));
        let ask = bench.ask("a");
        assert_eq!(bench.refusal(ask), Some((LeaseRefusalKind::Failing, 1)));
        bench.pass(1_000);
        bench.ask("a");
        bench.started("a");
    }
}

#[test]
fn a_crash_loop_backs_off_alone_and_twice_as_long_each_time() {
    let mut bench = Bench::new();
    bench.wake("a");
    bench.wake("b");
    bench.dies("a");
    bench.started("a");
    for wait in [1, 2, 4, 8, 8] {
        bench.dies("a");
        assert_eq!(bench.state("a"), "failing");
        let ask = bench.ask("a");
        assert_eq!(bench.refusal(ask), Some((LeaseRefusalKind::Failing, wait)));
        bench.pass(Ms::from(wait) * 1_000);
        bench.ask("a");
        bench.started("a");
        assert_eq!(bench.state("b"), "awake");
    }
}
