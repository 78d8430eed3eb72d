//! Start permits, the queue for them, and the hourly budget of starts.

use super::*;

#[test]
fn start_permits_are_bounded_and_given_in_order() {
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
fn paid_tenants_go_ahead_without_starving_free_ones() {
    let mut bench = Bench::with(Settings { max_starts: 1, ..settings() });
    let paid = || Limits { priority: 1, ..Limits::default() };
    bench.ask("first");
    bench.ask("free");
    bench.now += 100;
    bench.ask_with("paid", paid());
    bench.started("first");
    bench.now += 2_000;
    bench.ask_with("paid-later", paid());
    bench.started("paid");
    bench.started("free");
    assert_eq!(bench.starts(), ["first", "paid", "free", "paid-later"]);
}

#[test]
fn wait_beyond_the_patience_is_refused_at_once() {
    let mut bench = Bench::with(Settings { max_starts: 1, ..settings() });
    let waiters: Vec<WaiterId> = (0..200).map(|n| bench.ask(&format!("t{n}"))).collect();
    let refused: Vec<_> = waiters.into_iter().filter_map(|w| bench.refusal(w)).collect();
    assert!(refused.len() > 150 && bench.machine.queued() < 50, "{} are refused", refused.len());
    assert!(refused.iter().all(|(kind, after)| *kind == LeaseRefusalKind::Queue && *after >= 9));
}

#[test]
fn suspects_leave_start_permits_to_others() {
    let mut bench = Bench::new();
    for name in ["h1", "h2"] {
        bench.ask(name);
        bench.start_fails(name);
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
    bench.start_fails("h1");
    assert_eq!(bench.starts(), ["h2"]);
}

#[test]
fn starts_beyond_the_hourly_budget_are_refused() {
    let mut bench = Bench::new();
    let limits = || Limits {
        wakes_per_hour: CountLimit::Count(1),
        doze_after_s: Some(9_999),
        ..Limits::default()
    };
    bench.wake_with("a", Limits { sleep_after_s: Some(0), ..limits() });
    bench.pass(65_000);
    bench.stopped("a");
    let waiter = bench.ask_with("a", limits());
    assert_eq!(bench.refusal(waiter), Some((LeaseRefusalKind::WakeBudget, 3_600 - 65)));
    bench.pass(3_600_000 - 65_000);
    bench.ask_with("a", limits());
    assert_eq!(bench.starts(), ["a"]);
}
