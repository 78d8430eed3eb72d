//! Verdicts: caching, sharing, revocation, and the budget for unknown keys.

#[cfg(target_family = "wasm")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use protocol::{Epoch, VerifyResponse};

use super::*;
use crate::effect::CallFailed;

#[test]
fn revoked_key_is_refused_after_feed_names_it() {
    let mut host = Host::warm(config());
    host.respond("/v1/changes", &changes(2, &[hash(1)]));
    let id = host.get(&key(1));
    host.respond("/v1/verify", &verified(2, None));
    assert_eq!(host.status(id), Some(401));
    let again = host.get(&key(1));
    assert_eq!(host.status(again), Some(401), "remembered for a while");
    assert_eq!(host.made["/v1/verify"], 2);
}

#[test]
fn verdict_older_than_a_change_is_verified_again() {
    let mut host = Host::warm(config());
    let id = host.get(&key(2));
    host.respond("/v1/changes", &changes(2, &[hash(2)]));
    host.respond("/v1/verify", &verified(1, Some(verdict("bob"))));
    assert_eq!(host.seen(id), &Seen::Waiting, "the old verdict was used");
    host.respond("/v1/verify", &verified(2, None));
    assert_eq!(host.status(id), Some(401));
}

#[test]
fn verdicts_are_shared_between_vms_until_changed() {
    let mut host = Host::warm(config());
    let mut other = Host::after(config(), host.shared.clone(), host.now);
    other.tick(0);
    other.respond("/v1/changes", &changes(1, &[]));
    other.get(&key(1));
    assert!(!other.made.contains_key("/v1/verify"));
    host.respond("/v1/changes", &changes(2, &[hash(1)]));
    let mut third = Host::after(config(), host.shared.clone(), host.now);
    third.tick(0);
    third.respond("/v1/changes", &changes(2, &[]));
    third.get(&key(1));
    assert_eq!(third.made["/v1/verify"], 1);
}

#[test]
fn slow_vm_cannot_restore_a_revoked_key() {
    let mut host = Host::warm(config());
    let mut slow = Host::after(config(), host.shared.clone(), host.now);
    slow.tick(0);
    slow.get(&key(2));
    host.respond("/v1/changes", &changes(2, &[hash(2)]));
    slow.shared = host.shared.clone();
    slow.respond("/v1/verify", &verified(1, Some(verdict("bob"))));
    let mut third = Host::after(config(), slow.shared.clone(), host.now);
    third.tick(0);
    third.respond("/v1/changes", &changes(2, &[]));
    third.get(&key(2));
    assert_eq!(third.made["/v1/verify"], 1, "the tombstone was overwritten");
}

#[test]
fn suspended_tenant_and_expired_key_are_refused() {
    let mut host = Host::warm(config());
    let id = host.get(&key(2));
    let suspended = Verdict { status: TenantStatus::Suspended, ..verdict("bob") };
    host.respond("/v1/verify", &verified(1, Some(suspended)));
    assert_eq!(host.status(id), Some(403));
    let id = host.get(&key(3));
    let ends = Verdict { expires_s: Some(host.now / SECOND + 5), ..verdict("alice") };
    host.respond("/v1/verify", &verified(1, Some(ends)));
    assert!(host.is_forwarded(id));
    host.now += 5 * SECOND;
    let id = host.get(&key(3));
    assert_eq!(host.status(id), Some(401));
}

#[test]
fn cached_keys_outlive_the_relay_by_the_grace() {
    let grace = FilterConfig { verdict_grace_ms: 60_000, ..config() };
    let mut host = Host::warm(grace);
    host.fail("/v1/changes");
    host.tick(30 * SECOND);
    let known = host.get(&key(1));
    let unknown = host.get(&key(2));
    assert_ne!(host.status(known), Some(503));
    host.fail("/v1/verify");
    assert_eq!(host.status(unknown), Some(503));
    assert!(value(&reply(&host, unknown).headers, "retry-after").is_some());
    let asked = host.made["/v1/verify"];
    for _ in 0..10 {
        let id = host.get(&key(2));
        assert_eq!(host.status(id), Some(503));
    }
    assert_eq!(host.made["/v1/verify"], asked, "verified while the relay is down");
    while let Some(id) = host.call_to("/v1/changes") {
        host.done(id, Err(CallFailed));
        host.tick(31 * SECOND);
        if host.now > 1_800_000_100 * SECOND {
            break;
        }
    }
    let id = host.get(&key(1));
    assert!(!host.is_forwarded(id), "served after the grace");
}

#[test]
fn flood_of_unknown_keys_stays_within_the_budget() {
    let mut host = Host::warm(config());
    for n in 0..1_000_u32 {
        let text = format!("pmb-v1-{n:032x}");
        host.get(&text);
    }
    assert!(host.made["/v1/verify"] <= 1 + 100, "{}", host.made["/v1/verify"]);
}

/// A VM that replaces `host`, before the relay has responded to it.
fn reloaded(host: &Host) -> Host {
    let mut vm = Host::after(config(), host.shared.clone(), host.now);
    vm.tick(0);
    vm
}

#[test]
fn reloaded_vm_verifies_until_its_feed_responds() {
    let host = Host::warm(config());
    let mut vm = reloaded(&host);
    let id = vm.get(&key(1));
    assert_eq!(vm.seen(id), &Seen::Waiting, "served by what another VM has heard");
    vm.respond("/v1/verify", &verified(2, None));
    assert_eq!(vm.status(id), Some(401));
    let mut vm = reloaded(&host);
    vm.respond("/v1/changes", &changes(1, &[]));
    vm.get(&key(1));
    assert!(!vm.made.contains_key("/v1/verify"), "the feed has responded");
}

#[test]
fn reloaded_vm_uses_grace_when_its_feed_fails() {
    let mut host = Host::warm(FilterConfig { verdict_grace_ms: 60_000, ..config() });
    host.now += 30 * SECOND;
    let grace = FilterConfig { verdict_grace_ms: 60_000, ..config() };
    let mut vm = Host::after(grace, host.shared.clone(), host.now);
    vm.tick(0);
    vm.fail("/v1/changes");
    vm.get(&key(1));
    assert!(!vm.made.contains_key("/v1/verify"));
    vm.now += 31 * SECOND;
    vm.get(&key(1));
    assert_eq!(vm.made["/v1/verify"], 1, "believed after the grace");
}

#[test]
fn poll_without_waiting_has_the_ordinary_timeout() {
    let mut host = Host::new(config());
    host.tick(0);
    let timeout = |host: &Host| host.calls[&host.call_to("/v1/changes").unwrap()].0.timeout_ms;
    assert_eq!(timeout(&host), 2_000);
    host.respond("/v1/changes", &changes(1, &[]));
    assert_eq!(timeout(&host), 22_000);
    host.fail("/v1/changes");
    host.tick(SECOND);
    assert_eq!(timeout(&host), 2_000);
}

#[test]
fn failing_feed_has_each_request_verified_past_grace() {
    let mut host = Host::warm(FilterConfig { verdict_grace_ms: 60_000, ..config() });
    host.fail("/v1/changes");
    for _ in 0..61 {
        host.tick(SECOND);
        if host.call_to("/v1/changes").is_some() {
            host.fail("/v1/changes");
        }
    }
    let before = host.made["/v1/verify"];
    for n in 1..=3 {
        host.get(&key(1));
        assert_eq!(
            host.made["/v1/verify"],
            before + n,
            "responses to other calls extended the grace"
        );
        host.respond("/v1/verify", &verified(1, Some(verdict("alice"))));
    }
}

fn reset(revision: u64) -> Vec<u8> {
    let answer = ChangesResponse { epoch: epoch(), revision, reset: true, changed: Vec::new() };
    serde_json::to_vec(&answer).unwrap()
}

#[test]
fn doubtful_verdict_is_used_for_the_grace() {
    let mut host = Host::warm(FilterConfig { verdict_grace_ms: 60_000, ..config() });
    host.respond("/v1/changes", &reset(5));
    let id = host.get(&key(1));
    host.fail("/v1/verify");
    assert!(host.is_forwarded(id), "the relay can't say that it is wrong");
    for _ in 0..6 {
        host.tick(10 * SECOND);
        host.respond("/v1/changes", &changes(5, &[]));
    }
    let id = host.get(&key(1));
    host.fail("/v1/verify");
    assert_eq!(host.status(id), Some(503));
}

#[test]
fn verdict_of_foreign_epoch_is_verified_each_time() {
    let mut host = Host::warm(config());
    let other = VerifyResponse {
        epoch: Epoch("other".to_owned()),
        revision: 9,
        verdict: Some(verdict("bob")),
    };
    let other = serde_json::to_vec(&other).unwrap();
    for n in 2..5 {
        host.get(&key(2));
        assert_eq!(host.made["/v1/verify"], n);
        host.respond("/v1/verify", &other);
    }
    // The relay was restarted, and now the feed follows its new epoch.
    let answer = ChangesResponse {
        epoch: Epoch("other".to_owned()),
        revision: 9,
        reset: false,
        changed: vec![],
    };
    host.respond("/v1/changes", &serde_json::to_vec(&answer).unwrap());
    host.get(&key(2));
    assert_eq!(host.made["/v1/verify"], 4);
}

/// Sends requests with unknown keys until the budget for them is used up.
fn exhaust(host: &mut Host) {
    for n in 0..100_u32 {
        host.get(&format!("pmb-v1-{n:032x}"));
    }
    let id = host.get("pmb-v1-ffffffffffffffffffffffffffffffff");
    assert_eq!(host.status(id), Some(429));
}

#[test]
fn changed_keys_need_no_budget() {
    let mut host = Host::warm(FilterConfig { verify_per_s: 4, ..config() });
    exhaust(&mut host);
    let before = host.made["/v1/verify"];
    host.respond("/v1/changes", &changes(2, &[hash(1), hash(2)]));
    for n in 1..=2 {
        let id = host.get(&key(n));
        assert_eq!(host.seen(id), &Seen::Waiting, "a key that exists is kept out");
    }
    assert_eq!(host.made["/v1/verify"], before + 2);
}

#[test]
fn one_address_cannot_exhaust_the_budget() {
    let mut host = Host::warm(FilterConfig { verify_per_s: 40, ..config() });
    exhaust(&mut host);
    let asked = host.made["/v1/verify"];
    assert_eq!(asked, 10, "one address gets a quarter, the first request here included");
    host.client = "192.0.2.9:80".to_owned();
    let id = host.get(&key(2));
    assert_eq!(host.seen(id), &Seen::Waiting);
    assert_eq!(host.made["/v1/verify"], asked + 1);
}

#[test]
fn vm_instances_share_one_budget() {
    let mut host = Host::warm(FilterConfig { verify_per_s: 4, ..config() });
    exhaust(&mut host);
    let few = FilterConfig { verify_per_s: 4, ..config() };
    let mut vm = Host::after(few, host.shared.clone(), host.now);
    let id = vm.get(&key(3));
    assert_eq!(vm.status(id), Some(429));
}
