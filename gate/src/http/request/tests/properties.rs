//! Any request is refused or rebuilt with the same meaning, however it is split or encoded.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::http::{endpoint, text};
use protocol::SqVersion;
#[cfg(target_family = "wasm")]
use wasm_bindgen_test::wasm_bindgen_test as test;

/// SQ's reading of a query, written as its own source has it: last value wins, lossy.
fn naive(query: &str) -> BTreeMap<String, String> {
    let decode = |text: &str| {
        let text = text.replace('+', " ");
        let bytes = text.as_bytes();
        let digit = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
        let mut out = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            if let (b'%', Some(high), Some(low)) = (bytes[at], digit(at + 1), digit(at + 2)) {
                out.push(u8::try_from(high * 16 + low).unwrap());
                at += 3;
            } else {
                out.push(bytes[at]);
                at += 1;
            }
        }
        String::from_utf8_lossy(&out).into_owned()
    };
    let pair = |pair: &str| pair.split_once('=').map(|(n, v)| (decode(n), decode(v)));
    query.split('&').filter_map(pair).collect()
}

fn any_value() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => Just(ROOT.to_owned()),
        2 => "[0-9]{1,4}(\\.[0-9]{1,3}){2}([/;][0-9]{1,3}(\\.[0-9]{1,3}){2}){2}",
        3 => "[a-z0-9]{1,6}",
        2 => "([a-z+&=#?/;.]|%[0-9a-fA-F]{2}|%){0,10}",
        1 => "[ -~]{0,10}",
        1 => ".{0,6}",
    ]
}

fn any_path() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec!["p", "c", "s", "from", "to", "set", "limit", "algo", "x"]);
    let endpoint = prop::sample::select(Endpoint::ALL.to_vec());
    (endpoint, prop::collection::vec((name, any_value()), 0..5)).prop_map(|(endpoint, pairs)| {
        let query: Vec<String> =
            pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
        format!("{BASE}{}?{}", endpoint.name(), query.join("&"))
    })
}

/// Endpoint and parameters that are mostly valid, so that many are accepted.
fn likely_path() -> impl Strategy<Value = String> {
    let rows: Vec<_> = Endpoint::ALL
        .into_iter()
        .flat_map(|endpoint| endpoint.rules().iter().map(move |rule| (endpoint, rule)))
        .collect();
    (prop::sample::select(rows), "([a-z+]|%[2-7][0-9a-f]|%c3%a9){1,9}", any_value()).prop_map(
        |((endpoint, rule), text, odd)| {
            let value = |param: &endpoint::Param| match param.name() {
                "s" => odd.clone(),
                "p" => text.clone(),
                _ => value_of(*param).to_owned(),
            };
            let pairs: Vec<String> =
                rule.required.iter().map(|p| format!("{}={}&", p.name(), value(p))).collect();
            let set = if endpoint == Endpoint::Query { "set=1.2.3/4.5.6;7.8.9" } else { "" };
            format!("{BASE}{}?{}{set}", endpoint.name(), pairs.concat())
        },
    )
}

/// Any bytes somewhere in a path that is otherwise as above.
fn raw_path() -> impl Strategy<Value = Vec<u8>> {
    let bytes = prop::collection::vec(any::<u8>(), 1..4);
    (likely_path(), any::<prop::sample::Index>(), bytes).prop_map(|(path, at, bytes)| {
        let mut path = path.into_bytes();
        let at = at.index(path.len());
        path.splice(at..at, bytes);
        path
    })
}

fn as_bytes(path: impl Strategy<Value = String>) -> impl Strategy<Value = Vec<u8>> {
    path.prop_map(String::into_bytes)
}

/// Fewer in node, where each takes longer.
const CASES: u32 = if cfg!(target_family = "wasm") { 200 } else { 2000 };

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn whatever_comes_is_refused_or_rebuilt_with_one_meaning(
        method in prop::sample::select(METHODS.to_vec()),
        path in prop_oneof![
            as_bytes(any_path()), as_bytes(likely_path()), raw_path(),
            as_bytes("\\PC{0,30}"), as_bytes("/api/v2/[ -~]{0,40}"),
        ],
        body in prop::option::of("[a-z]{0,5}"),
    ) {
        let Ok(request) = check(method, &path, body.as_deref()) else { return Ok(()) };
        let path = String::from_utf8(path).expect("raw bytes were taken");
        let rebuilt = request.path();
        prop_assert!(rebuilt.bytes().all(|b| b.is_ascii_graphic() && b != b'+' && b != b'#'));

        // The same bytes again, and the same meaning.
        let has_text = request.method() == "POST";
        let sent = has_text.then(|| body.clone().unwrap_or_default());
        let again = check(request.method(), &rebuilt, sent.as_deref()).unwrap();
        prop_assert_eq!(again.path(), rebuilt.clone());
        prop_assert_eq!(again.method(), request.method());
        prop_assert_eq!((again.access, &again.phext), (request.access, &request.phext));
        prop_assert_eq!(again.growth_bytes(), request.growth_bytes());

        // SQ reads from it what it would have read from the client's own, where that was clear.
        let client = naive(path.split_once('?').map_or("", |(_, query)| query));
        let ours = naive(rebuilt.split_once('?').map_or("", |(_, query)| query));
        for key in ["p", "s"] {
            if ours.contains_key(key) {
                prop_assert_eq!(ours.get(key), client.get(key));
            }
        }
        for key in ["c", "from", "to"] {
            let read = |map: &BTreeMap<String, String>| {
                map.get(key).map(|text| Coordinate::parse(text))
            };
            prop_assert_eq!(read(&ours), read(&client));
        }
    }

    #[test]
    fn a_body_is_judged_the_same_however_it_is_cut(
        path in prop::sample::select(vec![
            "/api/v2/update?p=a&c=1.1.1/1.1.1/1.1.1", "/api/v2/delta?p=a", "/api/v2/query?p=a",
        ]),
        body in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..12),
            "(€|é|𝄞|a|\u{17}|\n){0,6}".prop_map(String::into_bytes),
            "([1-9]\\.1\\.1[/;]1\\.1\\.1/1\\.1\\.(1|0|1000)(: [0-9a-f]{32})?[,;\r\n ]{0,2}){0,4}"
                .prop_map(String::into_bytes),
        ],
        cut in 0usize..40,
    ) {
        let whole = check_in("POST", path, Some(vec![&body]), SqVersion::V0_6_0);
        let (left, right) = body.split_at(cut.min(body.len()));
        let cut = check_in("POST", path, Some(vec![left, right]), SqVersion::V0_6_0);
        let kind = |outcome: &Result<Request, Refusal>| outcome.as_ref().err().map(|r| r.kind);
        prop_assert_eq!(kind(&whole), kind(&cut));
        let bytes: Vec<&[u8]> = body.chunks(1).collect();
        let single = check_in("POST", path, Some(bytes), SqVersion::V0_6_0);
        prop_assert_eq!(kind(&whole), kind(&single));
        if whole.is_ok() {
            let text = String::from_utf8(body.clone()).unwrap();
            prop_assert!(!text.bytes().any(text::is_break));
            prop_assert!(path.contains("update") || naive_body(path, &text), "{:?}", text);
        }
    }
}

/// SQ's own parsing of a body: true if it would skip or misread nothing.
fn naive_body(path: &str, text: &str) -> bool {
    if path.contains("delta") {
        return text.lines().filter(|line| !line.is_empty()).all(|line| {
            let parts: Vec<&str> = line.split(": ").collect();
            parts.len() == 2 && Coordinate::parse(parts[0]).is_some() && parts[1].len() == 32
        });
    }
    text.split([',', '\n', ';'])
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .all(|item| !item.contains(';') && Coordinate::parse(item).is_some())
}
