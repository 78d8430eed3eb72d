//! Whose turn it is to start, and what it may cost.

use super::*;

#[test]
fn at_most_max_starts_are_under_way_and_first_come_is_first_served() {
    let mut bench = Bench::new();
    for name in ["a", "b", "c", "d"] {
        bench.ask(name);
        bench.now += 1;
    }
    assert_eq!(bench.starts(), ["a", "b"]);
    bench.started("b");
    assert_eq!(bench.starts(), ["c"]);
    bench.started("a");
    assert_eq!(bench.starts(), ["d"]);
}

#[test]
fn paid_tenants_go_ahead_and_free_ones_are_not_starved() {
    let mut bench = Bench::with(Settings { max_starts: 1, ..settings() });
    let paid = || Limits { priority: 1, ..Limits::default() };
    bench.ask("first");
    bench.ask("free");
    bench.now += 100;
    bench.ask_as("paid", paid(), false);
    bench.started("first");
    bench.now += 2_000;
    bench.ask_as("paid-later", paid(), false);
    bench.started("paid");
    bench.started("free");
    assert_eq!(bench.starts(), ["first", "paid", "free", "paid-later"]);
}

#[test]
fn who_would_wait_longer_than_its_patience_is_told_at_once_and_when_to_come_back() {
    let mut bench = Bench::with(Settings { max_starts: 1, ..settings() });
    let asks: Vec<u64> = (0..200).map(|n| bench.ask(&format!("t{n}"))).collect();
    let told: Vec<_> = asks.into_iter().filter_map(|ask| bench.refusal(ask)).collect();
    assert!(told.len() > 150 && bench.machine.queued() < 50, "{} were told", told.len());
    assert!(told.iter().all(|(kind, after)| *kind == LeaseRefusalKind::Queue && *after >= 9));
}

#[test]
fn tenants_that_hang_at_their_start_leave_slots_to_the_others() {
    let mut bench = Bench::new();
    let fails = |bench: &mut Bench, tenant: &str| {
        let reason = "SQ did not answer".to_owned();
        bench.on(Event::StartFailed { tenant: id(tenant), damaged: false, reason });
    };
    for name in ["h1", "h2"] {
        bench.ask(name);
        fails(&mut bench, name);
    }
    bench.pass(1_000);
    bench.starts();
    for name in ["h1", "h2", "a", "b"] {
        bench.ask(name);
    }
    assert_eq!(bench.starts(), ["h1", "a"]);
    bench.started("a");
    assert_eq!(bench.starts(), ["b"]);
    bench.started("b");
    assert_eq!(bench.starts(), [""; 0], "h2 waits for h1");
    fails(&mut bench, "h1");
    assert_eq!(bench.starts(), ["h2"]);
}

#[test]
fn starts_beyond_the_budget_of_the_hour_are_refused_with_the_time_left() {
    let mut bench = Bench::new();
    let limits = || Limits { wakes_per_hour: 1, doze_after_s: Some(9_999), ..Limits::default() };
    bench.ask_as("a", Limits { sleep_after_s: Some(0), ..limits() }, false);
    bench.started("a");
    bench.pass(65_000);
    bench.on(Event::Stopped(id("a"), true));
    bench.starts();
    let ask = bench.ask_as("a", limits(), false);
    assert_eq!(bench.refusal(ask), Some((LeaseRefusalKind::WakeBudget, 3_600 - 65)));
    bench.pass(3_600_000 - 65_000);
    bench.ask_as("a", limits(), false);
    assert_eq!(bench.starts(), ["a"]);
}
