//! Each way in which a request alone can corrupt or kill SQ, shown on a real SQ without the gateway,
//! and what the gate makes of the same request.
//!
//! Every test prints its rows: its name, the rule, the SQ, what that did alone, what the gate did.
//! `make table` shows them as one table with those of the end-to-end tests, where Envoy is: HTTP
//! framing (`framing.rs`), connections (`connections.rs`), files, folders and disks (`damage.rs`).

// A test says that it failed by panicking, its helpers too.
#![allow(clippy::unwrap_used, clippy::panic)]

use gate::Refusal;
use gate::http::request::{Head, Request, parse};
use harness::bare_sq::BareSq;
use protocol::{Limits, SqVersion};

const BOTH: [&str; 2] = ["0.5.0", "0.6.0"];
/// Address space of an SQ that is to die of a runaway: plenty for what it should do.
const SMALL_KB: u64 = 220_000;

/// The gate's view of a request, its body included.
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

/// The gate refuses; what it says.
fn refused(version: &str, method: &str, path: &str, body: Option<&[u8]>) -> String {
    match gate(version, method, path, body) {
        Err(refusal) => format!("{} {}", refusal.status(), refusal.detail),
        Ok(request) => panic!("{method} {path} became {}", request.path()),
    }
}

/// Sends what the gate rebuilt and gives what the client would be shown.
fn through(sq: &BareSq, version: &str, method: &str, path: &str, body: Option<&[u8]>) -> String {
    let request = gate(version, method, path, body).unwrap();
    let sent = (request.method() == "POST").then(|| body.unwrap_or_default());
    let answer = sq.send(request.method(), &request.path(), sent).unwrap();
    assert_eq!(answer.status, 200);
    String::from_utf8(request.response_rule().on_body(&answer.body)).unwrap()
}

fn row(rule: &str, version: &str, alone: &str, gate: &str) {
    // The harness names the thread of a test by it.
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
fn a_missing_or_wrong_coordinate_never_reaches_the_root_scroll() {
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
        let said = refused(version, "DELETE", "/api/v2/delete?p=a", None);
        row("missing or wrong c", version, "root scroll overwritten or removed", &said);
    }
}

#[test]
fn of_repeated_parameters_none_is_chosen() {
    for version in BOTH {
        let sq = BareSq::start(version).unwrap();
        let path = format!("/api/v2/update?p=mine&c={ROOT}&s=text&p=other");
        get(&sq, &path);
        assert_eq!(
            (select(&sq, "mine", ROOT), select(&sq, "other", ROOT)),
            (String::new(), "text".into())
        );
        let said = refused(version, "GET", &path, None);
        row("repeated parameter", version, "the last wins", &said);
    }
}

#[test]
fn a_zero_in_a_coordinate_never_moves_other_scrolls() {
    for version in BOTH {
        let sq = BareSq::start(version).unwrap();
        update(&sq, "a", ROOT, "one");
        update(&sq, "a", "1.1.1/1.1.1/1.1.0", "zero");
        reload(&sq, "a");
        let merged = select(&sq, "a", ROOT);
        assert_ne!(merged, "one", "{version}");
        let path = "/api/v2/update?p=a&c=1.1.1/1.1.1/1.1.0";
        let said = refused(version, "POST", path, Some(b"zero"));
        row("0 in c", version, &format!("first scroll reads {merged:?}"), &said);
    }
}

#[test]
fn a_border_in_a_text_never_moves_other_scrolls() {
    for version in BOTH {
        let sq = BareSq::start(version).unwrap();
        for border in [0x01u8, 0x17, 0x18, 0x19, 0x1A, 0x1C, 0x1D, 0x1E, 0x1F] {
            let phext = format!("b{border}");
            update(&sq, &phext, SECOND, "two");
            let text = [b"a", &[border][..], b"b"].concat();
            let path = format!("/api/v2/update?p={phext}&c={ROOT}");
            sq.send("POST", &path, Some(&text)).unwrap();
            reload(&sq, &phext);
            let (first, second) = (select(&sq, &phext, ROOT), select(&sq, &phext, SECOND));
            assert!(first == "a" && second != "two", "{version} {border}: {first:?} {second:?}");
            refused(version, "POST", &path, Some(&text));
            refused(version, "GET", &format!("{path}&s=a%{border:02x}b"), None);
        }
        let path = format!("/api/v2/update?p=a&c={ROOT}");
        let said = refused(version, "POST", &path, Some(b"a\x17b"));
        row("border byte in a text", version, "text cut, later scrolls moved", &said);
    }
}

#[test]
fn an_empty_text_never_moves_other_scrolls() {
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
            if moved { "later scrolls moved on disk" } else { "delta answers moved scrolls" };
        row("empty text", version, alone, "sent on as delete");
    }
}

#[test]
fn an_unknown_path_or_a_longer_name_is_no_endpoint() {
    for version in BOTH {
        let sq = BareSq::start(version).unwrap();
        let deleted = format!("/api/v2/deleteNothing?p=a&c={ROOT}");
        update(&sq, "a", ROOT, "precious");
        get(&sq, &deleted);
        assert_eq!(select(&sq, "a", ROOT), "", "{version}");
        let said = refused(version, "GET", &deleted, None);
        row("routing by prefix", version, "deleteNothing deletes", &said);
    }
    let sq = BareSq::start("0.5.0").unwrap();
    get(&sq, "/index.html?p=ghost");
    assert_eq!(sq.files().unwrap(), ["ghost.phext"]);
    let said = refused("0.5.0", "GET", "/index.html?p=ghost", None);
    row("unknown path", "0.5.0", "200 and a new file", &said);
}

#[test]
fn version_and_where_leave_no_nameless_phext() {
    for version in BOTH {
        let sq = BareSq::start(version).unwrap();
        assert_eq!(get(&sq, "/api/v2/version"), version);
        assert_eq!(sq.files().unwrap(), [".phext"]);
        assert!(gate(version, "GET", "/api/v2/version", None).unwrap().is_answered_here());
        let said = refused(version, "POST", "/api/v2/where", Some(b"text"));
        row(
            "version without p",
            version,
            "loads and creates .phext",
            &format!("answered here; where: {said}"),
        );
    }
}

#[test]
fn a_body_where_none_belongs_is_not_read_as_something_else() {
    let sq = BareSq::start("0.6.0").unwrap();
    let path = format!("/api/v2/query?p=a&from={ROOT}&to={ROOT}");
    let alone = sq.send("GET", &path, Some(SECOND.as_bytes())).unwrap().text();
    assert!(alone.contains(SECOND));
    let said = refused("0.6.0", "GET", &path, Some(SECOND.as_bytes()));
    row("body of a GET", "0.6.0", "read as a set", &said);
}

#[test]
fn json_export_is_valid_json_and_a_server_path_is_never_shown() {
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
fn a_name_that_is_no_file_name_never_reaches_sq() {
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
fn a_part_above_999_never_reaches_sq() {
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
fn a_delta_line_never_makes_an_answer_without_end() {
    for version in BOTH {
        let mut sq = BareSq::start_with_memory_limit(version, SMALL_KB).unwrap();
        let body = b"1.1.1/1.1.1/1.1.1000: 0";
        let status = sq.exit_caused_by("POST", "/api/v2/delta?p=a", Some(body)).unwrap();
        let said = refused(version, "POST", "/api/v2/delta?p=a", Some(body));
        row("delta line with 1000", version, &status.to_string(), &said);
    }
}

#[test]
fn a_small_delta_never_makes_an_answer_of_gigabytes() {
    for version in BOTH {
        let mut sq = BareSq::start_with_memory_limit(version, SMALL_KB).unwrap();
        let line = |n: usize| {
            let (a, b) = (n / 900 + 1, n % 900 + 1);
            format!("{a}.{b}.900/900.900.900/900.900.900: {}\n", "0".repeat(32))
        };
        let body = (0..39_000).map(line).collect::<Vec<_>>().concat().into_bytes();
        let status = sq.exit_caused_by("POST", "/api/v2/delta?p=a", Some(&body)).unwrap();
        let said = refused(version, "POST", "/api/v2/delta?p=a", Some(&body));
        row("delta of far coordinates", version, &status.to_string(), &said);
    }
}

#[test]
fn a_body_that_memory_can_not_hold_never_reaches_sq() {
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
fn a_query_of_many_small_scrolls_answers_what_memory_holds() {
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
