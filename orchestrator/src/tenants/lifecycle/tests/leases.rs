//! Granting and refusing of leases.

use super::*;

#[test]
fn waiters_of_one_tenant_share_one_start() {
    let mut bench = Bench::new();
    let waiters: Vec<WaiterId> = (0..500).map(|_| bench.ask("a")).collect();
    assert_eq!(bench.starts(), ["a"]);
    bench.now += 300;
    bench.started("a");
    for (place, waiter) in waiters.into_iter().enumerate() {
        // The wake is reported to each and counted for one.
        let waker = place == 0;
        let granted = LeaseDecision::Granted { wake: WakeKind::Start, wake_ms: 300, waker };
        assert_eq!(bench.decision(waiter), Some(granted));
    }
}

#[test]
fn lease_waits_for_the_gateways_acknowledgement() {
    let mut bench = Bench::new();
    bench.acks_at_once = false;
    let waiter = bench.ask("a");
    bench.started("a");
    assert_eq!(bench.decision(waiter), None);
    bench.ack();
    assert_eq!(bench.granted(waiter), WakeKind::Start);
}

#[test]
fn gateway_that_rejects_the_cluster_is_refused() {
    let mut bench = Bench::new();
    bench.acks_at_once = false;
    let waiter = bench.ask("a");
    bench.started("a");
    bench.on(Event::Nacked { stream: STREAM, tenants: vec![id("a")], seq: bench.seq });
    assert_eq!(bench.refusal(waiter), Some((LeaseRefusalKind::Gateway, 1)));
}

#[test]
fn rejection_of_an_older_cluster_is_ignored() {
    let mut bench = Bench::new();
    bench.acks_at_once = false;
    let waiter = bench.ask("a");
    bench.started("a");
    let older = bench.seq;
    bench.dies("a");
    bench.started("a");
    bench.on(Event::Nacked { stream: STREAM, tenants: vec![id("a")], seq: older });
    bench.ack();
    assert_eq!(bench.granted(waiter), WakeKind::Start);
}

#[test]
fn gateway_without_a_stream_is_refused_after_its_patience() {
    let mut bench = Bench::new();
    bench.on(Event::Disconnected(STREAM));
    let waiter = bench.ask("a");
    bench.started("a");
    bench.pass(8_999);
    assert_eq!(bench.decision(waiter), None);
    bench.pass(1);
    assert_eq!(bench.refusal(waiter), Some((LeaseRefusalKind::Gateway, 1)));
}

#[test]
fn envoy_without_time_to_acknowledge_is_not_cut() {
    let mut bench = Bench::new();
    bench.acks_at_once = false;
    let early = bench.ask("a");
    bench.pass(5_000);
    let late = bench.ask("a");
    bench.pass(3_990);
    bench.started("a");
    bench.pass(10);
    assert_eq!(bench.refusal(early), Some((LeaseRefusalKind::Queue, 1)));
    assert!(!bench.wants(&Effect::Disconnect(STREAM)));
    bench.pass(5_000);
    assert_eq!(bench.refusal(late), Some((LeaseRefusalKind::Gateway, 1)));
    assert!(bench.wants(&Effect::Disconnect(STREAM)));
}

/// A process that claims the gateway's name, and never acknowledges.
fn connect_impostor(bench: &mut Bench) -> StreamId {
    let stream = StreamId(77);
    let gateway = GatewayId::parse("g").unwrap();
    let peer = Peer { pid: Some(666), ..PEER };
    bench.on(Event::Connected { stream, gateway, peer });
    stream
}

#[test]
fn silent_impostor_delays_no_lease() {
    let mut bench = Bench::new();
    connect_impostor(&mut bench);
    let waiter = bench.ask("a");
    bench.started("a");
    // The bench acknowledges for the gateway's own process only.
    assert_eq!(bench.granted(waiter), WakeKind::Start);
}

#[test]
fn silent_impostor_delays_a_stop_until_the_timeout() {
    let mut bench = Bench::new();
    bench.wake("a");
    let impostor = connect_impostor(&mut bench);
    bench.pass(120_000);
    assert_eq!(bench.state("a"), "retiring");
    bench.pass(settings().ack_timeout_ms);
    assert!(bench.wants(&Effect::Disconnect(impostor)));
    assert!(!bench.wants(&Effect::Disconnect(STREAM)));
    assert_eq!(bench.state("a"), "pausing");
}

#[test]
fn process_without_stream_waits_for_all_streams() {
    let mut bench = Bench::new();
    bench.on(Event::Disconnected(STREAM));
    let impostor = connect_impostor(&mut bench);
    let waiter = bench.ask("a");
    bench.started("a");
    assert_eq!(bench.decision(waiter), None);
    bench.on(Event::Acked { stream: impostor, seq: bench.seq });
    assert_eq!(bench.granted(waiter), WakeKind::Start);
}

#[test]
fn impatient_request_cuts_no_stream() {
    let mut bench = Bench::new();
    bench.wake("a");
    bench.pass(5_000);
    // Envoy reconnects, and has not acknowledged yet.
    bench.acks_at_once = false;
    bench.on(Event::Disconnected(STREAM));
    let gateway = GatewayId::parse("g").unwrap();
    bench.on(Event::Connected { stream: STREAM, gateway, peer: PEER });
    let request = LeaseRequest { patience_ms: Some(1), ..lease_request("a") };
    let hasty = bench.request(request);
    bench.pass(1);
    assert_eq!(bench.refusal(hasty), Some((LeaseRefusalKind::Queue, 1)));
    assert!(!bench.wants(&Effect::Disconnect(STREAM)));
}

#[test]
fn young_stream_is_not_cut_for_an_old_request() {
    let mut bench = Bench::new();
    bench.acks_at_once = false;
    let waiter = bench.ask("a");
    bench.started("a");
    bench.pass(8_500);
    bench.on(Event::Disconnected(STREAM));
    let gateway = GatewayId::parse("g").unwrap();
    bench.on(Event::Connected { stream: STREAM, gateway, peer: PEER });
    bench.pass(500);
    assert_eq!(bench.refusal(waiter), Some((LeaseRefusalKind::Gateway, 1)));
    assert!(!bench.wants(&Effect::Disconnect(STREAM)));
}

#[test]
fn renewal_keeps_awake_and_never_wakes() {
    let mut bench = Bench::new();
    bench.wake("a");
    for _ in 0..20 {
        bench.pass(20_000);
        let waiter = bench.renew("a");
        assert_eq!(bench.granted(waiter), WakeKind::None);
    }
    bench.pass(120_000);
    bench.paused("a");
    for tenant in ["a", "b"] {
        let waiter = bench.renew(tenant);
        assert_eq!(bench.refusal(waiter).map(|r| r.0), Some(LeaseRefusalKind::Asleep));
    }
    assert_eq!((bench.state("a"), bench.state("b")), ("dozing", "unknown"));
}

#[test]
fn each_request_has_its_own_patience() {
    let mut bench = Bench::with(Settings { max_starts: 1, ..settings() });
    let with_patience =
        |tenant, ms| LeaseRequest { patience_ms: Some(ms), ..lease_request(tenant) };
    let patient = bench.ask("a");
    let hasty = bench.request(with_patience("a", 1_000));
    let queued = bench.request(with_patience("b", 300));
    assert_eq!(bench.refusal(queued), Some((LeaseRefusalKind::Queue, 1)), "the queue takes 800 ms");
    bench.pass(999);
    assert_eq!(bench.decision(hasty), None);
    bench.pass(1);
    assert_eq!(bench.refusal(hasty), Some((LeaseRefusalKind::Queue, 1)));
    assert_eq!(bench.decision(patient), None);
}

#[test]
fn memory_limit_changes_while_awake_and_after_doze() {
    let mut bench = Bench::new();
    let memory = |mib: u64| Limits { memory_bytes: mib << 20, ..Limits::default() };
    let given_mib = |bench: &Bench| -> Vec<u64> {
        let mib = |effect: &Effect| match effect {
            Effect::SetMemory { memory_bytes, .. } => Some(memory_bytes >> 20),
            _ => None,
        };
        bench.wanted.iter().filter_map(mib).collect()
    };
    bench.ask_with("a", memory(64));
    bench.started("a");
    for _ in 0..2 {
        bench.request(LeaseRequest { limits: memory(256), renew_only: true, ..lease_request("a") });
    }
    assert_eq!(given_mib(&bench), [256]);
    bench.pass(120_000);
    bench.paused("a");
    bench.ask_with("a", memory(512));
    assert_eq!(given_mib(&bench), [256], "it is frozen");
    bench.resumed("a");
    assert_eq!(given_mib(&bench), [256, 512]);
}

#[test]
fn hasty_client_cuts_no_healthy_envoy() {
    let mut bench = Bench::new();
    bench.wake("a");
    bench.pass(20_000);
    // The change of a bound is on its way to Envoy when the client's patience ends.
    bench.acks_at_once = false;
    let limits = Limits { concurrency: 2, ..Limits::default() };
    let request = LeaseRequest { patience_ms: Some(1), limits, ..lease_request("a") };
    let hasty = bench.request(request);
    bench.pass(1);
    assert_eq!(bench.refusal(hasty), Some((LeaseRefusalKind::Queue, 1)));
    assert!(!bench.wants(&Effect::Disconnect(STREAM)), "Envoy had a millisecond");
}

#[test]
fn envoy_that_has_just_connected_is_not_cut() {
    let mut bench = Bench::new();
    bench.wake("a");
    bench.pass(20_000);
    bench.acks_at_once = false;
    bench.on(Event::Disconnected(STREAM));
    let gateway = GatewayId::parse("g").unwrap();
    bench.on(Event::Connected { stream: STREAM, gateway, peer: PEER });
    let waiter = bench.request(LeaseRequest { patience_ms: Some(1_000), ..lease_request("a") });
    bench.pass(1_000);
    assert!(bench.refusal(waiter).is_some());
    assert!(!bench.wants(&Effect::Disconnect(STREAM)), "it had a second");
}
