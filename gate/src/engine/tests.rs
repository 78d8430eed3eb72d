//! Rules of the engine, one test each; helpers of all its tests.

use self::test_host::{
    FromSq, Host, MS, SECOND, Seen, changes, config, epoch, granted, hash, key, verdict, verified,
};
use super::{Origin, ResponseHead, metric_names};
use crate::effect::{Effect, Headers, Reply, StreamId};
use protocol::{ChangesResponse, FilterConfig, TenantStatus, Verdict};
#[cfg(target_family = "wasm")]
use wasm_bindgen_test::wasm_bindgen_test as test;

mod doubts;
mod keys;
mod leases;
mod limits;
mod properties;
mod responses;
mod revised;
mod revocation;
mod test_host;

fn value<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers.iter().find(|(n, _)| *n == name).map(|(_, value)| value.as_ref())
}

fn reply(host: &Host, id: StreamId) -> &Reply {
    match host.seen(id) {
        Seen::Answered(reply) => reply,
        other => panic!("not answered: {other:?}"),
    }
}

fn forwarded(host: &Host, id: StreamId) -> &Headers {
    match host.seen(id) {
        Seen::Forwarded(headers) => headers,
        other => panic!("not forwarded: {other:?}"),
    }
}

/// The head of a response that Envoy made, with this status.
pub(super) struct FromEnvoy(pub(super) u16);

/// The head of Envoy's 503 to a request that did not reach SQ.
pub(super) struct NotReached(pub(super) Origin);

impl ResponseHead for NotReached {
    fn status(&self) -> u16 {
        503
    }

    fn content_length(&self) -> Option<u64> {
        None
    }

    fn origin(&self) -> Origin {
        self.0
    }
}

impl ResponseHead for FromEnvoy {
    fn status(&self) -> u16 {
        self.0
    }

    fn content_length(&self) -> Option<u64> {
        None
    }

    fn origin(&self) -> Origin {
        Origin::Envoy
    }
}

#[test]
fn request_without_key_is_refused_without_a_call() {
    let mut host = Host::new(config());
    let none = host.request("GET", "/api/v2/toc?p=index", &[], true);
    assert_eq!(host.status(none), Some(401));
    assert_eq!(value(&reply(&host, none).headers, "www-authenticate"), Some("Bearer realm=\"sq\""));
    let bad = host.get("Bearer nonsense");
    let challenge = value(&reply(&host, bad).headers, "www-authenticate").unwrap();
    assert!(challenge.contains("error=\"invalid_token\""), "{challenge}");
    let two = [("authorization", key(1)), ("x-sq-api-key", key(2))];
    let two: Vec<(&str, &str)> = two.iter().map(|(name, key)| (*name, key.as_str())).collect();
    let two = host.request("GET", "/api/v2/toc?p=index", &two, true);
    assert_eq!(host.status(two), Some(400));
    let challenge = value(&reply(&host, two).headers, "www-authenticate").unwrap();
    assert!(challenge.contains("error=\"invalid_request\""), "{challenge}");
    assert!(host.made.is_empty());
}

#[test]
fn warm_request_makes_no_call() {
    let mut host = Host::warm(config());
    let id = host.get(&key(1));
    let headers = forwarded(&host, id);
    assert_eq!(value(headers, "x-sq-cluster"), Some("sq/alice"));
    assert_eq!(value(headers, "x-sq-response-timing"), Some("auth;desc=hit, wake;desc=none"));
    assert_eq!((host.made["/v1/verify"], host.made["/v1/lease"]), (1, 1));
}

#[test]
fn client_headers_are_never_forwarded() {
    let mut host = Host::warm(config());
    let spoofed = [
        ("authorization", &*key(1)),
        ("x-sq-cluster", "sq/bob"),
        ("x-sq-response-type", "text/html"),
        ("authorization-foo", "k"),
        ("x-envoy-original-path", "/"),
        ("cookie", "c"),
    ];
    let id = host.request("HEAD", "/api/v2/toc?p=index", &spoofed, true);
    let headers = forwarded(&host, id);
    let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    assert_eq!(value(headers, "x-sq-cluster"), Some("sq/alice"));
    assert_eq!(value(headers, ":method"), Some("GET"));
    for name in ["authorization", "authorization-foo", "cookie", "x-envoy-original-path"] {
        assert!(!names.contains(&name), "{name} was passed on");
    }
    assert!(!format!("{headers:?}").contains(&key(1)));
    for name in &names {
        assert_eq!(names.iter().filter(|n| *n == name).count(), 1, "{name} twice");
    }
}

#[test]
fn first_requests_share_one_verification_and_one_lease() {
    let mut host = Host::new(config());
    host.tick(0);
    host.respond("/v1/changes", &changes(1, &[]));
    let ids: Vec<StreamId> = (0..200).map(|_| host.get(&key(1))).collect();
    host.respond("/v1/verify", &verified(1, Some(verdict("alice"))));
    host.respond("/v1/lease", &granted("alice", 30_000));
    // The bucket of the free tier lets 50 through; the rest is refused, none is left waiting.
    let passed = ids.iter().filter(|id| host.is_forwarded(**id)).count();
    let limited = ids.iter().filter(|id| host.status(**id) == Some(429)).count();
    assert_eq!((passed, limited), (50, 150));
    assert_eq!((host.made["/v1/verify"], host.made["/v1/lease"]), (1, 1));
}

#[test]
fn encoded_body_is_refused() {
    let mut host = Host::warm(config());
    let path = "/api/v2/update?p=index&c=1.1.1/1.1.1/1.1.2";
    let auth = key(1);
    for (coding, taken) in [("gzip", false), ("Identity", true), ("identity, br", false)] {
        let headers = [("authorization", &*auth), ("content-encoding", coding)];
        let id = host.request("POST", path, &headers, false);
        assert_eq!(host.is_forwarded(id), taken, "{coding}");
        if !taken {
            assert_eq!(host.status(id), Some(415), "{coding}");
            assert_eq!(value(&reply(&host, id).headers, "accept-encoding"), Some("identity"));
        }
    }
}

#[test]
fn refusals_are_counted_by_kind() {
    let mut host = Host::warm(config());
    let _ = host.gate.take_metrics();
    host.request("GET", "/api/v2/nothing", &[("authorization", &*key(1))], true);
    host.get("Bearer nonsense");
    let counts: Vec<u64> = host.gate.take_metrics().collect();
    let names = metric_names();
    assert_eq!(names.len(), counts.len());
    let counted: Vec<&str> = names
        .iter()
        .zip(counts)
        .filter(|(name, count)| *count > 0 && name.starts_with("sq_gate.refused."))
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(counted, ["sq_gate.refused.malformed-key", "sq_gate.refused.unknown-endpoint"]);
}

#[test]
fn overdue_request_gets_503() {
    let mut host = Host::new(config());
    host.tick(0);
    let id = host.get(&key(1));
    host.tick(20 * SECOND);
    assert_eq!(host.status(id), Some(503));
}

#[test]
fn own_usage_neither_wakes_nor_counts() {
    let mut host = Host::warm(config());
    host.tick(2 * SECOND);
    host.respond("/v1/usage", br#"{"sequence":1}"#);
    let id = host.request("GET", "/api/v2/usage", &[("authorization", &key(1))], true);
    host.respond("/v1/usage/alice", br#"{"day":1}"#);
    assert_eq!(reply(&host, id).body, r#"{"day":1}"#);
    host.end(id);
    host.tick(2 * SECOND);
    let report = &host.calls[&host.call_to("/v1/usage").unwrap()].0;
    assert!(report.body.as_deref().unwrap().contains(r#""rows":[]"#), "it was counted: {report:?}");
}

#[test]
fn refused_body_gets_exactly_one_reply() {
    let mut host = Host::warm(config());
    let headers = [("authorization", &*key(1)), ("content-length", "9")];
    let id = host.request("POST", "/api/v2/update?p=index&c=1.1.1/1.1.1/1.1.2", &headers, false);
    assert!(host.is_forwarded(id));
    host.body(id, b"ab\x17", false);
    assert_eq!(host.status(id), Some(400));
    let refused = host.seen(id).clone();
    host.body(id, b"cd\x17", true);
    assert_eq!(host.seen(id), &refused);
    host.end(id);
    assert_eq!(host.gate.streams.len(), 0);
}

#[test]
fn preflight_needs_no_key() {
    let mut host = Host::new(config());
    let headers = [("origin", "https://a"), ("access-control-request-method", "POST")];
    let id = host.request("OPTIONS", "/api/v2/update", &headers, true);
    assert_eq!(host.status(id), Some(204));
    assert_eq!(value(&reply(&host, id).headers, "access-control-allow-origin"), Some("*"));
    assert_eq!(value(&reply(&host, id).headers, "server-timing"), Some("auth;desc=none"));
}

#[test]
fn options_and_pages_need_no_key() {
    let mut host = Host::new(config());
    let id = host.request("OPTIONS", "/api/v2/delete?p=index", &[], true);
    assert_eq!(host.status(id), Some(204));
    assert_eq!(value(&reply(&host, id).headers, "allow"), Some("GET, POST, DELETE, OPTIONS"));
    for method in ["GET", "HEAD"] {
        let id = host.request(method, "/healthz", &[], true);
        assert_eq!((host.status(id), &*reply(&host, id).body), (Some(200), "ok\n"));
    }
    for (method, path) in [("OPTIONS", "/other"), ("POST", "/healthz"), ("GET", "/")] {
        let id = host.request(method, path, &[], true);
        assert_eq!(host.status(id), Some(401), "{method} {path}");
    }
}

#[test]
fn grpc_is_refused_before_the_key_is_looked_up() {
    let mut host = Host::warm(config());
    let headers = [("authorization", &*key(1)), ("content-type", "application/grpc+proto")];
    let id = host.request("POST", "/api/v2/update?p=index&c=1.1.1/1.1.1/1.1.2", &headers, false);
    assert_eq!(host.status(id), Some(415));
}

#[test]
fn shadow_mode_marks_suppressed_refusals() {
    let mut host = Host::warm(FilterConfig { shadow: true, ..config() });
    let ids: Vec<StreamId> = (0..100).map(|_| host.get(&key(1))).collect();
    assert!(ids.iter().all(|id| host.is_forwarded(*id)));
    let last = forwarded(&host, ids[99]);
    assert_eq!(value(last, "x-sq-response-would-refuse"), Some("rate-limited"));
}

#[test]
fn failing_call_settles_its_request_within_the_callback() {
    let mut host = Host::warm(config());
    host.calls_fail = true;
    let unknown = host.get(&key(2));
    assert_eq!(host.status(unknown), Some(503));
    // A cached verdict in doubt is used after its verification has failed.
    host.calls_fail = false;
    let reset = ChangesResponse { epoch: epoch(), revision: 5, reset: true, changed: vec![] };
    host.respond("/v1/changes", &serde_json::to_vec(&reset).unwrap());
    host.calls_fail = true;
    let path = "/api/v2/update?p=index&c=1.1.1/1.1.1/1.1.2";
    let headers = [("authorization", &*key(1)), ("content-length", "4")];
    let known = host.request("POST", path, &headers, false);
    assert!(host.is_forwarded(known), "{:?}", host.seen(known));
}

#[test]
fn unwritable_head_gets_500() {
    let mut host = Host::warm(config());
    let id = host.get(&key(1));
    host.gate.on_forward_failed(id);
    let Some(Effect::Reply(_, reply)) = host.gate.next_effect() else {
        panic!("the client gets no response")
    };
    assert_eq!(reply.status, 500);
    assert!(value(&reply.headers, "content-type").is_some());
    host.tick(16 * SECOND);
    host.respond("/v1/lease", &granted("alice", 30_000));
    host.tick(16 * SECOND);
    host.tick(16 * SECOND);
    assert_eq!(host.made["/v1/lease"], 2, "it still counts as in flight");
}

#[test]
fn nested_event_gets_only_its_own_effects() {
    let mut host = Host::warm(config());
    let [outer, nested] = [1, 2].map(|id| Effect::Resume(StreamId(id)));
    host.gate.effects.push_back(outer.clone());
    let earlier = host.gate.pending_effects();
    host.gate.effects.push_back(nested.clone());
    assert_eq!(host.gate.next_effect_after(earlier), Some(nested));
    assert_eq!(host.gate.next_effect_after(earlier), None);
    assert_eq!(host.gate.next_effect(), Some(outer));
}
