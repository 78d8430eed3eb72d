//! Responses of SQ and of Envoy on their way to the client.

#[cfg(target_family = "wasm")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;

/// A forwarded request.
fn sent(host: &mut Host, method: &str, path: &str) -> StreamId {
    let id = host.request(method, path, &[("authorization", &*key(1))], true);
    assert!(host.is_forwarded(id), "{path}: {:?}", host.seen(id));
    id
}

#[test]
fn head_request_gets_no_body() {
    let mut host = Host::warm(config());
    let id = sent(&mut host, "HEAD", "/api/v2/toc?p=index");
    host.response_head(id, false, &FromSq { status: 200, content_length: 3 });
    let body = host.gate.on_response_body(id, 3, true, || b"toc".to_vec());
    assert_eq!(body, Some(Vec::new()));
}

#[test]
fn empty_export_has_the_usual_headers() {
    let mut host = Host::warm(config());
    let id = sent(&mut host, "GET", "/api/v2/json-export?p=index");
    let empty = FromSq { status: 200, content_length: 0 };
    let Some(Effect::Reply(_, reply)) = host.response_head(id, true, &empty) else {
        panic!("an empty phext is no JSON")
    };
    assert_eq!((reply.status, reply.body.as_str()), (200, "[]\n"));
    for (name, value) in [
        ("content-type", "application/json"),
        ("x-content-type-options", "nosniff"),
        ("content-security-policy", "default-src 'none'; sandbox"),
        ("cache-control", "no-store"),
        ("access-control-allow-origin", "*"),
        ("server-timing", "auth;desc=hit, wake;desc=none"),
    ] {
        assert_eq!(self::value(&reply.headers, name), Some(value), "{name}");
    }
    for name in ["access-control-expose-headers", "ratelimit", "ratelimit-policy"] {
        assert!(self::value(&reply.headers, name).is_some(), "{name} is missing");
    }
}

#[test]
fn replaced_response_has_the_shadow_mark() {
    let mut host = Host::warm(FilterConfig { shadow: true, ..config() });
    for _ in 0..99 {
        sent(&mut host, "GET", "/api/v2/json-export?p=index");
    }
    let last = sent(&mut host, "GET", "/api/v2/json-export?p=index");
    let empty = FromSq { status: 200, content_length: 0 };
    let Some(Effect::Reply(_, reply)) = host.response_head(last, true, &empty) else {
        panic!("an empty phext is no JSON")
    };
    assert_eq!(value(&reply.headers, "x-sq-would-refuse"), Some("rate-limited"));
}

#[test]
fn errors_about_sq_itself_become_problems() {
    let mut host = Host::warm(config());
    for (status, told, kind, retry) in [
        (401, 503, "database-unavailable", Some("1")),
        (503, 503, "database-unavailable", Some("1")),
        (403, 502, "database-failed", None),
        (500, 502, "database-failed", None),
    ] {
        let id = sent(&mut host, "GET", "/api/v2/query?p=index&set=1.1.1/1.1.1/1.1.1");
        let head = FromSq { status, content_length: 12 };
        let Some(Effect::Reply(_, reply)) = host.response_head(id, false, &head) else {
            panic!("{status} passes as SQ gave it")
        };
        assert_eq!(reply.status, told);
        assert!(reply.body.contains(&format!("urn:sq:problem:{kind}")), "{}", reply.body);
        assert_eq!(value(&reply.headers, "content-type"), Some("application/problem+json"));
        assert_eq!(value(&reply.headers, "retry-after"), retry);
        host.end(id);
    }
}

#[test]
fn other_errors_of_sq_are_plain_text() {
    let mut host = Host::warm(config());
    for status in [400, 404] {
        let id = sent(&mut host, "GET", "/api/v2/query?p=index&set=1.1.1/1.1.1/1.1.1");
        let head = FromSq { status, content_length: 12 };
        let Some(Effect::SetResponseHeaders(_, headers)) = host.response_head(id, false, &head)
        else {
            panic!("{status} is said to be JSON")
        };
        assert_eq!(value(&headers, "content-type"), Some("text/plain; charset=utf-8"));
    }
}

#[test]
fn response_of_envoy_passes_unchanged() {
    let mut host = Host::warm(config());
    let id = sent(&mut host, "GET", "/api/v2/toc?p=index");
    assert_eq!(host.response_head(id, false, &FromEnvoy(503)), None);
}

/// Counters of this VM since its first request.
fn counters(host: &mut Host) -> protocol::Counters {
    host.tick(SECOND);
    let call = host.call_to("/v1/usage").unwrap();
    let report = host.calls[&call].0.body.clone().unwrap();
    let report: protocol::UsageReport = serde_json::from_str(&report).unwrap();
    report.rows[0].counters.clone()
}

#[test]
fn failed_requests_use_no_quota() {
    let mut host = Host::warm(config());
    for status in [503, 504, 429, 413, 408, 400] {
        let id = sent(&mut host, "GET", "/api/v2/toc?p=index");
        host.response_head(id, false, &FromEnvoy(status));
        host.end(id);
    }
    let id = sent(&mut host, "GET", "/api/v2/toc?p=index");
    host.response_head(id, false, &FromSq { status: 500, content_length: 5 });
    host.end(id);
    // A refusal by SQ that is about the request counts as served.
    let id = sent(&mut host, "GET", "/api/v2/toc?p=index");
    host.response_head(id, false, &FromSq { status: 404, content_length: 5 });
    host.end(id);
    let counters = counters(&mut host);
    assert_eq!(
        (counters.reads, counters.writes),
        (2, 0),
        "the first request, and the one that SQ refused"
    );
    let names: Vec<&str> = counters.refused.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "bad-request",
            "body-too-large",
            "database-failed",
            "database-timeout",
            "database-unavailable",
            "rate-limited",
            "request-timeout"
        ]
    );
}

#[test]
fn aborted_upload_is_not_a_write() {
    let mut host = Host::warm(config());
    let headers = [("authorization", &*key(1)), ("content-length", "9")];
    let id = host.request("POST", "/api/v2/update?p=index&c=1.1.1/1.1.1/1.1.2", &headers, false);
    host.body(id, b"half", false);
    host.end(id);
    let counters = counters(&mut host);
    assert_eq!((counters.writes, counters.refused.get("client-gone")), (0, Some(&1)));
}

#[test]
fn upload_that_fails_before_its_end_is_refused() {
    let mut host = Host::warm(config());
    let headers = [("authorization", &*key(1)), ("content-length", "4")];
    let id = host.request("POST", "/api/v2/update?p=index&c=1.1.1/1.1.1/1.1.2", &headers, false);
    host.body(id, b"slow", false);
    // Envoy's time-out comes before the end of the body, which the ended lease then parks.
    host.response_head(id, false, &FromEnvoy(408));
    host.tick(16 * SECOND);
    host.fail("/v1/lease");
    host.fail("/v1/usage");
    host.now += 15 * SECOND;
    host.body(id, b"", true);
    assert_eq!(host.seen(id), &Seen::Parked);
    host.end(id);
    let counters = counters(&mut host);
    assert_eq!((counters.writes, counters.refused.get("request-timeout")), (0, Some(&1)));
}

#[test]
fn write_with_a_precondition_is_refused() {
    let mut host = Host::warm(config());
    let at = "p=index&c=1.1.1/1.1.1/1.1.2";
    for header in ["if-match", "if-none-match"] {
        let headers = [("authorization", &*key(1)), (header, "\"tag\"")];
        for (method, path) in [
            ("GET", format!("/api/v2/update?{at}&s=x")),
            ("GET", format!("/api/v2/insert?{at}&s=x")),
            ("DELETE", format!("/api/v2/delete?{at}")),
        ] {
            let id = host.request(method, &path, &headers, true);
            assert_eq!(host.status(id), Some(501), "{header}: {path}");
        }
        // A read may be answered in full.
        let id = host.request("GET", &format!("/api/v2/select?{at}"), &headers, true);
        assert!(host.is_forwarded(id));
    }
}

#[test]
fn unbuffered_body_of_unknown_length_is_refused() {
    for (buffered, status) in [(true, None), (false, Some(400))] {
        let mut host = Host::warm(FilterConfig { buffered, ..config() });
        let headers = [("authorization", &*key(1))];
        let path = "/api/v2/update?p=index&c=1.1.1/1.1.1/1.1.2";
        let id = host.request("POST", path, &headers, false);
        assert_eq!(host.status(id), status);
        // A stream that is left open without a body.
        let id =
            host.request("DELETE", "/api/v2/delete?p=index&c=1.1.1/1.1.1/1.1.2", &headers, false);
        assert!(host.is_forwarded(id));
    }
}

#[test]
fn bytes_out_are_those_the_client_gets() {
    let mut host = Host::warm(config());
    let id = sent(&mut host, "GET", "/api/v2/json-export?p=index");
    let sqs = br#"[{"coordinate":"1.1.1/1.1.1/1.1.1","text":"a"}]"#;
    let head = FromSq { status: 200, content_length: sqs.len() as u64 };
    assert_eq!(host.response_head(id, false, &head), Some(Effect::RemoveContentLength(id)));
    let out = host.gate.on_response_body(id, sqs.len(), true, || sqs.to_vec()).unwrap();
    assert_ne!(out.len(), sqs.len(), "the case must occur");
    host.end(id);
    let id = sent(&mut host, "GET", "/api/v2/checksum?p=index");
    host.response_head(id, false, &FromSq { status: 200, content_length: 3 });
    assert_eq!(host.gate.on_response_body(id, 3, true, || b"sum".to_vec()), None);
    host.end(id);
    assert_eq!(counters(&mut host).bytes_out, out.len() as u64 + 3);
}
