//! What a tenant's phexts should be: maps of coordinates to text.

use std::collections::BTreeMap;

use gate::http::request::Coordinate;
use serde_json::Value;

use crate::client::{Action, Operation, Place};

/// Borders between scrolls from library down to scroll.
const BREAKS: [char; 9] =
    ['\u{1}', '\u{1f}', '\u{1e}', '\u{1d}', '\u{1c}', '\u{1a}', '\u{19}', '\u{18}', '\u{17}'];
const MISSING: &str = "---sq:Scroll-Missing---";

type Scrolls = BTreeMap<Coordinate, String>;

/// One tenant.
#[derive(Default)]
pub(crate) struct Model(BTreeMap<String, Scrolls>);

/// A phext as the text that it is on disk.
pub(crate) fn implode(scrolls: &Scrolls) -> String {
    let mut out = String::new();
    let mut at = [1u16; 9];
    for (coordinate, text) in scrolls {
        for level in 0..9 {
            while at[level] < coordinate.parts()[level] {
                out.push(BREAKS[level]);
                at[level] += 1;
                at[level + 1..].fill(1);
            }
        }
        out.push_str(text);
    }
    out
}

impl Model {
    /// All phexts.
    pub(crate) fn phexts(&self) -> impl Iterator<Item = (&str, &Scrolls)> {
        self.0.iter().map(|(name, scrolls)| (name.as_str(), scrolls))
    }

    /// How many scrolls there are.
    pub(crate) fn scrolls(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
    }

    /// The text of one scroll.
    pub(crate) fn scroll(&self, phext: &str, place: &Place) -> Option<&str> {
        self.0.get(phext)?.get(&place.coordinate()?).map(String::as_str)
    }

    /// What the phext's file should hold.
    pub(crate) fn file(&self, phext: &str) -> String {
        self.0.get(phext).map(implode).unwrap_or_default()
    }

    /// Does the operation and compares what the client is shown. `hash` asks SQ for a checksum.
    pub(crate) fn apply(
        &mut self,
        operation: &Operation,
        shown: &str,
        hash: &dyn Fn(&str) -> String,
    ) {
        let scrolls = self.0.entry(operation.phext.clone()).or_default();
        let name = &operation.phext;
        let expected = match &operation.action {
            Action::Insert(at, text) => {
                scrolls.entry(at.get()).or_default().push_str(text);
                format!("Inserted {} bytes", text.len())
            }
            Action::Update(at, text) => {
                if text.is_empty() {
                    scrolls.remove(&at.get());
                } else {
                    scrolls.insert(at.get(), text.clone());
                }
                format!("Updated {} bytes", text.len())
            }
            Action::Delete(at) => {
                let old = scrolls.remove(&at.get()).unwrap_or_default();
                format!("Removed {} bytes", old.len())
            }
            Action::Select(at) => scrolls.get(&at.get()).cloned().unwrap_or_default(),
            Action::Get | Action::Delta(None) => implode(scrolls),
            Action::Toc => toc(scrolls),
            Action::Load => format!("Loaded {name}"),
            Action::Checksum => hash(&implode(scrolls)),
            Action::Status => {
                assert!(shown.starts_with(&format!("Hosting: {name}\nConnection ID: ")), "{shown}");
                let size = format!("\nPhext Size: {}\n", implode(scrolls).len());
                assert!(shown.contains(&size), "{shown}");
                return;
            }
            Action::Where(_) => {
                assert!(shown.starts_with("Calculated coordinate "), "{shown}");
                return;
            }
            Action::JsonExport => return assert_eq!(rows(shown, "coord"), all(scrolls), "{shown}"),
            Action::Query { range, set } => {
                let mut found: Scrolls = match range {
                    Some((from, to)) => {
                        let range = scrolls.range(from.get()..=to.get());
                        range.map(|(at, text)| (*at, text.clone())).collect()
                    }
                    None => Scrolls::new(),
                };
                for at in set {
                    found.insert(at.get(), scrolls.get(&at.get()).cloned().unwrap_or_default());
                }
                return assert_eq!(rows(shown, "coordinate"), all(&found), "{shown}");
            }
            Action::Delta(Some(lines)) => delta(scrolls, lines),
        };
        assert_eq!(shown, expected, "{operation:?}");
    }
}

fn toc(scrolls: &Scrolls) -> String {
    let line = |(at, text): (&Coordinate, &String)| {
        let first = text.split('\n').next().unwrap_or_default();
        format!("* {at}: {first}{}\n", if first.len() < text.len() { "..." } else { "" })
    };
    // An empty phext is read as an empty first scroll.
    if scrolls.is_empty() {
        "* 1.1.1/1.1.1/1.1.1: \n".to_owned()
    } else {
        scrolls.iter().map(line).collect()
    }
}

/// What differs from the checksums, and a marker for what is not there. Of two lines for one scroll
/// the last counts.
fn delta(scrolls: &Scrolls, lines: &[(Place, bool)]) -> String {
    let mut expected = scrolls.clone();
    let last: BTreeMap<Coordinate, bool> = lines.iter().map(|(at, ok)| (at.get(), *ok)).collect();
    for (at, right) in last {
        match (scrolls.contains_key(&at), right) {
            (true, true) => drop(expected.remove(&at)),
            (true, false) => {}
            (false, _) => drop(expected.insert(at, MISSING.to_owned())),
        }
    }
    implode(&expected)
}

fn all(scrolls: &Scrolls) -> Vec<(String, String)> {
    scrolls.iter().map(|(at, text)| (at.to_string(), text.clone())).collect()
}

fn rows(json: &str, key: &str) -> Vec<(String, String)> {
    let rows: Vec<Value> = serde_json::from_str(json).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    rows.iter().map(|row| (text(&row[key]), text(&row["scroll"]))).collect()
}
