use std::collections::BTreeSet;

use serde_json::Value;
#[cfg(target_family = "wasm")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;

const BOOTSTRAP: &str = include_str!("../../../../envoy/bootstrap.yaml");
const DOCS: &str = include_str!("../../../../docs/refusals.md");
const BASE: &str = "urn:sq:problem:";

/// Problems that only Envoy reports: they have no kind, for the gate neither makes nor counts them.
const ENVOY_ONLY: [(&str, u16, &str); 4] = [
    ("too-many-keyless-requests", 429, "Too many requests without an API key"),
    ("overloaded", 503, "Gateway overloaded"),
    ("headers-too-large", 431, "Headers too large"),
    ("http-version", 426, "HTTP version not supported"),
];

fn row_named(name: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.name == name)
}

#[test]
fn table_has_one_row_per_kind_in_order() {
    for (place, row) in TABLE.iter().enumerate() {
        assert_eq!(row.kind as usize, place, "{:?}", row.kind);
    }
    assert_eq!(RefusalKind::Internal as usize + 1, TABLE.len());
}

#[test]
fn names_are_those_that_the_ledger_accepts() {
    let mut names: BTreeSet<&str> = TABLE.iter().map(|row| row.name).collect();
    assert_eq!(names.len(), TABLE.len(), "a name is used twice");
    names.insert(crate::limits::usage::GONE);
    assert!(names.into_iter().eq(protocol::usage::REASONS), "sorted alphabetically");
}

#[test]
fn refusal_is_a_problem_document() {
    let refusal = Refusal::bad_parameter("c", "it is {fault}").example("GET /x");
    assert_eq!(
        refusal.to_json(BASE),
        "{\"type\":\"urn:sq:problem:bad-parameter\",\"title\":\"Invalid parameter\",\
         \"status\":400,\"detail\":\"Invalid parameter `c`: it is {fault}.\",\"parameter\":\"c\",\
         \"example\":\"GET /x\"}"
    );
}

#[test]
fn constructors_fill_all_placeholders() {
    let refusals = [
        Refusal::unknown_endpoint("/api/v2/", &["toc"], "GET /"),
        Refusal::method_not_allowed("toc", "PUT", "GET"),
        Refusal::bad_parameter("p", "fault"),
        Refusal::bad_request("fault"),
        Refusal::bad_body("fault"),
        Refusal::unknown_length(),
        Refusal::body_too_large(2, 1),
        Refusal::no_such_endpoint_in(protocol::SqVersion::V0_6_0, "query"),
        Refusal::no_usage(),
        Refusal::no_preconditions("If-Match"),
        Refusal::rate_limited(50, 1),
        Refusal::too_many_writes(),
        Refusal::quota_exceeded("requests", 1, 1, 60),
        Refusal::quota_exceeded_elsewhere(),
        Refusal::egress_quota_exceeded(1, 1, 60),
        Refusal::storage_full(2, 1),
        Refusal::phext_too_large(2, 1),
        Refusal::too_many_phexts(2, 1),
    ];
    let templated: BTreeSet<RefusalKind> = refusals.iter().map(|refusal| refusal.kind).collect();
    for refusal in refusals {
        assert!(!refusal.detail.contains(['{', '}']), "{}", refusal.detail);
        assert!(!refusal.detail.contains("  "), "an argument is missing: {}", refusal.detail);
    }
    for row in TABLE {
        assert_eq!(templated.contains(&row.kind), row.detail.contains('{'), "{:?}", row.kind);
    }
}

#[test]
fn long_client_text_is_cut_in_a_refusal() {
    let refusal = Refusal::bad_parameter("é".repeat(400), "it is unknown");
    assert!(refusal.detail.chars().count() < 80, "{}", refusal.detail);
}

/// One mapper of `local_reply_config`.
struct Mapper {
    status: u16,
    retry_after_s: Option<u32>,
    problem: Value,
}

fn mappers() -> Vec<Mapper> {
    let (_, config) = BOOTSTRAP.split_once("local_reply_config:").unwrap();
    let (config, _) = config.split_once("http_filters:").unwrap();
    let entries = config.split("            - filter:\n").skip(1);
    // One entry only adds a header to the filter's own replies.
    entries.filter(|text| text.contains("inline_string")).map(mapper).collect()
}

fn mapper(text: &str) -> Mapper {
    let after = |mark: &str| text.split_once(mark).map(|(_, after)| after);
    let number = |text: &str| {
        text.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u32>().unwrap()
    };
    let (_, document) = text.split_once("inline_string: >-\n").unwrap();
    let end = document.find("}\n").unwrap() + 1;
    let folded: Vec<&str> = document[..end].lines().map(str::trim).collect();
    Mapper {
        status: u16::try_from(number(after("status_code: ").unwrap())).unwrap(),
        retry_after_s: after("key: retry-after, value: \"").map(number),
        problem: serde_json::from_str(&folded.join(" ")).unwrap(),
    }
}

#[test]
fn replies_of_envoy_agree_with_the_table() {
    let mappers = mappers();
    assert!(mappers.len() > 10, "{}", mappers.len());
    for Mapper { status, retry_after_s, problem } in mappers {
        assert_eq!(problem["status"], status, "{problem}");
        assert_eq!(problem["retry_after_s"].as_u64(), retry_after_s.map(u64::from), "{problem}");
        let name = problem["type"].as_str().unwrap().strip_prefix(BASE).unwrap();
        let (expected_status, title) = if let Some(row) = row_named(name) {
            assert_eq!(retry_after_s, row.retry_after_s, "{name}");
            if !row.detail.contains('{') {
                assert_eq!(problem["detail"], row.detail, "{name}");
            }
            (row.status, row.title)
        } else {
            let (_, status, title) = ENVOY_ONLY.into_iter().find(|(n, ..)| *n == name).unwrap();
            (status, title)
        };
        assert_eq!((status, problem["title"].as_str()), (expected_status, Some(title)), "{name}");
    }
}

#[test]
fn docs_list_every_problem_type() {
    let rows = TABLE.iter().map(|row| (row.name, row.status, row.title));
    let expected: Vec<String> = rows
        .chain(ENVOY_ONLY)
        .map(|(name, status, title)| format!("| `{name}` | {status} | {title} |"))
        .collect();
    let listed: Vec<String> = DOCS
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            format!("| {} | {} | {} |", cells[1], cells[2], cells[3])
        })
        .collect();
    assert_eq!(listed, expected);
}
