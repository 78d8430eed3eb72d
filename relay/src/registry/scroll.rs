//! From bytes to scrolls with their entries, each knowing where it stands.
//!
//! libphext takes the phext apart; what it would accept in silence is refused before or after:
//! bytes that are not UTF-8, control bytes that are no phext break, coordinates beyond 999 (SQ
//! merges those when it reads them again).

use std::ops::Range;

use libphext::phext::{self, Coordinate};

use super::fault::{Fault, Faults, Place};
use super::line::{self, Line};

/// A scroll that says something.
#[derive(Debug, Clone)]
pub struct Scroll {
    /// Where it stands.
    pub coordinate: Coordinate,
    /// The same as text.
    pub at: String,
    /// What it says, at least one entry.
    pub entries: Vec<Entry>,
    first_file_line: usize,
}

/// One line that says something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Before the colon, or the whole line when there is none.
    pub name: String,
    /// After the colon.
    pub value: String,
    /// Whether there is a colon.
    pub colon: bool,
    /// Line within the scroll, from 0.
    pub line: usize,
}

/// Room for 50 000 tenants; more than one SQ can serve as a phext, and read in a fraction of a second.
pub const REGISTRY_MAX_BYTES: usize = 16 << 20;
/// SQ keeps coordinates only up to here.
pub const COORDINATE_MAX: usize = 999;

/// The line that begins the tiers' scroll.
const TIERS: &str = "tiers";

impl Scroll {
    /// Whether it is the scroll of the tiers.
    pub fn is_tiers(&self) -> bool {
        self.entries.first().is_some_and(|e| e.name == TIERS && e.value.is_empty())
    }

    /// A fault at an entry.
    pub fn fault(&self, entry: &Entry, what: impl Into<String>) -> Fault {
        let place = Place {
            at: self.at.clone(),
            line: entry.line + 1,
            file_line: self.first_file_line + entry.line,
        };
        Fault { place: Some(place), what: what.into() }
    }

    /// A fault at the scroll's first entry.
    pub fn first_fault(&self, what: String) -> Fault {
        match self.entries.first() {
            Some(entry) => self.fault(entry, what),
            None => Fault::whole(what),
        }
    }

    /// The fault of a line that is none of the `expected`.
    pub fn unknown(&self, entry: &Entry, expected: &str) -> Fault {
        let shown = entry.shown();
        let what = if entry.colon {
            format!("{shown} is not known here; expected {expected}")
        } else {
            "the line is not `name: value` (a comment begins with #)".to_owned()
        };
        self.fault(entry, what)
    }
}

impl Entry {
    /// The name if it looks like one: what stands before a colon could be half a key.
    pub fn shown(&self) -> &str {
        let name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let good = self.name.len() <= 30 && self.name.bytes().all(name);
        if good && !self.name.contains("pmb-") { &self.name } else { "this name" }
    }
}

/// Takes a phext apart. Scrolls of white space and comments are left out.
pub fn scrolls(bytes: &[u8], faults: &mut Faults) -> Vec<Scroll> {
    if bytes.len() > REGISTRY_MAX_BYTES {
        let what = format!("{} bytes; a registry has at most {REGISTRY_MAX_BYTES}", bytes.len());
        faults.push(Fault::whole(what));
        return Vec::new();
    }
    let (text, cut) = match std::str::from_utf8(bytes) {
        Ok(text) => (text, false),
        Err(e) => (std::str::from_utf8(&bytes[..e.valid_up_to()]).unwrap_or_default(), true),
    };
    let mut scrolls = Vec::new();
    let mut file_line = 1;
    let mut last = None;
    for positioned in phext::phokenize(text) {
        let (scroll, newlines) = read(positioned.coord, file_line, &positioned.scroll, faults);
        last = Some((scroll.at.clone(), newlines + 1, file_line + newlines));
        file_line += newlines;
        if !scroll.entries.is_empty() {
            scrolls.push(scroll);
        }
    }
    if let (true, Some((at, line, file_line))) = (cut, last) {
        let what = "from here on the text is not UTF-8".to_owned();
        faults.push(Fault { place: Some(Place { at, line, file_line }), what });
    }
    scrolls
}

fn read(
    coordinate: Coordinate,
    file_line: usize,
    text: &str,
    faults: &mut Faults,
) -> (Scroll, usize) {
    let at = coordinate.to_string();
    let mut scroll = Scroll { coordinate, at, entries: Vec::new(), first_file_line: file_line };
    let mut newlines = 0;
    for (number, (_, line)) in lines(text).enumerate() {
        newlines += usize::from(line.ends_with('\n'));
        let entry = entry(number, line);
        if let Some(byte) = line.bytes().find(|b| b.is_ascii_control() && !b"\t\r\n".contains(b)) {
            let here =
                Entry { name: String::new(), value: String::new(), colon: false, line: number };
            faults.push(scroll.fault(&here, format!("control byte 0x{byte:02x}")));
        }
        scroll.entries.extend(entry);
    }
    if !within(&coordinate) && !scroll.entries.is_empty() {
        let what = format!("a coordinate has numbers up to {COORDINATE_MAX}");
        faults.push(scroll.first_fault(what));
    }
    (scroll, newlines)
}

fn entry(number: usize, line: &str) -> Option<Entry> {
    let (name, value, colon) = match line::split(line) {
        Line::Blank => return None,
        Line::Word(word) => (word, 0..0, false),
        Line::Field { name, value } => (name, value, true),
    };
    Some(Entry { name: line[name].to_owned(), value: line[value].to_owned(), colon, line: number })
}

/// The lines of a scroll with their ends, and where each stands.
pub fn lines(text: &str) -> impl Iterator<Item = (Range<usize>, &str)> {
    text.split_inclusive('\n').scan(0, |at, line| {
        let range = *at..*at + line.len();
        *at = range.end;
        Some((range, line))
    })
}

/// The nine numbers of a coordinate, most significant first.
pub fn numbers(c: &Coordinate) -> [usize; 9] {
    let (z, y, x) = (&c.z, &c.y, &c.x);
    [z.library, z.shelf, z.series, y.collection, y.volume, y.book, x.chapter, x.section, x.scroll]
}

fn within(coordinate: &Coordinate) -> bool {
    numbers(coordinate).iter().all(|n| (1..=COORDINATE_MAX).contains(n))
}
