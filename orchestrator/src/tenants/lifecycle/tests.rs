//! The rules of the lifecycle, one by one, on a machine with one Envoy that acknowledges at once
//! unless a test says otherwise.

mod adoption;
mod deaths;
mod model;
mod sim;
mod starts;
mod world;

use protocol::{GatewayId, LeaseRequest, Limits, TenantId, TierName, WakeKind};

use super::*;
use crate::runtime::{Died, ExitKind, InstanceId};

struct Bench {
    machine: Lifecycle,
    now: Ms,
    seq: Seq,
    asks: u64,
    /// Streams that acknowledge at once.
    prompt: Vec<u64>,
    /// What the machine wanted and nobody has taken yet.
    wanted: Vec<Effect>,
}

fn settings() -> Settings {
    Settings {
        lease_ms: 30_000,
        grace_ms: 35_000,
        doze_after_ms: 120_000,
        sleep_after_ms: 1_800_000,
        max_starts: 2,
        start_ms: 400,
        patience_ms: 9_000,
        head_start_ms: 2_000,
        ack_timeout_ms: 10_000,
        backoff_ms: 1_000,
        backoff_max_ms: 8_000,
        stable_ms: 60_000,
    }
}

fn id(name: &str) -> TenantId {
    TenantId::parse(name).unwrap()
}

impl Bench {
    fn new() -> Self {
        Self::with(settings())
    }

    fn with(settings: Settings) -> Self {
        let (machine, _) = Lifecycle::adopt(settings, Vec::new(), 0, 0);
        let prompt = vec![1];
        let mut bench = Self { machine, now: 1_000, seq: 0, asks: 0, prompt, wanted: Vec::new() };
        bench.on(Event::Connected(1, GatewayId::parse("g").unwrap()));
        bench
    }

    fn on(&mut self, event: Event) {
        let mut effects = std::collections::VecDeque::from(self.machine.on(event, self.now));
        while let Some(effect) = effects.pop_front() {
            if let Effect::Publish(tenant)
            | Effect::PointNowhere(tenant)
            | Effect::Withdraw(tenant) = &effect
            {
                self.seq += 1;
                let numbered = Event::Numbered(tenant.clone(), self.seq);
                effects.extend(self.machine.on(numbered, self.now));
                for stream in self.prompt.clone() {
                    effects.extend(self.machine.on(Event::Acked(stream, self.seq), self.now));
                }
            }
            if !matches!(effect, Effect::Moved { .. }) {
                self.wanted.push(effect);
            }
        }
    }

    fn ask_as(&mut self, tenant: &str, limits: Limits, renew_only: bool) -> u64 {
        self.asks += 1;
        let request = Box::new(LeaseRequest {
            gateway: GatewayId::parse("g").unwrap(),
            tenant: id(tenant),
            tier: TierName::parse("free").unwrap(),
            limits,
            renew_only,
            within_quotas: false,
            patience_ms: None,
        });
        self.on(Event::Lease { waiter: self.asks, request });
        self.asks
    }

    fn ask(&mut self, tenant: &str) -> u64 {
        self.ask_as(tenant, Limits::default(), false)
    }

    fn started(&mut self, tenant: &str) {
        let instance = InstanceId(format!("{tenant}{}", self.now));
        self.on(Event::Started(id(tenant), instance, WakeKind::Start));
    }

    fn wake(&mut self, tenant: &str) {
        self.ask(tenant);
        self.started(tenant);
        assert_eq!(self.state(tenant), "awake");
        self.wanted.clear();
    }

    fn dies(&mut self, tenant: &str) {
        self.dies_of(tenant, ExitKind::OutOfMemory);
    }

    fn dies_of(&mut self, tenant: &str, exit: ExitKind) {
        let instance = self.machine.tenants[&id(tenant)].instance.clone().unwrap();
        self.on(Event::Died(Died { tenant: id(tenant), instance, exit }));
    }

    /// Lets time pass from deadline to deadline.
    fn pass(&mut self, ms: Ms) {
        let end = self.now + ms;
        while let Some(at) = self.machine.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.on(Event::Tick);
        }
        self.now = end;
    }

    fn state(&self, tenant: &str) -> &'static str {
        self.machine.state(&id(tenant)).map_or("unknown", State::label)
    }

    fn answer(&mut self, waiter: u64) -> Option<Answer> {
        let found =
            self.wanted.iter().position(|e| matches!(e, Effect::Answer(w, _) if *w == waiter))?;
        let Effect::Answer(_, answer) = self.wanted.remove(found) else { unreachable!() };
        Some(answer)
    }

    fn refusal(&mut self, waiter: u64) -> Option<(LeaseRefusalKind, u32)> {
        match self.answer(waiter)? {
            Answer::Refused { kind, retry_after_s, .. } => Some((kind, retry_after_s)),
            Answer::Granted { .. } => None,
        }
    }

    fn starts(&mut self) -> Vec<String> {
        let mut starts = Vec::new();
        self.wanted.retain(|e| match e {
            Effect::Start { tenant, .. } => {
                starts.push(tenant.to_string());
                false
            }
            _ => true,
        });
        starts
    }
}

#[test]
fn five_hundred_askers_of_one_tenant_are_one_start_and_five_hundred_answers() {
    let mut bench = Bench::new();
    let asks: Vec<u64> = (0..500).map(|_| bench.ask("a")).collect();
    assert_eq!(bench.starts(), ["a"]);
    bench.now += 300;
    bench.started("a");
    for (place, ask) in asks.into_iter().enumerate() {
        // All are told what it took; it is counted for one.
        let granted = Answer::Granted { wake: WakeKind::Start, wake_ms: 300, waker: place == 0 };
        assert_eq!(bench.answer(ask), Some(granted));
    }
}

#[test]
fn no_lease_is_given_before_the_asking_envoy_has_acknowledged() {
    let mut bench = Bench::new();
    bench.prompt.clear();
    let ask = bench.ask("a");
    bench.started("a");
    assert_eq!(bench.answer(ask), None);
    bench.on(Event::Acked(1, bench.seq));
    assert!(matches!(bench.answer(ask), Some(Answer::Granted { .. })));
}

#[test]
fn an_envoy_that_refuses_the_cluster_gets_a_refusal() {
    let mut bench = Bench::new();
    bench.prompt.clear();
    let ask = bench.ask("a");
    bench.started("a");
    bench.on(Event::Nacked(1, vec![id("a")], bench.seq));
    assert_eq!(bench.refusal(ask), Some((LeaseRefusalKind::Gateway, 1)));
}

#[test]
fn a_refusal_of_an_older_cluster_says_nothing_of_the_present_one() {
    let mut bench = Bench::new();
    bench.prompt.clear();
    let ask = bench.ask("a");
    bench.started("a");
    let older = bench.seq;
    bench.dies("a");
    bench.started("a");
    bench.on(Event::Nacked(1, vec![id("a")], older));
    bench.on(Event::Acked(1, bench.seq));
    assert!(matches!(bench.answer(ask), Some(Answer::Granted { .. })));
}

#[test]
fn a_gateway_without_a_stream_is_refused_when_its_patience_ends() {
    let mut bench = Bench::new();
    bench.on(Event::Disconnected(1));
    let ask = bench.ask("a");
    bench.started("a");
    bench.pass(8_999);
    assert_eq!(bench.answer(ask), None);
    bench.pass(1);
    assert_eq!(bench.refusal(ask), Some((LeaseRefusalKind::Gateway, 1)));
}

#[test]
fn an_envoy_that_had_a_moment_only_is_not_cut_for_an_asker_whose_patience_ends() {
    let mut bench = Bench::new();
    bench.prompt.clear();
    let early = bench.ask("a");
    bench.pass(5_000);
    let late = bench.ask("a");
    bench.pass(3_990);
    bench.started("a");
    bench.pass(10);
    assert_eq!(bench.refusal(early), Some((LeaseRefusalKind::Queue, 1)));
    assert!(!bench.wanted.contains(&Effect::Disconnect(1)));
    bench.pass(5_000);
    assert_eq!(bench.refusal(late), Some((LeaseRefusalKind::Gateway, 1)));
    assert!(bench.wanted.contains(&Effect::Disconnect(1)));
}

#[test]
fn an_idle_tenant_dozes_then_sleeps() {
    let mut bench = Bench::new();
    bench.wake("a");
    bench.pass(119_999);
    assert_eq!(bench.state("a"), "awake");
    bench.pass(1);
    assert_eq!(bench.state("a"), "pausing");
    bench.on(Event::Paused(id("a"), true));
    bench.pass(1_800_000 - 120_000);
    assert_eq!(bench.state("a"), "stopping");
    bench.on(Event::Stopped(id("a"), true));
    assert_eq!(bench.state("a"), "asleep");
}

#[test]
fn no_tenant_retires_before_its_lease_and_the_grace_are_over() {
    let mut bench = Bench::new();
    let limits = Limits { doze_after_s: Some(0), ..Limits::default() };
    bench.ask_as("a", limits, false);
    bench.started("a");
    bench.pass(64_999);
    assert_eq!(bench.state("a"), "awake");
    bench.pass(1);
    assert_eq!(bench.state("a"), "pausing");
}

#[test]
fn a_renewal_keeps_awake_and_never_wakes() {
    let mut bench = Bench::new();
    bench.wake("a");
    for _ in 0..20 {
        bench.pass(20_000);
        let ask = bench.ask_as("a", Limits::default(), true);
        assert!(matches!(bench.answer(ask), Some(Answer::Granted { wake: WakeKind::None, .. })));
    }
    bench.pass(120_000);
    bench.on(Event::Paused(id("a"), true));
    let ask = bench.ask_as("a", Limits::default(), true);
    assert_eq!(bench.refusal(ask).map(|r| r.0), Some(LeaseRefusalKind::Asleep));
    let ask = bench.ask_as("b", Limits::default(), true);
    assert_eq!(bench.refusal(ask).map(|r| r.0), Some(LeaseRefusalKind::Asleep));
    assert_eq!((bench.state("a"), bench.state("b")), ("dozing", "unknown"));
}

#[test]
fn another_memory_is_given_while_awake_and_after_a_doze() {
    let mut bench = Bench::new();
    let more = |mib: u64| Limits { memory_bytes: mib << 20, ..Limits::default() };
    let given = |bench: &Bench| {
        let resized = |e: &Effect| match e {
            Effect::Resize { memory_bytes, .. } => Some(memory_bytes >> 20),
            _ => None,
        };
        bench.wanted.iter().filter_map(resized).collect::<Vec<_>>()
    };
    bench.ask_as("a", more(64), false);
    bench.started("a");
    bench.ask_as("a", more(256), true);
    bench.ask_as("a", more(256), true);
    assert_eq!(given(&bench), [256]);
    bench.pass(120_000);
    bench.on(Event::Paused(id("a"), true));
    bench.ask_as("a", more(512), false);
    assert_eq!(given(&bench), [256], "it is frozen");
    bench.on(Event::Resumed(id("a"), true));
    assert_eq!(given(&bench), [256, 512]);
}

#[test]
fn an_asker_during_a_retirement_turns_it_back() {
    let mut bench = Bench::new();
    bench.wake("a");
    bench.prompt.clear();
    bench.pass(120_000);
    assert_eq!(bench.state("a"), "retiring");
    let ask = bench.ask("a");
    assert_eq!(bench.state("a"), "awake");
    bench.on(Event::Acked(1, bench.seq));
    assert!(matches!(bench.answer(ask), Some(Answer::Granted { wake: WakeKind::None, .. })));
}

#[test]
fn an_envoy_that_never_acknowledges_is_cut_and_holds_up_nobody_for_ever() {
    let mut bench = Bench::new();
    bench.wake("a");
    bench.prompt.clear();
    bench.pass(120_000 + 9_999);
    assert_eq!(bench.state("a"), "retiring");
    bench.pass(1);
    assert_eq!(bench.state("a"), "pausing");
    assert!(bench.wanted.contains(&Effect::Disconnect(1)));
}

#[test]
fn a_tier_may_forbid_to_sleep_or_to_doze() {
    let mut bench = Bench::new();
    for (name, keep) in [("a", KeepAwake::Awake), ("d", KeepAwake::Doze)] {
        bench.ask_as(name, Limits { keep, ..Limits::default() }, false);
        bench.started(name);
    }
    bench.pass(200_000);
    bench.on(Event::Paused(id("d"), true));
    bench.pass(100_000_000);
    assert_eq!((bench.state("a"), bench.state("d")), ("awake", "dozing"));
}

#[test]
fn a_tenant_is_kept_warm_in_its_hours_and_a_jump_of_the_clock_is_followed() {
    let hour = 3_600_000;
    let mut bench = Bench::new();
    bench.on(Event::Clock(7 * 3_600));
    let warm_hours = Some(protocol::WarmHours { from_h: 8, to_h: 10 });
    let limits = || Limits { warm_hours, ..Limits::default() };
    let wake = |bench: &mut Bench| {
        bench.ask_as("a", limits(), false);
        bench.started("a");
    };
    wake(&mut bench);
    bench.pass(120_000);
    assert_eq!(bench.state("a"), "pausing");
    bench.on(Event::Paused(id("a"), true));
    bench.pass(hour);
    bench.on(Event::Stopped(id("a"), true));
    wake(&mut bench);
    bench.pass(hour);
    assert_eq!(bench.state("a"), "awake");
    bench.on(Event::Pressure(4));
    assert_eq!(bench.state("a"), "awake", "memory is short");
    bench.on(Event::Clock(10 * 3_600));
    assert_ne!(bench.state("a"), "awake", "its hours are over all at once");
}

#[test]
fn an_asker_of_less_patience_is_judged_by_its_own() {
    let mut bench = Bench::with(Settings { max_starts: 1, ..settings() });
    let ask = |bench: &mut Bench, tenant: &str, patience_ms| {
        bench.asks += 1;
        let request = Box::new(LeaseRequest {
            gateway: GatewayId::parse("g").unwrap(),
            tenant: id(tenant),
            tier: TierName::parse("free").unwrap(),
            limits: Limits::default(),
            renew_only: false,
            within_quotas: false,
            patience_ms,
        });
        bench.on(Event::Lease { waiter: bench.asks, request });
        bench.asks
    };
    let (patient, hasty) = (ask(&mut bench, "a", None), ask(&mut bench, "a", Some(1_000)));
    let queued = ask(&mut bench, "b", Some(300));
    assert_eq!(bench.refusal(queued), Some((LeaseRefusalKind::Queue, 1)), "the queue takes 800 ms");
    bench.pass(999);
    assert_eq!(bench.answer(hasty), None);
    bench.pass(1);
    assert_eq!(bench.refusal(hasty), Some((LeaseRefusalKind::Queue, 1)));
    assert_eq!(bench.answer(patient), None);
}

#[test]
fn memory_pressure_stops_dozing_tenants_first_and_the_least_recently_used_first() {
    let mut bench = Bench::with(Settings { max_starts: 9, ..settings() });
    for name in ["d1", "d2", "d3", "d4"] {
        bench.wake(name);
        bench.now += 10;
    }
    bench.pass(120_000);
    for name in ["d1", "d2", "d3", "d4"] {
        bench.on(Event::Paused(id(name), true));
    }
    bench.wake("idle");
    bench.pass(70_000);
    bench.wake("used");
    bench.on(Event::Pressure(4));
    bench.on(Event::Pressure(4));
    let states = |b: &Bench| ["d1", "d4", "idle", "used"].map(|name| b.state(name));
    assert_eq!(states(&bench), ["stopping", "stopping", "awake", "awake"]);
    for name in ["d1", "d2", "d3", "d4"] {
        bench.on(Event::Stopped(id(name), true));
    }
    bench.on(Event::Pressure(4));
    assert_eq!(states(&bench), ["asleep", "asleep", "stopping", "awake"]);
}

#[test]
fn sleep_by_the_operator_waits_for_the_lease_and_force_does_not() {
    let mut bench = Bench::new();
    bench.wake("a");
    bench.wake("b");
    bench.on(Event::Sleep(id("a"), Drain::Gently));
    bench.on(Event::Sleep(id("b"), Drain::Forced));
    assert_eq!((bench.state("a"), bench.state("b")), ("awake", "stopping"));
    bench.pass(65_000);
    assert_eq!(bench.state("a"), "stopping");
    assert!(bench.wanted.contains(&Effect::Stop { tenant: id("a"), orderly: true }));
    assert!(bench.wanted.contains(&Effect::Stop { tenant: id("b"), orderly: false }));
}

#[test]
fn who_is_forced_to_sleep_in_use_is_pointed_nowhere_and_started_again() {
    let mut bench = Bench::new();
    bench.wake("a");
    bench.on(Event::Sleep(id("a"), Drain::Forced));
    assert!(bench.wanted.contains(&Effect::PointNowhere(id("a"))));
    assert!(!bench.wanted.contains(&Effect::Withdraw(id("a"))));
    bench.on(Event::Stopped(id("a"), true));
    assert_eq!(bench.starts(), ["a"]);
    bench.started("a");
    bench.pass(65_000);
    bench.on(Event::Sleep(id("a"), Drain::Forced));
    bench.on(Event::Stopped(id("a"), true));
    assert_eq!((bench.state("a"), bench.starts()), ("asleep", Vec::new()), "nobody uses it");
}

#[test]
fn where_the_grace_is_short_askers_wait_until_the_tenant_has_slept() {
    let mut bench = Bench::with(Settings { lease_ms: 500, grace_ms: 1_000, ..settings() });
    bench.wake("a");
    bench.on(Event::Sleep(id("a"), Drain::Gently));
    bench.pass(600);
    let ask = bench.ask("a");
    bench.pass(900);
    assert_eq!((bench.state("a"), bench.answer(ask)), ("stopping", None));
    bench.on(Event::Stopped(id("a"), true));
    bench.started("a");
    assert!(matches!(bench.answer(ask), Some(Answer::Granted { wake: WakeKind::Start, .. })));
}

#[test]
fn who_is_held_sleeps_and_its_askers_wait_until_it_is_let_go() {
    let mut bench = Bench::new();
    bench.wake("a");
    bench.on(Event::Hold(id("a"), true));
    bench.pass(65_000);
    bench.on(Event::Stopped(id("a"), true));
    let ask = bench.ask("a");
    assert_eq!((bench.state("a"), bench.answer(ask)), ("asleep", None));
    bench.on(Event::Hold(id("a"), false));
    bench.started("a");
    assert!(matches!(bench.answer(ask), Some(Answer::Granted { wake: WakeKind::Start, .. })));
    bench.on(Event::Hold(id("stranger"), true));
    assert_eq!(bench.state("stranger"), "asleep");
}
