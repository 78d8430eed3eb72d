//! Who may be routed to, and how long.

#[cfg(target_family = "wasm")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;

#[test]
fn a_lease_is_renewed_while_it_is_used_and_runs_out_when_it_is_not() {
    let mut host = Host::warm(config());
    let id = host.get(&key(1));
    host.end(id);
    host.tick(16 * SECOND);
    assert_eq!(host.made["/v1/lease"], 2, "renewed past half");
    host.answer("/v1/lease", &granted("alice", 30_000));
    host.tick(16 * SECOND);
    host.tick(16 * SECOND);
    assert_eq!(host.made["/v1/lease"], 2, "nobody has used it");
    host.get(&key(1));
    assert_eq!(host.made["/v1/lease"], 3);
}

#[test]
fn a_request_in_flight_holds_its_tenant_without_waking_it() {
    let mut host = Host::warm(config());
    let id = host.get(&key(1));
    host.tick(16 * SECOND);
    host.answer("/v1/lease", &granted("alice", 30_000));
    host.tick(16 * SECOND);
    let call = host.call_to("/v1/lease").expect("held by the one in flight");
    assert!(host.calls[&call].0.body.as_deref().unwrap().contains("\"renew_only\":true"));
    host.end(id);
}

#[test]
fn when_the_asking_request_goes_away_the_others_are_still_served() {
    let mut host = Host::new(config());
    host.tick(0);
    host.answer("/v1/changes", &changes(1, &[]));
    let (first, second) = (host.get(&key(1)), host.get(&key(1)));
    host.end(first);
    assert_eq!(host.call_to("/v1/verify"), None);
    host.tick(20 * MS);
    host.answer("/v1/verify", &verified(1, Some(verdict("alice"))));
    let third = host.get(&key(1));
    host.answer("/v1/lease", &granted("alice", 30_000));
    assert!(host.is_forwarded(second) && host.is_forwarded(third));
}

#[test]
fn a_restart_of_the_orchestrator_costs_a_waiting_request_only_time() {
    let mut host = Host::new(config());
    host.tick(0);
    host.answer("/v1/changes", &changes(1, &[]));
    let id = host.get(&key(1));
    host.answer("/v1/verify", &verified(1, Some(verdict("alice"))));
    // Its port is closed for four seconds, as in an upgrade.
    let since = host.now;
    while host.now < since + 4 * SECOND {
        if host.call_to("/v1/lease").is_some() {
            host.fail("/v1/lease");
        }
        host.tick(20 * MS);
    }
    assert_eq!(host.seen(id), &Seen::Paused);
    if host.call_to("/v1/lease").is_none() {
        host.tick(SECOND);
    }
    host.answer("/v1/lease", &granted("alice", 30_000));
    assert!(host.is_forwarded(id));
}

#[test]
fn an_outage_of_the_orchestrator_is_told_when_it_lasts_longer_than_configured() {
    let mut host = Host::new(FilterConfig { outage_after_ms: 2_500, ..config() });
    host.tick(0);
    host.answer("/v1/changes", &changes(1, &[]));
    let id = host.get(&key(1));
    host.answer("/v1/verify", &verified(1, Some(verdict("alice"))));
    let since = host.now;
    while host.status(id).is_none() {
        if host.call_to("/v1/lease").is_some() {
            host.fail("/v1/lease");
        }
        host.tick(20 * MS);
    }
    assert_eq!(host.status(id), Some(503));
    assert_eq!(value(&reply(&host, id).headers, "retry-after"), Some("2"));
    let told_ms = (host.now - since) / MS;
    assert!((2_500..3_600).contains(&told_ms), "told after {told_ms} ms");
}

fn upload(host: &mut Host) -> StreamId {
    let path = "/api/v2/update?p=index&c=1.1.1/1.1.1/1.1.2";
    let headers = [("authorization", &*key(1)), ("content-length", "4")];
    let id = host.request("POST", path, &headers, false);
    assert!(host.is_forwarded(id));
    host.body(id, b"slow", false);
    id
}

#[test]
fn a_body_on_its_way_keeps_its_tenants_lease_renewed() {
    let mut host = Host::warm(config());
    let id = upload(&mut host);
    for _ in 0..4 {
        host.tick(15 * SECOND);
        host.answer("/v1/lease", &granted("alice", 30_000));
    }
    host.body(id, b"", true);
    assert!(host.is_forwarded(id), "held although the lease was renewed");
}

#[test]
fn a_body_that_outlived_its_lease_is_held_at_its_end_until_there_is_another() {
    let mut host = Host::warm(config());
    let id = upload(&mut host);
    host.tick(16 * SECOND);
    host.fail("/v1/lease");
    host.now += 15 * SECOND;
    host.body(id, b"", true);
    assert_eq!(host.seen(id), &Seen::Held);
    let call = host.call_to("/v1/lease").expect("asked again");
    assert!(host.calls[&call].0.body.as_deref().unwrap().contains("\"renew_only\":false"));
    host.answer("/v1/lease", &granted("alice", 30_000));
    assert!(host.is_forwarded(id));
    host.end(id);
    assert_eq!((host.gate.streams.waiting(), host.gate.streams.len()), (0, 0));
}

#[test]
fn a_wake_that_took_longer_than_its_lease_is_still_told_and_counted() {
    let mut host = Host::warm(config());
    host.tick(40 * SECOND);
    let id = host.get(&key(1));
    host.tick(SECOND / 4);
    host.answer("/v1/lease", &granted("alice", 200));
    assert_eq!(host.seen(id), &Seen::Paused);
    let awake = String::from_utf8(granted("alice", 30_000)).unwrap().replace("start", "none");
    host.answer("/v1/lease", awake.as_bytes());
    let Seen::Forwarded(headers) = host.seen(id) else { panic!("{:?}", host.seen(id)) };
    let timing = value(headers, protocol::headers::answer::TIMING);
    assert!(timing.is_some_and(|t| t.contains("wake;desc=start;dur=300")), "{timing:?}");
}

#[test]
fn a_held_body_is_refused_when_its_tenant_can_not_be_leased() {
    let mut host = Host::warm(config());
    let (told, patient) = (upload(&mut host), upload(&mut host));
    host.now += 31 * SECOND;
    host.body(told, b"", true);
    let call = host.call_to("/v1/lease").unwrap();
    host.done(call, Ok((503, br#"{"kind":"failing","retry_after_s":7}"#)));
    assert_eq!(host.status(told), Some(503));
    let late = host.response_head(told, false, &FromEnvoy(503));
    let Some(Effect::SetResponseHeaders(_, headers)) = late else {
        panic!("Envoy's headers of the forwarded request stay")
    };
    assert_eq!(value(&headers, "retry-after"), Some("7"));
    host.body(patient, b"", true);
    host.tick(11 * SECOND);
    assert_eq!(host.status(patient), Some(503));
    assert_eq!(host.gate.streams.waiting(), 0);
}

#[test]
fn a_body_of_untold_length_that_outlived_its_lease_is_refused() {
    let mut host = Host::warm(config());
    let path = "/api/v2/update?p=index&c=1.1.1/1.1.1/1.1.2";
    let id = host.request("POST", path, &[("authorization", &*key(1))], false);
    host.body(id, b"slow", false);
    host.now += 31 * SECOND;
    host.body(id, b"", true);
    assert_eq!(host.status(id), Some(503));
    assert!(host.call_to("/v1/lease").is_some(), "the next try finds the tenant awake");
}

#[test]
fn a_refused_lease_is_told_with_its_reason_and_time() {
    let mut host = Host::new(config());
    host.tick(0);
    host.answer("/v1/changes", &changes(1, &[]));
    let id = host.get(&key(1));
    host.answer("/v1/verify", &verified(1, Some(verdict("alice"))));
    let call = host.call_to("/v1/lease").unwrap();
    host.done(call, Ok((429, br#"{"kind":"wake_budget","retry_after_s":77}"#)));
    assert_eq!(host.status(id), Some(429));
    assert_eq!(value(&reply(&host, id).headers, "retry-after"), Some("77"));
}

#[test]
fn without_an_orchestrator_the_cluster_is_named_after_the_tenant() {
    let mut host = Host::new(FilterConfig::default());
    host.tick(0);
    host.answer("/v1/changes", &changes(1, &[]));
    let id = host.get(&key(1));
    host.answer("/v1/verify", &verified(1, Some(verdict("alice"))));
    assert_eq!(value(forwarded(&host, id), "x-sq-cluster"), Some("sq/alice"));
    assert!(!host.made.contains_key("/v1/lease"));
}

#[test]
fn a_clock_that_goes_back_ends_all_leases() {
    let mut host = Host::warm(config());
    host.now -= 60 * SECOND;
    let id = host.get(&key(1));
    assert!(!host.is_forwarded(id));
    host.tick(6 * SECOND);
    let id = host.get(&key(1));
    assert_eq!((host.seen(id), host.made["/v1/lease"]), (&Seen::Paused, 2));
}

#[test]
fn who_comes_while_a_renewal_finds_the_tenant_asleep_has_it_woken() {
    let mut host = Host::warm(config());
    let first = host.get(&key(1));
    host.end(first);
    host.tick(16 * SECOND);
    host.now += 15 * SECOND;
    let id = host.get(&key(1));
    assert_eq!(host.seen(id), &Seen::Paused, "the lease is over, its renewal on its way");
    let asleep = br#"{"kind":"asleep","retry_after_s":1}"#;
    let renewal = host.call_to("/v1/lease").expect("a renewal");
    host.done(renewal, Ok((503, asleep)));
    host.answer("/v1/lease", &granted("alice", 30_000));
    assert!(host.is_forwarded(id));
}
