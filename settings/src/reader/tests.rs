use serde::Deserialize;
#[cfg(target_family = "wasm")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::{Duration, Integer, Size, Text};

#[derive(Debug, PartialEq, Deserialize)]
#[serde(default)]
struct Raw {
    name: Text,
    is_on: bool,
    color: Color,
    clients: Vec<String>,
    note: Option<String>,
    times: Times,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(default)]
struct Times {
    lease: Duration<50, 600_000>,
    floor: Size<0, { 1 << 50 }>,
    starts: Integer<1, 64>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Color {
    Red,
    Green,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            name: "x".into(),
            is_on: false,
            color: Color::Red,
            clients: Vec::new(),
            note: None,
            times: Times::default(),
        }
    }
}

impl Default for Times {
    fn default() -> Self {
        Self {
            lease: Duration::from_ms(30_000),
            floor: Size::from_bytes(1 << 20),
            starts: Integer::new(4),
        }
    }
}

/// Reads JSON; returns the value and the faults, one per line.
fn read_json(json: &str) -> (Raw, Vec<String>) {
    let tree: Tree = serde_json::from_str(json).unwrap();
    let mut faults = Faults::default();
    let raw = read(&tree, &mut faults);
    (raw, faults.iter().map(ToString::to_string).collect())
}

/// The only fault of `json`.
fn fault(json: &str) -> String {
    let (_, faults) = read_json(json);
    assert_eq!(faults.len(), 1, "{faults:?}");
    faults.concat()
}

#[test]
fn absent_and_null_keys_have_their_default() {
    assert_eq!(read_json("{}"), (Raw::default(), vec![]));
    assert_eq!(read_json(r#"{"is_on": null, "times": {"lease": null}}"#).1, [""; 0]);
}

#[test]
fn values_of_each_type_are_read() {
    let (raw, faults) = read_json(
        r#"{"name": "a", "is_on": true, "color": "green", "clients": ["b", "c"], "note": "n",
            "times": {"lease": "5min", "floor": "256MiB", "starts": 64}}"#,
    );
    assert_eq!(faults, [""; 0]);
    assert_eq!(raw.name.as_str(), "a");
    assert_eq!((raw.is_on, raw.color), (true, Color::Green));
    assert_eq!(raw.clients, ["b", "c"]);
    assert_eq!(raw.note.as_deref(), Some("n"));
    assert_eq!(raw.times.lease.as_ms(), 300_000);
    assert_eq!(raw.times.floor.as_bytes(), 256 << 20);
    assert_eq!(raw.times.starts.get(), 64);
    assert_eq!(read_json(r#"{"times": {"floor": 7}}"#).0.times.floor.as_bytes(), 7);
}

#[test]
fn all_faults_are_reported_at_once() {
    let (raw, faults) = read_json(
        r#"{"name": "", "is_on": 1, "color": "blue", "clients": ["a", 2], "what": 3,
            "times": {"lease": "5x", "floor": "1", "starts": 65, "leese": 1, "starts": 2}}"#,
    );
    assert_eq!(
        faults,
        [
            "name: `` is empty: write a text, or leave the key out",
            "is_on: `1` is not a boolean: write `true` or `false`",
            "color: `blue` is not one of `red`, `green`",
            "clients: `2` is not a text: write it in quotes",
            "times.lease: `5x` is not a duration: write a number and a unit, such as `250ms`, `30s` \
             or `5min`",
            "times.floor: `1` is not a size: write a number and a unit, such as `256MiB` or `1GB`",
            "times.starts: `65` is out of bounds: write `1` to `64`",
            "what: unknown key: write one of `name`, `is_on`, `color`, `clients`, `note`, `times`",
            "times.leese: unknown key: write one of `lease`, `floor`, `starts`",
            "times.starts: `2` is a second value: keep one of them",
        ]
    );
    assert_eq!(raw, Raw::default());
}

#[test]
fn bounds_are_part_of_the_fault() {
    let lease = |text: &str| fault(&format!(r#"{{"times": {{"lease": {text}}}}}"#));
    let bounds = "is out of bounds: write `50ms` to `10min`";
    assert_eq!(lease(r#""49ms""#), format!("times.lease: `49ms` {bounds}"));
    assert_eq!(lease(r#""11min""#), format!("times.lease: `11min` {bounds}"));
    assert!(lease("30").starts_with("times.lease: `30` is not a duration: "));
    assert!(lease("-1").starts_with("times.lease: `-1` is not a duration: "));
    assert!(lease("[]").starts_with("times.lease: `[…]` is not a duration: "));
    assert!(lease("{}").starts_with("times.lease: `{…}` is not "));
    let starts = fault(r#"{"times": {"starts": -1}}"#);
    assert_eq!(starts, "times.starts: `-1` is out of bounds: write `1` to `64`");
    let starts = fault(r#"{"times": {"starts": 1.5}}"#);
    assert!(starts.ends_with("` is not a whole number"), "{starts}");
}

#[test]
fn section_of_a_wrong_type_is_a_fault() {
    let message = "is not a section: it has the keys `lease`, `floor`, `starts`";
    assert_eq!(fault(r#"{"times": 3}"#), format!("times: `3` {message}"));
    assert!(fault("[]").starts_with("`[…]` is not a section"));
}

#[test]
fn long_value_is_cut_in_the_fault() {
    let fault = fault(&format!(r#"{{"color": "{}"}}"#, "é".repeat(100)));
    assert!(fault.starts_with(&format!("color: `{}…` is not", "é".repeat(60))), "{fault}");
}

#[test]
fn each_fault_names_the_file() {
    let mut faults = Faults::default();
    faults.push("a", "missing");
    faults.push("b.c", "missing");
    assert!(faults.contains("b") && !faults.contains("c"));
    let faults = faults.in_file("x.toml").or_config(()).unwrap_err();
    assert_eq!(faults.to_string(), "x.toml: a: missing\nx.toml: b.c: missing");
}
