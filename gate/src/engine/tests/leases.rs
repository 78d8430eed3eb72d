//! Leases: renewal, expiry, waiting, refusal, and uploads that outlive them.

#[cfg(target_family = "wasm")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;

#[test]
fn used_lease_is_renewed_and_unused_one_expires() {
    let mut host = Host::warm(config());
    let id = host.get(&key(1));
    host.end(id);
    host.tick(16 * SECOND);
    assert_eq!(host.made["/v1/lease"], 2, "renewed past half");
    host.respond("/v1/lease", &granted("alice", 30_000));
    host.tick(16 * SECOND);
    host.tick(16 * SECOND);
    assert_eq!(host.made["/v1/lease"], 2, "no request has used it");
    host.get(&key(1));
    assert_eq!(host.made["/v1/lease"], 3);
}

#[test]
fn request_in_flight_renews_without_waking() {
    let mut host = Host::warm(config());
    let id = host.get(&key(1));
    host.tick(16 * SECOND);
    host.respond("/v1/lease", &granted("alice", 30_000));
    host.tick(16 * SECOND);
    let call = host.call_to("/v1/lease").expect("the request in flight renews the lease");
    assert!(host.calls[&call].0.body.as_deref().unwrap().contains("\"renew_only\":true"));
    host.end(id);
}

#[test]
fn waiters_survive_the_stream_that_made_the_call() {
    let mut host = Host::new(config());
    host.tick(0);
    host.respond("/v1/changes", &changes(1, &[]));
    let first = host.get(&key(1));
    let second = host.get(&key(1));
    host.end(first);
    assert_eq!(host.call_to("/v1/verify"), None);
    host.tick(20 * MS);
    host.respond("/v1/verify", &verified(1, Some(verdict("alice"))));
    let third = host.get(&key(1));
    host.respond("/v1/lease", &granted("alice", 30_000));
    assert!(host.is_forwarded(second) && host.is_forwarded(third));
}

#[test]
fn orchestrator_restart_only_delays_waiters() {
    let mut host = Host::new(config());
    host.tick(0);
    host.respond("/v1/changes", &changes(1, &[]));
    let id = host.get(&key(1));
    host.respond("/v1/verify", &verified(1, Some(verdict("alice"))));
    // Its port is closed for four seconds, as in an upgrade.
    let since = host.now;
    while host.now < since + 4 * SECOND {
        if host.call_to("/v1/lease").is_some() {
            host.fail("/v1/lease");
        }
        host.tick(20 * MS);
    }
    assert_eq!(host.seen(id), &Seen::Waiting);
    if host.call_to("/v1/lease").is_none() {
        host.tick(SECOND);
    }
    host.respond("/v1/lease", &granted("alice", 30_000));
    assert!(host.is_forwarded(id));
}

#[test]
fn outage_is_reported_after_the_configured_time() {
    let mut host = Host::new(FilterConfig { outage_after_ms: 2_500, ..config() });
    host.tick(0);
    host.respond("/v1/changes", &changes(1, &[]));
    let id = host.get(&key(1));
    host.respond("/v1/verify", &verified(1, Some(verdict("alice"))));
    let since = host.now;
    while host.status(id).is_none() {
        if host.call_to("/v1/lease").is_some() {
            host.fail("/v1/lease");
        }
        host.tick(20 * MS);
    }
    assert_eq!(host.status(id), Some(503));
    assert_eq!(value(&reply(&host, id).headers, "retry-after"), Some("2"));
    let outage_ms = (host.now - since) / MS;
    assert!((2_500..3_600).contains(&outage_ms), "refused after {outage_ms} ms");
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
fn upload_keeps_its_lease_renewed() {
    let mut host = Host::warm(config());
    let id = upload(&mut host);
    for _ in 0..4 {
        host.tick(15 * SECOND);
        host.respond("/v1/lease", &granted("alice", 30_000));
    }
    host.body(id, b"", true);
    assert!(host.is_forwarded(id), "parked although the lease was renewed");
}

#[test]
fn upload_that_outlives_its_lease_is_parked() {
    let mut host = Host::warm(config());
    let id = upload(&mut host);
    host.tick(16 * SECOND);
    host.fail("/v1/lease");
    host.now += 15 * SECOND;
    host.body(id, b"", true);
    assert_eq!(host.seen(id), &Seen::Parked);
    let call = host.call_to("/v1/lease").expect("a new request");
    assert!(host.calls[&call].0.body.as_deref().unwrap().contains("\"renew_only\":false"));
    host.respond("/v1/lease", &granted("alice", 30_000));
    assert!(host.is_forwarded(id));
    host.end(id);
    assert_eq!((host.gate.streams.waiting(), host.gate.streams.len()), (0, 0));
}

#[test]
fn wake_longer_than_its_lease_is_reported() {
    let mut host = Host::warm(config());
    host.tick(40 * SECOND);
    let id = host.get(&key(1));
    host.tick(SECOND / 4);
    host.respond("/v1/lease", &granted("alice", 200));
    assert_eq!(host.seen(id), &Seen::Waiting);
    let awake = String::from_utf8(granted("alice", 30_000)).unwrap().replace("start", "none");
    host.respond("/v1/lease", awake.as_bytes());
    let Seen::Forwarded(headers) = host.seen(id) else { panic!("{:?}", host.seen(id)) };
    let timing = value(headers, protocol::headers::response::TIMING);
    assert!(timing.is_some_and(|t| t.contains("wake;desc=start;dur=300")), "{timing:?}");
}

#[test]
fn parked_upload_is_refused_without_a_lease() {
    let mut host = Host::warm(config());
    let refused = upload(&mut host);
    let patient = upload(&mut host);
    host.now += 31 * SECOND;
    host.body(refused, b"", true);
    let call = host.call_to("/v1/lease").unwrap();
    host.done(call, Ok((503, br#"{"kind":"failing","retry_after_s":7}"#)));
    assert_eq!(host.status(refused), Some(503));
    let late = host.response_head(refused, false, &FromEnvoy(503));
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
fn upload_of_unannounced_length_is_never_parked() {
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
fn refused_lease_gives_reason_and_retry_time() {
    let mut host = Host::new(config());
    host.tick(0);
    host.respond("/v1/changes", &changes(1, &[]));
    let id = host.get(&key(1));
    host.respond("/v1/verify", &verified(1, Some(verdict("alice"))));
    let call = host.call_to("/v1/lease").unwrap();
    host.done(call, Ok((429, br#"{"kind":"wake_budget","retry_after_s":77}"#)));
    assert_eq!(host.status(id), Some(429));
    assert_eq!(value(&reply(&host, id).headers, "retry-after"), Some("77"));
}

#[test]
fn without_orchestrator_the_tenant_names_the_cluster() {
    let mut host = Host::new(FilterConfig::default());
    host.tick(0);
    host.respond("/v1/changes", &changes(1, &[]));
    let id = host.get(&key(1));
    host.respond("/v1/verify", &verified(1, Some(verdict("alice"))));
    assert_eq!(value(forwarded(&host, id), "x-sq-cluster"), Some("sq/alice"));
    assert!(!host.made.contains_key("/v1/lease"));
}

#[test]
fn clock_step_backwards_ends_all_leases() {
    let mut host = Host::warm(config());
    host.now -= 60 * SECOND;
    let id = host.get(&key(1));
    assert!(!host.is_forwarded(id));
    host.tick(6 * SECOND);
    let id = host.get(&key(1));
    assert_eq!((host.seen(id), host.made["/v1/lease"]), (&Seen::Waiting, 2));
}

#[test]
fn waiter_of_a_failed_renewal_wakes_the_tenant() {
    let mut host = Host::warm(config());
    let first = host.get(&key(1));
    host.end(first);
    host.tick(16 * SECOND);
    host.now += 15 * SECOND;
    let id = host.get(&key(1));
    assert_eq!(host.seen(id), &Seen::Waiting, "the lease has expired, its renewal is in flight");
    let asleep = br#"{"kind":"asleep","retry_after_s":1}"#;
    let renewal = host.call_to("/v1/lease").expect("a renewal");
    host.done(renewal, Ok((503, asleep)));
    host.respond("/v1/lease", &granted("alice", 30_000));
    assert!(host.is_forwarded(id));
}
