//! From bytes to scrolls with their entries, each with its place.
//!
//! libphext splits the phext. What it would accept silently is refused here: bytes that are not UTF-8,
//! control bytes that are no phext break, and coordinates beyond 999, which SQ merges when it reads
//! them again.

use std::ops::Range;

use libphext::phext::{self, Coordinate};

use super::fault::{Fault, Faults, Place};
use super::line::Line;

/// A scroll with at least one entry.
#[derive(Debug, Clone)]
pub(super) struct Scroll {
    pub(super) coordinate: Coordinate,
    /// The coordinate as text, for faults.
    pub(super) coordinate_text: String,
    pub(super) entries: Vec<Entry>,
    /// Number of the scroll's first line within the file, from 1.
    first_file_line: usize,
}

/// A line that is neither blank nor a comment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Text before the colon, or the whole line if there is none.
    pub(super) name: String,
    /// Text after the colon.
    pub(super) value: String,
    pub(super) has_colon: bool,
    /// Index of the line within the scroll, from 0.
    pub(super) line_index: usize,
}

/// Room for 50 000 tenants. It is more than one SQ can serve as a phext, and is parsed in a fraction
/// of a second.
pub(crate) const REGISTRY_MAX_BYTES: usize = 16 << 20;
/// The largest number in a coordinate that SQ keeps.
pub(crate) const COORDINATE_MAX: usize = 999;

/// The line that begins the scroll of tiers.
const TIERS: &str = "tiers";

impl Scroll {
    /// Returns true if this is the scroll of tiers.
    pub(super) fn is_tiers(&self) -> bool {
        self.entries.first().is_some_and(|entry| entry.name == TIERS && entry.value.is_empty())
    }

    /// Creates a fault at an entry.
    pub(super) fn fault(&self, entry: &Entry, what: impl Into<String>) -> Fault {
        self.fault_at_line(entry.line_index, what)
    }

    /// Creates a fault at the scroll's first entry.
    pub(super) fn fault_at_start(&self, what: impl Into<String>) -> Fault {
        match self.entries.first() {
            Some(entry) => self.fault(entry, what),
            None => Fault::of_text(what),
        }
    }

    /// Creates the fault of an entry whose name is none of the `expected`.
    pub(super) fn unknown_name_fault(&self, entry: &Entry, expected: &str) -> Fault {
        let what = if entry.has_colon {
            format!("{} is unknown; expected {expected}", entry.printable_name())
        } else {
            "expected `name: value`; a comment begins with #".to_owned()
        };
        self.fault(entry, what)
    }

    fn fault_at_line(&self, line_index: usize, what: impl Into<String>) -> Fault {
        let place = Place {
            coordinate: self.coordinate_text.clone(),
            line: line_index + 1,
            file_line: self.first_file_line + line_index,
        };
        Fault { place: Some(place), what: what.into() }
    }
}

impl Entry {
    fn parse(line_index: usize, line: &str) -> Option<Self> {
        let (name, value, has_colon) = match Line::parse(line) {
            Line::Blank => return None,
            Line::Word(word) => (word, 0..0, false),
            Line::Field { name, value } => (name, value, true),
        };
        let name = line[name].to_owned();
        let value = line[value].to_owned();
        Some(Self { name, value, has_colon, line_index })
    }

    /// The name if it is safe to print: text before a colon could be part of a key.
    pub(super) fn printable_name(&self) -> &str {
        let is_name_byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let is_name = self.name.len() <= 30 && self.name.bytes().all(is_name_byte);
        if is_name && !self.name.contains("pmb-") { &self.name } else { "this name" }
    }
}

/// Splits a phext into scrolls. Scrolls of white space and comments are left out.
pub(super) fn split(bytes: &[u8], faults: &mut Faults) -> Vec<Scroll> {
    if bytes.len() > REGISTRY_MAX_BYTES {
        let len = bytes.len();
        let what = format!("{len} bytes; a registry has at most {REGISTRY_MAX_BYTES}");
        faults.push(Fault::of_text(what));
        return Vec::new();
    }
    let valid = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
    };
    let mut scrolls = Vec::new();
    let mut file_line = 1;
    let mut last_line = None;
    for positioned in phext::phokenize(valid) {
        let text = &positioned.scroll;
        let scroll = parse_scroll(positioned.coord, file_line, text, faults);
        let newlines = text.matches('\n').count();
        last_line = Some(scroll.fault_at_line(newlines, "the text is not UTF-8 from here on"));
        file_line += newlines;
        if !scroll.entries.is_empty() {
            scrolls.push(scroll);
        }
    }
    if valid.len() < bytes.len()
        && let Some(fault) = last_line
    {
        faults.push(fault);
    }
    scrolls
}

fn parse_scroll(
    coordinate: Coordinate,
    first_file_line: usize,
    text: &str,
    faults: &mut Faults,
) -> Scroll {
    let coordinate_text = coordinate.to_string();
    let mut scroll = Scroll { coordinate, coordinate_text, entries: Vec::new(), first_file_line };
    for (line_index, (_, line)) in lines(text).enumerate() {
        if let Some(byte) = line.bytes().find(|b| b.is_ascii_control() && !b"\t\r\n".contains(b)) {
            faults.push(scroll.fault_at_line(line_index, format!("control byte 0x{byte:02x}")));
        }
        scroll.entries.extend(Entry::parse(line_index, line));
    }
    if !is_within_bounds(&coordinate) && !scroll.entries.is_empty() {
        let what = format!("the numbers of a coordinate go up to {COORDINATE_MAX}");
        faults.push(scroll.fault_at_start(what));
    }
    scroll
}

/// The lines of a scroll with their line ends, each with its byte range.
pub(crate) fn lines(text: &str) -> impl Iterator<Item = (Range<usize>, &str)> {
    text.split_inclusive('\n').scan(0, |start, line| {
        let range = *start..*start + line.len();
        *start = range.end;
        Some((range, line))
    })
}

fn is_within_bounds(coordinate: &Coordinate) -> bool {
    let Coordinate { z, y, x } = coordinate;
    let numbers = [
        z.library,
        z.shelf,
        z.series,
        y.collection,
        y.volume,
        y.book,
        x.chapter,
        x.section,
        x.scroll,
    ];
    numbers.iter().all(|number| (1..=COORDINATE_MAX).contains(number))
}
