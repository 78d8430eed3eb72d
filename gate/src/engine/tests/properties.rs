//! Any events in any order: no panic, no stream settled twice, no stream left waiting.
//!
//! [`Host`] checks after each event that no stream is settled twice or before its callback has
//! returned, that no call is made twice for one key or tenant at the same time, and that each
//! response reaches its client once and whole.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::test_host::{
    Host, MS, SECOND, Seen, changes, config, granted, hash, key, verdict, verified,
};
use crate::effect::CallFailed;
#[cfg(target_family = "wasm")]
use wasm_bindgen_test::wasm_bindgen_test as test;

/// Fewer cases in node, where each takes longer.
const CASES: u32 = if cfg!(target_family = "wasm") { 64 } else { 512 };

#[derive(Debug, Clone)]
enum Event {
    Get(u8, &'static str),
    Post(u8, bool),
    Usage(u8),
    Head(Vec<(String, Vec<u8>)>, bool),
    End(usize),
    Body(usize, Vec<u8>, bool),
    Answer(usize, u8),
    Fail(usize),
    Garbage(usize, u16, Vec<u8>),
    Tick(u64),
    Back(u64),
    /// From now on calls fail while they are made, or no longer do.
    CallsFail(bool),
    /// SQ responds to a forwarded request.
    Sq(usize, u16, Vec<Vec<u8>>),
    /// The VM panics and is replaced.
    Reload,
}

fn header() -> impl Strategy<Value = (String, Vec<u8>)> {
    let name = prop_oneof![
        Just(":method".to_owned()),
        Just(":path".to_owned()),
        Just("authorization".to_owned()),
        Just("x-sq-api-key".to_owned()),
        Just("content-length".to_owned()),
        "[a-z:-]{0,12}",
    ];
    let value = prop_oneof![
        vec(any::<u8>(), 0..40),
        (0_u8..4).prop_map(|n| key(n).into_bytes()),
        Just(b"/api/v2/toc?p=index".to_vec()),
        Just(b"GET".to_vec()),
    ];
    (name, value)
}

const READS: &[&str] =
    &["toc", "json-export", "status", "get", "load", "HEAD toc", "HEAD json-export"];

/// A phext in pieces, or SQ's message that it cannot be read.
fn pieces() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let message = "Unable to open requested phext /d/index.phext: x (os error 2)";
    let piece = prop_oneof!["[ab\"\\\\\u{17}\u{1}\n]{0,8}", Just("x".repeat(600))];
    prop_oneof![
        3 => vec(piece.prop_map(String::into_bytes), 0..4),
        1 => (0..message.len()).prop_map(move |at| {
            let (left, right) = message.as_bytes().split_at(at);
            vec![left.to_vec(), right.to_vec()]
        }),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0_u8..4, select(READS)).prop_map(|(key, path)| Event::Get(key, path)),
        2 => (0_u8..4, any::<bool>()).prop_map(|(key, ends)| Event::Post(key, ends)),
        1 => (0_u8..4).prop_map(Event::Usage),
        1 => (vec(header(), 0..8), any::<bool>()).prop_map(|(h, ends)| Event::Head(h, ends)),
        3 => any::<usize>().prop_map(Event::End),
        2 => (any::<usize>(), vec(any::<u8>(), 0..8), any::<bool>())
            .prop_map(|(at, bytes, end)| Event::Body(at, bytes, end)),
        8 => (any::<usize>(), any::<u8>()).prop_map(|(at, how)| Event::Answer(at, how)),
        2 => any::<usize>().prop_map(Event::Fail),
        1 => (any::<usize>(), any::<u16>(), vec(any::<u8>(), 0..20))
            .prop_map(|(at, status, body)| Event::Garbage(at, status, body)),
        4 => (0_u64..20_000).prop_map(Event::Tick),
        1 => (0_u64..100_000).prop_map(Event::Back),
        1 => any::<bool>().prop_map(Event::CallsFail),
        4 => (any::<usize>(), select(&[200, 200, 200, 400, 401, 503][..]), pieces())
            .prop_map(|(at, status, pieces)| Event::Sq(at, status, pieces)),
        1 => Just(Event::Reload),
    ]
}

fn pick<K: Copy, V>(map: &std::collections::BTreeMap<K, V>, at: usize) -> Option<K> {
    if map.is_empty() { None } else { map.keys().nth(at % map.len()).copied() }
}

/// Responds to a call by one of several valid responses.
fn answer(host: &mut Host, at: usize, how: u8, revision: &mut u64) {
    let Some(id) = pick(&host.calls, at) else { return };
    let call = &host.calls[&id].0;
    let body = call.body.clone().unwrap_or_default();
    let (status, answer) = match call.path.split('?').next().unwrap_or_default() {
        "/v1/verify" => {
            let about = |n: &u8| body.contains(&hash(*n).to_string());
            let known = (1..4).find(about).filter(|_| !how.is_multiple_of(5));
            let tenant = known.map(|n| verdict(if n == 1 { "alice" } else { "bob" }));
            (200, verified(revision.saturating_sub(u64::from(how % 3)), tenant))
        }
        "/v1/changes" => {
            *revision += u64::from(how % 3);
            let changed: Vec<_> = (0..how % 4).map(hash).collect();
            (200, changes(*revision, &changed))
        }
        "/v1/lease" if how.is_multiple_of(4) => {
            (503, br#"{"kind":"queue","retry_after_s":1}"#.to_vec())
        }
        "/v1/lease" => {
            let tenant = if body.contains("alice") { "alice" } else { "bob" };
            (200, granted(tenant, u64::from(how) * 200))
        }
        "/v1/usage" => (200, format!("{{\"sequence\":{how}}}").into_bytes()),
        _ => (200, b"{}".to_vec()),
    };
    host.done(id, Ok((status, &answer)));
}

fn apply(host: &mut Host, event: Event, revision: &mut u64) {
    match event {
        Event::Get(n, what) => {
            let (method, endpoint) = what.split_once(' ').unwrap_or(("GET", what));
            let path = format!("/api/v2/{endpoint}?p=index");
            host.request(method, &path, &[("authorization", &key(n))], true);
        }
        Event::Post(n, ends) => {
            let key = key(n);
            let path = "/api/v2/update?p=index&c=1.1.1/1.1.1/1.1.2";
            let length = ("content-length", "5");
            let headers = [("authorization", key.as_str()), length];
            // Every other upload announces its length.
            let count = if n % 2 == 0 { 2 } else { 1 };
            host.request("POST", path, &headers[..count], ends);
        }
        Event::Usage(n) => {
            host.request("GET", "/api/v2/usage", &[("authorization", &key(n))], true);
        }
        Event::Head(headers, ends) => {
            host.head(&headers, ends);
        }
        Event::End(at) => {
            if let Some(id) = pick(&host.streams, at) {
                host.end(id);
            }
        }
        Event::Body(at, bytes, end) => {
            let Some(id) = pick(&host.streams, at) else { return };
            // Envoy reports bodies of streams that are not paused. Those of refused ones change nothing.
            if !matches!(host.seen(id), Seen::Waiting | Seen::Parked) {
                host.body(id, &bytes, end);
            }
        }
        Event::Answer(at, how) => answer(host, at, how, revision),
        Event::Fail(at) => {
            if let Some(id) = pick(&host.calls, at) {
                host.done(id, Err(CallFailed));
            }
        }
        Event::Garbage(at, status, body) => {
            if let Some(id) = pick(&host.calls, at) {
                host.done(id, Ok((status, &body)));
            }
        }
        Event::Tick(ms) => host.tick(ms * MS),
        Event::Back(ms) => host.now -= ms * MS,
        Event::CallsFail(fail) => host.calls_fail = fail,
        Event::Sq(at, status, pieces) => {
            let waiting = host.awaits_sq();
            if !waiting.is_empty() {
                host.sq_responds(waiting[at % waiting.len()], status, &pieces);
            }
        }
        Event::Reload => host.reload(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_events_settles_each_request_once(
        is_warm in any::<bool>(),
        events in vec(event(), 0..120),
    ) {
        let mut host = if is_warm { Host::warm(config()) } else { Host::new(config()) };
        let mut revision = 5;
        for event in events {
            apply(&mut host, event, &mut revision);
        }
        // Relay and orchestrator stop responding: all waiting ends by its deadline.
        for _ in 0..40 {
            host.tick(SECOND);
        }
        for (id, seen) in &host.streams {
            let waits = matches!(seen, Seen::Waiting | Seen::Parked);
            prop_assert!(!waits, "stream {:?} waits for ever", id);
        }
        prop_assert_eq!(host.gate.streams.waiting(), 0);
        let all: Vec<_> = host.streams.keys().copied().collect();
        for id in all {
            host.end(id);
        }
        prop_assert!(host.gate.streams.len() == 0);
    }
}
