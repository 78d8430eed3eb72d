//! Verdicts that change while a request waits or its body takes its time.

#[cfg(target_family = "wasm")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use protocol::{Limits, TenantId};

use super::*;

/// Starts an upload of four bytes and sends all but their end.
fn upload(host: &mut Host) -> StreamId {
    let path = "/api/v2/insert?p=index&c=1.1.1/1.1.1/1.1.2";
    let headers = [("authorization", &*key(1)), ("content-length", "4")];
    let id = host.request("POST", path, &headers, false);
    assert!(host.is_forwarded(id));
    host.body(id, b"slow", false);
    id
}

fn suspended() -> Verdict {
    Verdict { status: TenantStatus::Suspended, ..verdict("alice") }
}

/// The changes feed names the key in the middle of an upload, whose end then waits for the verdict.
fn end_after_a_change(host: &mut Host, verdict: Option<Verdict>) -> StreamId {
    let id = upload(host);
    host.respond("/v1/changes", &changes(2, &[hash(1)]));
    host.body(id, b"", true);
    assert_eq!(host.seen(id), &Seen::Parked, "it is on its way to SQ");
    host.respond("/v1/verify", &verified(2, verdict));
    id
}

#[test]
fn upload_ended_after_a_suspension_is_refused() {
    let mut host = Host::warm(config());
    let id = end_after_a_change(&mut host, Some(suspended()));
    assert_eq!(host.status(id), Some(403));
    host.end(id);
    assert_eq!((host.gate.streams.len(), host.gate.streams.waiting()), (0, 0));
}

#[test]
fn upload_ended_after_a_revocation_is_refused() {
    let mut host = Host::warm(config());
    let id = end_after_a_change(&mut host, None);
    assert_eq!(host.status(id), Some(401));
    let known = upload_of_moved_key();
    assert_eq!(known, Some(401), "the key is another tenant's now");
}

/// Status of an upload whose key was given to another tenant.
fn upload_of_moved_key() -> Option<u16> {
    let mut host = Host::warm(config());
    let id = end_after_a_change(&mut host, Some(verdict("bob")));
    host.status(id)
}

#[test]
fn upload_ended_after_an_unrelated_change_passes() {
    let mut host = Host::warm(config());
    let id = end_after_a_change(&mut host, Some(verdict("alice")));
    assert!(host.is_forwarded(id), "{:?}", host.seen(id));
}

#[test]
fn upload_ended_after_its_key_expired_is_refused() {
    let mut host = Host::new(config());
    host.tick(0);
    host.respond("/v1/changes", &changes(1, &[]));
    let id = host.get(&key(1));
    let expires_s = Some(host.now / SECOND + 5);
    host.respond("/v1/verify", &verified(1, Some(Verdict { expires_s, ..verdict("alice") })));
    host.respond("/v1/lease", &granted("alice", 30_000));
    host.end(id);
    let id = upload(&mut host);
    host.tick(6 * SECOND);
    host.body(id, b"", true);
    assert_eq!(host.status(id), Some(401));
}

#[test]
fn upload_is_judged_by_the_limits_of_its_end() {
    for (limits, status) in [
        (Limits { body_bytes: 3, ..Limits::default() }, Some(413)),
        (Limits { storage_bytes: 3, ..Limits::default() }, Some(507)),
        (Limits { body_bytes: 4, storage_bytes: 4_000, ..Limits::default() }, None),
    ] {
        let mut host = Host::warm(config());
        let id = end_after_a_change(&mut host, Some(Verdict { limits, ..verdict("alice") }));
        assert_eq!(host.status(id), status);
    }
}

#[test]
fn upload_of_unknown_length_is_refused_in_doubt() {
    let mut host = Host::warm(config());
    let path = "/api/v2/update?p=index&c=1.1.1/1.1.1/1.1.2";
    let id = host.request("POST", path, &[("authorization", &*key(1))], false);
    host.body(id, b"slow", false);
    host.respond("/v1/changes", &changes(2, &[hash(1)]));
    host.body(id, b"", true);
    assert_eq!(host.status(id), Some(503), "its end can't wait for the verdict");
    host.respond("/v1/verify", &verified(2, Some(verdict("alice"))));
}

#[test]
fn wake_that_outlasts_a_suspension_serves_nothing() {
    let mut host = Host::new(config());
    host.tick(0);
    host.respond("/v1/changes", &changes(1, &[]));
    let id = host.get(&key(1));
    host.respond("/v1/verify", &verified(1, Some(verdict("alice"))));
    host.respond("/v1/changes", &changes(2, &[hash(1)]));
    host.respond("/v1/lease", &granted("alice", 30_000));
    host.respond("/v1/verify", &verified(2, Some(suspended())));
    assert_eq!(host.status(id), Some(403));
}

#[test]
fn verdict_of_another_epoch_lets_an_upload_end() {
    let mut host = Host::warm(config());
    let id = upload(&mut host);
    host.respond("/v1/changes", &changes(2, &[hash(1)]));
    host.body(id, b"", true);
    // The relay was restarted, which the feed has not noticed.
    let response = protocol::VerifyResponse {
        epoch: protocol::Epoch("next".to_owned()),
        revision: 1,
        verdict: Some(verdict("alice")),
    };
    let response = serde_json::to_vec(&response).unwrap();
    for _ in 0..3 {
        if host.call_to("/v1/verify").is_some() {
            host.respond("/v1/verify", &response);
        }
    }
    assert!(host.is_forwarded(id), "{:?}", host.seen(id));
    assert_eq!(
        host.gate.leases.verdict(&TenantId::parse("alice").unwrap()).unwrap().limits,
        Limits::default()
    );
}
