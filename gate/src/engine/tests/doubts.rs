//! Leases of tenants that Envoy does not reach.

#[cfg(target_family = "wasm")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;

/// A request for a lease that was refused, as the orchestrator's JSON.
const ASLEEP: &[u8] = br#"{"kind":"asleep","retry_after_s":1}"#;

/// A VM whose lease for alice is a second old.
fn warm() -> Host {
    let mut host = Host::warm(config());
    host.tick(SECOND);
    host
}

/// Sends a request that Envoy then fails.
fn fails(host: &mut Host, origin: Origin) {
    let id = host.get(&key(1));
    assert!(host.is_forwarded(id), "{:?}", host.seen(id));
    assert_eq!(host.response_head(id, true, &NotReached(origin)), None);
    host.end(id);
}

#[test]
fn details_of_envoy_name_the_sender() {
    for (details, origin) in [
        ("via_upstream", Origin::Sq),
        ("cluster_not_found", Origin::NoCluster),
        ("no_healthy_upstream", Origin::Unreachable),
        ("upstream_reset_before_response_started{remote_connection_failure}", Origin::Unreachable),
        ("upstream_reset_before_response_started{connection_termination}", Origin::Unreachable),
        ("upstream_reset_before_response_started{overflow}", Origin::Envoy),
        ("response_timeout", Origin::Envoy),
        ("", Origin::Envoy),
    ] {
        assert_eq!(Origin::of(details.as_bytes()), origin, "{details}");
    }
}

#[test]
fn missing_cluster_ends_its_lease() {
    let mut host = warm();
    fails(&mut host, Origin::NoCluster);
    let next = host.get(&key(1));
    assert_eq!(host.seen(next), &Seen::Waiting);
    let call = host.call_to("/v1/lease").expect("the lease is requested again");
    assert!(host.calls[&call].0.body.as_deref().unwrap().contains("\"renew_only\":false"));
    host.respond("/v1/lease", &granted("alice", 30_000));
    assert!(host.is_forwarded(next));
}

#[test]
fn unreachable_tenant_is_asked_about_at_once() {
    let mut host = warm();
    fails(&mut host, Origin::Unreachable);
    let next = host.get(&key(1));
    assert!(host.is_forwarded(next), "the lease goes on until the orchestrator has answered");
    host.tick(20 * MS);
    let call = host.call_to("/v1/lease").expect("the lease is requested again");
    host.done(call, Ok((503, ASLEEP)));
    let woken = host.get(&key(1));
    assert_eq!(host.seen(woken), &Seen::Waiting, "a lease on nothing goes on");
    host.respond("/v1/lease", &granted("alice", 30_000));
    assert!(host.is_forwarded(woken));
}

#[test]
fn doubted_lease_outlasts_an_orchestrators_absence() {
    let mut host = warm();
    fails(&mut host, Origin::Unreachable);
    host.tick(20 * MS);
    host.fail("/v1/lease");
    let next = host.get(&key(1));
    assert!(host.is_forwarded(next), "no orchestrator, no request: {:?}", host.seen(next));
}

#[test]
fn failures_of_one_tenant_cost_few_calls() {
    let mut host = warm();
    host.made.remove("/v1/lease");
    for _ in 0..100 {
        host.tick(10 * MS);
        if host.call_to("/v1/lease").is_some() {
            host.respond("/v1/lease", &granted("alice", 30_000));
        }
        let id = host.get(&key(1));
        if host.is_forwarded(id) {
            host.response_head(id, true, &NotReached(Origin::Unreachable));
        }
        host.end(id);
    }
    let calls = host.made["/v1/lease"];
    assert!((2..=5).contains(&calls), "{calls} requests for leases in a second");
}

#[test]
fn failure_of_before_a_lease_does_not_end_it() {
    let mut host = warm();
    let old = host.get(&key(1));
    host.tick(16 * SECOND);
    host.respond("/v1/lease", &granted("alice", 30_000));
    host.tick(SECOND);
    host.response_head(old, true, &NotReached(Origin::NoCluster));
    let next = host.get(&key(1));
    assert!(host.is_forwarded(next), "{:?}", host.seen(next));
}

#[test]
fn other_failures_leave_the_lease() {
    let mut host = warm();
    for _ in 0..3 {
        fails(&mut host, Origin::Envoy);
    }
    host.tick(20 * MS);
    assert_eq!(host.made["/v1/lease"], 1);
}
