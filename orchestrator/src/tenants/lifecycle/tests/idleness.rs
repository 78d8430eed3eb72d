//! Dozing and sleeping of tenants that are idle, and of idle tenants when memory is short.

use super::*;
use protocol::{KeepAwake, WarmHours};

#[test]
fn idle_tenant_dozes_then_sleeps() {
    let mut bench = Bench::new();
    bench.wake("a");
    bench.pass(119_999);
    assert_eq!(bench.state("a"), "awake");
    bench.pass(1);
    assert_eq!(bench.state("a"), "pausing");
    bench.paused("a");
    bench.pass(1_800_000 - 120_000);
    assert_eq!(bench.state("a"), "stopping");
    bench.stopped("a");
    assert_eq!(bench.state("a"), "asleep");
}

#[test]
fn tenant_retires_only_after_lease_and_grace() {
    let mut bench = Bench::new();
    bench.wake_with("a", Limits { doze_after_s: Some(0), ..Limits::default() });
    bench.pass(64_999);
    assert_eq!(bench.state("a"), "awake");
    bench.pass(1);
    assert_eq!(bench.state("a"), "pausing");
}

#[test]
fn request_during_a_retirement_turns_it_back() {
    let mut bench = Bench::new();
    bench.wake("a");
    bench.acks_at_once = false;
    bench.pass(120_000);
    assert_eq!(bench.state("a"), "retiring");
    let waiter = bench.ask("a");
    assert_eq!(bench.state("a"), "awake");
    bench.ack();
    assert_eq!(bench.granted(waiter), WakeKind::None);
}

#[test]
fn envoy_that_never_acknowledges_is_cut() {
    let mut bench = Bench::new();
    bench.wake("a");
    bench.acks_at_once = false;
    bench.pass(120_000 + 9_999);
    assert_eq!(bench.state("a"), "retiring");
    bench.pass(1);
    assert_eq!(bench.state("a"), "pausing");
    assert!(bench.wants(&Effect::Disconnect(STREAM)));
}

#[test]
fn tier_may_forbid_sleeping_or_dozing() {
    let mut bench = Bench::new();
    for (name, keep) in [("a", KeepAwake::Awake), ("d", KeepAwake::Doze)] {
        bench.wake_with(name, Limits { keep, ..Limits::default() });
    }
    bench.pass(200_000);
    bench.paused("d");
    bench.pass(100_000_000);
    assert_eq!((bench.state("a"), bench.state("d")), ("awake", "dozing"));
}

#[test]
fn warm_hours_follow_the_wall_clock() {
    let hour_ms = 3_600_000;
    let warm_hours = Some(WarmHours { from_h: 8, to_h: 10 });
    let limits = || Limits { warm_hours, ..Limits::default() };
    let mut bench = Bench::new();
    bench.on(Event::Clock { utc_s: 7 * 3_600 });
    bench.wake_with("a", limits());
    bench.pass(120_000);
    assert_eq!(bench.state("a"), "pausing");
    bench.paused("a");
    bench.pass(hour_ms);
    bench.stopped("a");
    bench.wake_with("a", limits());
    bench.pass(hour_ms);
    assert_eq!(bench.state("a"), "awake");
    bench.on(Event::MemoryShort { tenants: 4 });
    assert_eq!(bench.state("a"), "awake", "memory is short");
    bench.on(Event::Clock { utc_s: 10 * 3_600 });
    assert_ne!(bench.state("a"), "awake", "the clock was set past its hours");
}

#[test]
fn memory_pressure_stops_dozing_then_idle_tenants() {
    let dozing = ["d1", "d2", "d3", "d4"];
    let mut bench = Bench::with(Settings { max_starts: 9, ..settings() });
    for name in dozing {
        bench.wake(name);
        bench.now += 10;
    }
    bench.pass(120_000);
    for name in dozing {
        bench.paused(name);
    }
    bench.wake("idle");
    bench.pass(70_000);
    bench.wake("used");
    bench.on(Event::MemoryShort { tenants: 4 });
    bench.on(Event::MemoryShort { tenants: 4 });
    let states = |b: &Bench| ["d1", "d4", "idle", "used"].map(|name| b.state(name));
    assert_eq!(states(&bench), ["stopping", "stopping", "awake", "awake"]);
    for name in dozing {
        bench.stopped(name);
    }
    bench.on(Event::MemoryShort { tenants: 4 });
    assert_eq!(states(&bench), ["asleep", "asleep", "stopping", "awake"]);
}
