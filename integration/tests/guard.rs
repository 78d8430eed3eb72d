//! Each way in which a single request can corrupt or kill SQ, shown on a real SQ without the gateway,
//! with the gate's response to the same request.
//!
//! Every test prints its rows: test, rule, version of SQ, effect on SQ alone, response of the gate.
//! `make table` shows them in one table with those of the end-to-end tests, which need Envoy: HTTP
//! framing (`framing.rs`), connections (`connections.rs`), files, folders and disks (`damage.rs`).

// A failing test panics, and so do its helpers.
#![allow(clippy::unwrap_used, clippy::panic)]

use gate::Refusal;
use gate::http::request::{Head, Request, parse};
use harness::bare_sq::BareSq;
use protocol::{Limits, SqVersion};

const BOTH: [&str; 2] = ["0.5.0", "0.6.0"];
/// Address space, in kB, of an SQ that must die of unbounded memory use. Ordinary requests need much
/// less.
const SMALL_KB: u64 = 220_000;

/// Passes a request with its body through the gate.
fn gate(version: &str, method: &str, path: &str, body: Option<&[u8]>) -> Result<Request, Refusal> {
    let head = Head {
        method,
        path: path.as_bytes(),
        content_length: body.map(|body| body.len() as u64),
        has_body: body.is_some_and(|body| !body.is_empty()),
        content_type: None,
    };
    let request = parse(&head, &Limits::default(), SqVersion::parse(version).unwrap())?;
    if let Some(mut check) = request.body() {
        check.on_chunk(body.unwrap_or_default())?;
        check.on_end()?;
    }
    Ok(request)
}

/// Returns status and detail of the gate's refusal; fails if it accepts the request.
fn refused(version: &str, method: &str, path: &str, body: Option<&[u8]>) -> String {
    match gate(version, method, path, body) {
        Err(refusal) => format!("{} {}", refusal.status(), refusal.detail),
        Ok(request) => panic!("{method} {path} became {}", request.path()),
    }
}

/// Sends SQ the request that the gate rebuilt, and returns the body that the client gets.
fn through(sq: &BareSq, version: &str, method: &str, path: &str, body: Option<&[u8]>) -> String {
    let request = gate(version, method, path, body).unwrap();
    let sent = (request.method() == "POST").then(|| body.unwrap_or_default());
    let response = sq.send(request.method(), &request.path(), sent).unwrap();
    assert_eq!(response.status, 200);
    String::from_utf8(request.response_rule().on_body(&response.body)).unwrap()
}

/// Prints one row of the table.
fn row(rule: &str, version: &str, alone: &str, gate: &str) {
    // The test framework names each test's thread after the test.
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    println!("| {test} | {rule} | {version} | {alone} | {gate} |");
}

fn get(sq: &BareSq, path: &str) -> String {
    sq.send("GET", path, None).unwrap().text()
}

fn update(sq: &BareSq, phext: &str, coordinate: &str, text: &str) {
    let path = format!("/api/v2/update?p={phext}&c={coordinate}");
    assert_eq!(sq.send("POST", &path, Some(text.as_bytes())).unwrap().status, 200);
}

fn select(sq: &BareSq, phext: &str, coordinate: &str) -> String {
    get(sq, &format!("/api/v2/select?p={phext}&c={coordinate}"))
}

fn reload(sq: &BareSq, phext: &str) {
    get(sq, &format!("/api/v2/load?p={phext}"));
}

const ROOT: &str = "1.1.1/1.1.1/1.1.1";
const SECOND: &str = "1.1.1/1.1.1/1.1.2";
const THIRD: &str = "1.1.1/1.1.1/1.1.3";
const FOURTH: &str = "1.1.1/1.1.1/1.1.4";

#[test]
fn missing_or_invalid_coordinate_never_reaches_root_scroll() {
    for version in BOTH {
        let sq = BareSq::start(version).unwrap();
        for query in ["p=a&s=lost", "p=a&c=&s=lost", "p=a&c=second&s=lost"] {
            update(&sq, "a", ROOT, "precious");
            get(&sq, &format!("/api/v2/update?{query}"));
            assert_eq!(select(&sq, "a", ROOT), "lost", "{version} {query}");
            refused(version, "GET", &format!("/api/v2/update?{query}"), None);
        }
        update(&sq, "a", ROOT, "precious");
        get(&sq, "/api/v2/delete?p=a");
        assert_eq!(select(&sq, "a", ROOT), "");
        let refusal = refused(version, "DELETE", "/api/v2/delete?p=a", None);
        row("missing or invalid c", version, "root scroll overwritten or removed", &refusal);
    }
}

#[test]
fn repeated_parameters_are_refused() {
    for version in BOTH {
        let sq = BareSq::start(version).unwrap();
        let path = format!("/api/v2/update?p=mine&c={ROOT}&s=text&p=other");
        get(&sq, &path);
        assert_eq!(select(&sq, "mine", ROOT), "");
        assert_eq!(select(&sq, "other", ROOT), "text");
        let refusal = refused(version, "GET", &path, None);
        row("repeated parameter", version, "the last wins", &refusal);
    }
}

#[test]
fn zero_in_coordinate_never_moves_other_scrolls() {
    for version in BOTH {
        let sq = BareSq::start(version).unwrap();
        update(&sq, "a", ROOT, "one");
        update(&sq, "a", "1.1.1/1.1.1/1.1.0", "zero");
        reload(&sq, "a");
        let merged = select(&sq, "a", ROOT);
        assert_ne!(merged, "one", "{version}");
        let path = "/api/v2/update?p=a&c=1.1.1/1.1.1/1.1.0";
        let refusal = refused(version, "POST", path, Some(b"zero"));
        row("0 in c", version, &format!("first scroll reads {merged:?}"), &refusal);
    }
}

#[test]
fn delimiter_in_text_never_moves_other_scrolls() {
    for version in BOTH {
        let sq = BareSq::start(version).unwrap();
        for delimiter in [0x01u8, 0x17, 0x18, 0x19, 0x1A, 0x1C, 0x1D, 0x1E, 0x1F] {
            let phext = format!("b{delimiter}");
            update(&sq, &phext, SECOND, "two");
            let text = [b"a", &[delimiter][..], b"b"].concat();
            let path = format!("/api/v2/update?p={phext}&c={ROOT}");
            sq.send("POST", &path, Some(&text)).unwrap();
            reload(&sq, &phext);
            let first = select(&sq, &phext, ROOT);
            let second = select(&sq, &phext, SECOND);
            assert!(first == "a" && second != "two", "{version} {delimiter}: {first:?} {second:?}");
            refused(version, "POST", &path, Some(&text));
            refused(version, "GET", &format!("{path}&s=a%{delimiter:02x}b"), None);
        }
        let path = format!("/api/v2/update?p=a&c={ROOT}");
        let refusal = refused(version, "POST", &path, Some(b"a\x17b"));
        row("delimiter in a text", version, "text cut, later scrolls moved", &refusal);
    }
}

#[test]
fn empty_text_never_moves_other_scrolls() {
    for version in BOTH {
        let sq = BareSq::start(version).unwrap();
        let fill = |phext: &str| {
            for (place, text) in [(ROOT, "one"), (SECOND, "two"), (THIRD, "three")] {
                update(&sq, phext, place, text);
            }
        };
        fill("alone");
        update(&sq, "alone", SECOND, "");
        let delta = get(&sq, "/api/v2/delta?p=alone");
        assert_eq!(delta, "one\x17three", "{version}: delta moved the third scroll");
        reload(&sq, "alone");
        let moved = select(&sq, "alone", SECOND) == "three";
        assert_eq!(moved, version == "0.5.0");
        fill("guarded");
        let path = format!("/api/v2/update?p=guarded&c={SECOND}");
        assert_eq!(through(&sq, version, "POST", &path, Some(b"")), "Updated 0 bytes");
        assert_eq!(get(&sq, "/api/v2/delta?p=guarded"), "one\x17\x17three");
        reload(&sq, "guarded");
        assert_eq!(select(&sq, "guarded", THIRD), "three");
        let insert = format!("/api/v2/insert?p=guarded&c={FOURTH}&s=");
        refused(version, "GET", &insert, None);
        let alone =
            if moved { "later scrolls moved on disk" } else { "delta returns moved scrolls" };
        row("empty text", version, alone, "forwarded as delete");
    }
}

#[test]
fn unknown_path_or_longer_name_is_refused() {
    for version in BOTH {
        let sq = BareSq::start(version).unwrap();
        let deleted = format!("/api/v2/deleteNothing?p=a&c={ROOT}");
        update(&sq, "a", ROOT, "precious");
        get(&sq, &deleted);
        assert_eq!(select(&sq, "a", ROOT), "", "{version}");
        let refusal = refused(version, "GET", &deleted, None);
        row("routing by prefix", version, "deleteNothing deletes", &refusal);
    }
    let sq = BareSq::start("0.5.0").unwrap();
    get(&sq, "/index.html?p=ghost");
    assert_eq!(sq.files().unwrap(), ["ghost.phext"]);
    let refusal = refused("0.5.0", "GET", "/index.html?p=ghost", None);
    row("unknown path", "0.5.0", "200 and a new file", &refusal);
}

#[test]
fn version_and_where_create_no_nameless_phext() {
    for version in BOTH {
        let sq = BareSq::start(version).unwrap();
        assert_eq!(get(&sq, "/api/v2/version"), version);
        assert_eq!(sq.files().unwrap(), [".phext"]);
        assert!(gate(version, "GET", "/api/v2/version", None).unwrap().is_answered_here());
        let refusal = refused(version, "POST", "/api/v2/where", Some(b"text"));
        row(
            "version without p",
            version,
            "loads and creates .phext",
            &format!("answered here; where: {refusal}"),
        );
    }
}

#[test]
fn body_of_a_get_is_refused() {
    let sq = BareSq::start("0.6.0").unwrap();
    let path = format!("/api/v2/query?p=a&from={ROOT}&to={ROOT}");
    let alone = sq.send("GET", &path, Some(SECOND.as_bytes())).unwrap().text();
    assert!(alone.contains(SECOND));
    let refusal = refused("0.6.0", "GET", &path, Some(SECOND.as_bytes()));
    row("body of a GET", "0.6.0", "read as a set", &refusal);
}

#[test]
fn json_export_is_valid_and_hides_server_paths() {
    for version in BOTH {
        let sq = BareSq::start(version).unwrap();
        let texts =
            [(ROOT, "C:\\new\t\u{0}"), (SECOND, "\"quoted\"\r\n"), (THIRD, "\\n is not \n")];
        for (place, text) in texts {
            update(&sq, "a", place, text);
        }
        let alone = get(&sq, "/api/v2/json-export?p=a");
        assert!(serde_json::from_str::<serde_json::Value>(&alone).is_err());
        let shown = through(&sq, version, "GET", "/api/v2/json-export?p=a", None);
        let rows: Vec<serde_json::Value> = serde_json::from_str(&shown).unwrap();
        let pairs: Vec<_> = rows
            .iter()
            .map(|row| (row["coord"].as_str().unwrap(), row["scroll"].as_str().unwrap()))
            .collect();
        assert_eq!(pairs, texts);
        row("json-export", version, "not JSON, and a second file", "valid JSON made from get");
        for endpoint in ["status", "load"] {
            let path = format!("/api/v2/{endpoint}?p=a");
            assert!(get(&sq, &path).contains("/data/a.phext"), "{version}");
            let shown = through(&sq, version, "GET", &path, None);
            assert!(!shown.contains('/') && shown.contains(" a"), "{shown}");
        }
        row("server paths", version, "in status and load", "the phext's name instead");
    }
}

#[test]
fn invalid_file_name_never_reaches_sq() {
    let long = "x".repeat(260);
    for name in ["%00", long.as_str()] {
        let path = format!("/api/v2/update?p={name}&c={ROOT}&s=text");
        let mut old = BareSq::start("0.5.0").unwrap();
        let status = old.exit_caused_by("GET", &path, None).unwrap();
        let new = BareSq::start("0.6.0").unwrap();
        assert_eq!(get(&new, &path), "Updated 4 bytes");
        assert_eq!(new.files().unwrap(), [""; 0]);
        for version in BOTH {
            let alone =
                if version == "0.5.0" { status.to_string() } else { "200, nothing stored".into() };
            row("p=%00, p of 260 bytes", version, &alone, &refused(version, "GET", &path, None));
        }
    }
}

#[test]
fn coordinate_part_above_999_never_reaches_sq() {
    let path = "/api/v2/update?p=a&c=1.1.1/1.1.1/1.1.1000&s=far";
    let mut old = BareSq::start_with_memory_limit("0.5.0", SMALL_KB).unwrap();
    let status = old.exit_caused_by("GET", path, None).unwrap();
    row("a part of 1000", "0.5.0", &status.to_string(), &refused("0.5.0", "GET", path, None));
    let new = BareSq::start("0.6.0").unwrap();
    update(&new, "a", "1.1.1/1.1.1/1.1.999", "near");
    get(&new, path);
    reload(&new, "a");
    assert_ne!(select(&new, "a", "1.1.1/1.1.1/1.1.999"), "near");
    row("a part of 1000", "0.6.0", "999 and 1000 merged", &refused("0.6.0", "GET", path, None));
    for version in BOTH {
        let mut sq = BareSq::start_with_memory_limit(version, SMALL_KB).unwrap();
        let path = "/api/v2/update?p=a&c=1.1.1/1.1.1/1.1.400000000&s=x";
        let status = sq.exit_caused_by("GET", path, None).unwrap();
        row(
            "a part of 400000000",
            version,
            &status.to_string(),
            &refused(version, "GET", path, None),
        );
    }
}

#[test]
fn delta_line_never_causes_an_endless_response() {
    for version in BOTH {
        let mut sq = BareSq::start_with_memory_limit(version, SMALL_KB).unwrap();
        let body = b"1.1.1/1.1.1/1.1.1000: 0";
        let status = sq.exit_caused_by("POST", "/api/v2/delta?p=a", Some(body)).unwrap();
        let refusal = refused(version, "POST", "/api/v2/delta?p=a", Some(body));
        row("delta line with 1000", version, &status.to_string(), &refusal);
    }
}

#[test]
fn small_delta_never_causes_a_huge_response() {
    for version in BOTH {
        let mut sq = BareSq::start_with_memory_limit(version, SMALL_KB).unwrap();
        let line = |n: usize| {
            let a = n / 900 + 1;
            let b = n % 900 + 1;
            format!("{a}.{b}.900/900.900.900/900.900.900: {}\n", "0".repeat(32))
        };
        let body = (0..39_000).map(line).collect::<Vec<_>>().concat().into_bytes();
        let status = sq.exit_caused_by("POST", "/api/v2/delta?p=a", Some(&body)).unwrap();
        let refusal = refused(version, "POST", "/api/v2/delta?p=a", Some(&body));
        row("delta of far coordinates", version, &status.to_string(), &refusal);
    }
}

#[test]
fn body_beyond_memory_never_reaches_sq() {
    for version in BOTH {
        let mut sq = BareSq::start_with_memory_limit(version, SMALL_KB).unwrap();
        let body = vec![b'x'; 60_000_000];
        let path = format!("/api/v2/update?p=a&c={ROOT}");
        let status = sq.exit_caused_by("POST", &path, Some(&body)).unwrap();
        row(
            "body of 60 MB",
            version,
            &status.to_string(),
            &refused(version, "POST", &path, Some(&body)),
        );
    }
}

#[test]
fn query_response_is_bounded_by_memory() {
    let ends = format!("from={ROOT}&to=999.999.999/999.999.999/999.999.999");
    let path = format!("/api/v2/query?p=many&{ends}");
    let phext = ["x".repeat(20), "\x17".to_owned()].concat().repeat(900) + "\x18";
    let phext = phext.repeat(200);
    let start = || {
        let sq = BareSq::start_with_memory_limit("0.6.0", SMALL_KB).unwrap();
        std::fs::write(sq.file("many"), &phext).unwrap();
        sq
    };
    let status = start().exit_caused_by("GET", &path, None).unwrap();
    let mut sq = start();
    let shown = through(&sq, "0.6.0", "GET", &path, None);
    let rows: Vec<serde_json::Value> = serde_json::from_str(&shown).unwrap();
    assert_eq!(rows.len(), 10_000);
    assert!(sq.is_alive());
    row("query of 180,000 scrolls", "0.6.0", &status.to_string(), "10,000 by default and at most");
}
