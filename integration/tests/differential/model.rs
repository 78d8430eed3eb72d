//! The expected contents of a tenant's phexts, as maps of coordinates to text.

use std::collections::BTreeMap;

use gate::http::request::Coordinate;
use serde_json::Value;

use crate::client::{Action, Operation, Place};

/// The delimiters, from library break down to scroll break.
const DELIMITERS: [char; 9] =
    ['\u{1}', '\u{1f}', '\u{1e}', '\u{1d}', '\u{1c}', '\u{1a}', '\u{19}', '\u{18}', '\u{17}'];
/// SQ's text for a scroll that a delta names and that does not exist.
const MISSING: &str = "---sq:Scroll-Missing---";

type Scrolls = BTreeMap<Coordinate, String>;

/// The phexts of one tenant, by name.
#[derive(Default)]
pub(crate) struct Model(BTreeMap<String, Scrolls>);

/// The text of a phext on disk.
fn serialize(scrolls: &Scrolls) -> String {
    let mut out = String::new();
    let mut at = [1u16; 9];
    for (coordinate, text) in scrolls {
        for level in 0..9 {
            while at[level] < coordinate.parts()[level] {
                out.push(DELIMITERS[level]);
                at[level] += 1;
                at[level + 1..].fill(1);
            }
        }
        out.push_str(text);
    }
    out
}

impl Model {
    /// All phexts with their names.
    pub(crate) fn phexts(&self) -> impl Iterator<Item = (&str, &Scrolls)> {
        self.0.iter().map(|(name, scrolls)| (name.as_str(), scrolls))
    }

    /// The number of scrolls in all phexts.
    pub(crate) fn scrolls(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
    }

    /// The text of one scroll, if it exists.
    pub(crate) fn scroll(&self, phext: &str, place: &Place) -> Option<&str> {
        self.0.get(phext)?.get(&place.coordinate()?).map(String::as_str)
    }

    /// The expected contents of the phext's file.
    pub(crate) fn file(&self, phext: &str) -> String {
        self.0.get(phext).map(serialize).unwrap_or_default()
    }

    /// Executes the operation and compares the response that the client gets. `checksum` asks SQ for
    /// the checksum of a text.
    pub(crate) fn apply(
        &mut self,
        operation: &Operation,
        shown: &str,
        checksum: &dyn Fn(&str) -> String,
    ) {
        let scrolls = self.0.entry(operation.phext.clone()).or_default();
        let name = &operation.phext;
        let expected = match &operation.action {
            Action::Insert(at, text) => {
                scrolls.entry(at.valid()).or_default().push_str(text);
                format!("Inserted {} bytes", text.len())
            }
            Action::Update(at, text) => {
                if text.is_empty() {
                    scrolls.remove(&at.valid());
                } else {
                    scrolls.insert(at.valid(), text.clone());
                }
                format!("Updated {} bytes", text.len())
            }
            Action::Delete(at) => {
                let old = scrolls.remove(&at.valid()).unwrap_or_default();
                format!("Removed {} bytes", old.len())
            }
            Action::Select(at) => scrolls.get(&at.valid()).cloned().unwrap_or_default(),
            Action::Get | Action::Delta(None) => serialize(scrolls),
            Action::Toc => scrolls.iter().map(|(at, text)| toc_line(at, text)).collect(),
            Action::Load => format!("Loaded {name}"),
            Action::Checksum => checksum(&serialize(scrolls)),
            Action::Status => {
                assert!(shown.starts_with(&format!("Hosting: {name}\nConnection ID: ")), "{shown}");
                let size = format!("\nPhext Size: {}\n", serialize(scrolls).len());
                assert!(shown.contains(&size), "{shown}");
                // SQ counts the first scroll too, if it is not there, until the next load.
                let count = shown.rsplit(' ').next().and_then(|count| count.parse::<usize>().ok());
                let too_many = count.expect(shown).checked_sub(scrolls.len()).expect(shown);
                return assert!(too_many <= usize::from(!scrolls.is_empty()), "{shown}");
            }
            Action::Where(_) => {
                let rest = shown.strip_prefix("Calculated coordinate ").expect(shown);
                let coordinate = rest.split(' ').next().and_then(Coordinate::parse);
                return assert!(coordinate.is_some(), "{shown}");
            }
            Action::JsonExport => {
                return assert_eq!(rows(shown, "coord"), pairs(scrolls), "{shown}");
            }
            Action::Query { range, set } => {
                let mut found: Scrolls = match range {
                    Some((from, to)) => {
                        let range = scrolls.range(from.valid()..=to.valid());
                        range.map(|(at, text)| (*at, text.clone())).collect()
                    }
                    None => Scrolls::new(),
                };
                for at in set {
                    found.insert(at.valid(), scrolls.get(&at.valid()).cloned().unwrap_or_default());
                }
                return assert_eq!(rows(shown, "coordinate"), pairs(&found), "{shown}");
            }
            Action::Delta(Some(lines)) => delta(scrolls, lines),
        };
        assert_eq!(shown, expected, "{operation:?}");
    }
}

fn toc_line(coordinate: &Coordinate, text: &str) -> String {
    let first = text.split('\n').next().unwrap_or_default();
    let rest = if first.len() < text.len() { "..." } else { "" };
    format!("* {coordinate}: {first}{rest}\n")
}

/// The scrolls whose checksum differs, and a marker for each that does not exist. If two lines name
/// one scroll, the last counts.
fn delta(scrolls: &Scrolls, lines: &[(Place, bool)]) -> String {
    let mut expected = scrolls.clone();
    let last: BTreeMap<Coordinate, bool> = lines.iter().map(|(at, ok)| (at.valid(), *ok)).collect();
    for (at, right) in last {
        if !scrolls.contains_key(&at) {
            expected.insert(at, MISSING.to_owned());
        } else if right {
            expected.remove(&at);
        }
    }
    serialize(&expected)
}

fn pairs(scrolls: &Scrolls) -> Vec<(String, String)> {
    scrolls.iter().map(|(at, text)| (at.to_string(), text.clone())).collect()
}

fn rows(json: &str, key: &str) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let rows: Vec<Value> = serde_json::from_str(json).unwrap();
    rows.iter().map(|row| (text(&row[key]), text(&row["scroll"]))).collect()
}
