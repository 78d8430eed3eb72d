//! A phext coordinate: nine integers 1…999, written `1.1.1/1.1.1/1.1.1`.
//!
//! SQ parses coordinates leniently: a missing part or one that is not a number counts as 1, a zero or
//! a number above 999 is accepted and corrupts the phext at its next load, and a very large one never
//! ends. Only nine integers in their standard grouping mean the same to every reader.

use std::fmt;

/// Largest value of one part; SQ's reader cannot go beyond it.
pub(crate) const PART_MAX: u16 = 999;
/// Digits of one part. Leading zeros are accepted, as in SQ.
const DIGITS_MAX: u8 = 3;

/// A position in a phext: library, shelf, series / collection, volume, book / chapter, section,
/// scroll.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Coordinate([u16; 9]);

/// The accepted separators between groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Groups {
    /// Only `/`, as in the body of SQ's `query`.
    Slash,
    /// Either `/` or `;`.
    SlashOrSemicolon,
}

/// Parses a coordinate byte by byte, so that a body can be checked as it arrives.
#[derive(Debug, Clone)]
pub(crate) struct Scan {
    parts: [u16; 9],
    /// Index of the current part, 0 to 8.
    at: u8,
    /// Digits of the current part so far.
    digits: u8,
    groups: Groups,
}

/// The result of one byte in a [`Scan`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ScanResult {
    /// The byte belongs to the coordinate.
    Accepted,
    /// The byte follows a complete coordinate.
    Complete(Coordinate),
    /// No coordinate has this byte here.
    Invalid,
}

impl Coordinate {
    /// The first coordinate, 1.1.1/1.1.1/1.1.1.
    pub const ROOT: Self = Self([1; 9]);

    /// Parses a whole text with `/` or `;` between groups.
    pub fn parse(text: &str) -> Option<Self> {
        let mut scan = Scan::new(Groups::SlashOrSemicolon);
        for byte in text.bytes() {
            if scan.push(byte) != ScanResult::Accepted {
                return None;
            }
        }
        scan.end()
    }

    /// Builds a coordinate from its parts; `None` if one is not within 1 to 999.
    pub fn new(parts: [u16; 9]) -> Option<Self> {
        parts.iter().all(|part| (1..=PART_MAX).contains(part)).then_some(Self(parts))
    }

    /// The nine parts, library first.
    pub fn parts(&self) -> &[u16; 9] {
        &self.0
    }

    /// Upper bound on the delimiter bytes that a phext gains when its first text is stored here.
    ///
    /// A phext is one text in which each step in a dimension is one byte. With `p` the scroll before
    /// and `n` the one after, the growth is the distance p→here plus here→n less p→n. That is at most
    /// the distance from the first coordinate: the sum of all parts less one each, 8,982 bytes at the
    /// farthest.
    pub(crate) fn delimiters_max(&self) -> u64 {
        self.0.iter().map(|part| u64::from(*part) - 1).sum()
    }

    /// Delimiter bytes between `before`, an earlier coordinate, and this one.
    pub(crate) fn delimiters_after(&self, before: &Self) -> u64 {
        let Some(level) = (0..9).find(|level| self.0[*level] != before.0[*level]) else { return 0 };
        let difference = self.0[level].saturating_sub(before.0[level]);
        let below = self.0[level + 1..].iter().map(|part| u64::from(*part) - 1).sum::<u64>();
        u64::from(difference) + below
    }

    /// Appends the canonical text without allocating for each part.
    pub(crate) fn write_to(&self, out: &mut String) {
        const SEPARATORS: [&str; 9] = ["", ".", ".", "/", ".", ".", "/", ".", "."];
        for (part, separator) in self.0.iter().zip(SEPARATORS) {
            out.push_str(separator);
            if *part >= 100 {
                out.push(digit(part / 100));
            }
            if *part >= 10 {
                out.push(digit(part / 10 % 10));
            }
            out.push(digit(part % 10));
        }
    }
}

fn digit(value: u16) -> char {
    char::from(b'0' + u8::try_from(value).unwrap_or(0))
}

impl fmt::Display for Coordinate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(35);
        self.write_to(&mut text);
        f.write_str(&text)
    }
}

impl Scan {
    /// Starts a scan.
    pub(crate) fn new(groups: Groups) -> Self {
        Self { parts: [0; 9], at: 0, digits: 0, groups }
    }

    /// Parses one byte.
    pub(crate) fn push(&mut self, byte: u8) -> ScanResult {
        let at = usize::from(self.at);
        match byte {
            b'0'..=b'9' if self.digits < DIGITS_MAX => {
                self.parts[at] = self.parts[at] * 10 + u16::from(byte - b'0');
                self.digits += 1;
                ScanResult::Accepted
            }
            _ if self.digits == 0 || self.parts[at] == 0 => ScanResult::Invalid,
            b'.' | b'/' | b';' if self.at < 8 => {
                let between_groups = self.at % 3 == 2;
                let is_expected = match byte {
                    b'.' => !between_groups,
                    b'/' => between_groups,
                    _ => between_groups && self.groups == Groups::SlashOrSemicolon,
                };
                if !is_expected {
                    return ScanResult::Invalid;
                }
                self.at += 1;
                self.digits = 0;
                ScanResult::Accepted
            }
            b'0'..=b'9' => ScanResult::Invalid,
            _ => self.end().map_or(ScanResult::Invalid, ScanResult::Complete),
        }
    }

    /// Returns the coordinate, if it is complete.
    pub(crate) fn end(&self) -> Option<Coordinate> {
        (self.at == 8 && self.digits > 0).then(|| Coordinate::new(self.parts)).flatten()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn coordinate_is_nine_integers_in_three_groups() {
        for (good, canonical) in [
            ("1.1.1/1.1.1/1.1.1", "1.1.1/1.1.1/1.1.1"),
            ("1.2.3;4.5.6;7.8.9", "1.2.3/4.5.6/7.8.9"),
            ("999.999.999/999.999.999/999.999.999", "999.999.999/999.999.999/999.999.999"),
            ("001.010.100/1.1.1;1.1.1", "1.10.100/1.1.1/1.1.1"),
        ] {
            assert_eq!(Coordinate::parse(good).unwrap().to_string(), canonical);
        }
        for bad in [
            "",
            "1",
            "1.1.1",
            "1.1.1/1.1.1/1.1",
            "1.1.1/1.1.1/1.1.1.1",
            "1.1.1/1.1.1/1.1.1/",
            "1.1.1/1.1.1/1.1.",
            "0.1.1/1.1.1/1.1.1",
            "1.1.1/1.1.1/1.1.0",
            "1.1.1/1.1.1/1.1.1000",
            "1.1.1/1.1.1/1.1.0001",
            "1.1.1/1.1.1/1.1.100000000",
            "1.1.1.1.1.1.1.1.1",
            "1/1/1/1/1/1/1/1/1",
            " 1.1.1/1.1.1/1.1.1",
            "1.1.1/1.1.1/1.1.1 ",
            "+1.1.1/1.1.1/1.1.1",
            "-1.1.1/1.1.1/1.1.1",
            "1.1.1/1.1.1/1.1.x",
            "1..1/1.1.1/1.1.1",
            "１.1.1/1.1.1/1.1.1",
        ] {
            assert_eq!(Coordinate::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn farthest_coordinate_costs_8982_delimiters() {
        assert_eq!(Coordinate::new([999; 9]).unwrap().delimiters_max(), 8982);
        assert_eq!(Coordinate::ROOT.delimiters_max(), 0);
    }

    proptest! {
        #[test]
        fn coordinate_round_trips(parts: [u16; 9]) {
            let wrapped = parts.map(|part| part % PART_MAX + 1);
            let coordinate = Coordinate::new(wrapped).unwrap();
            prop_assert_eq!(Coordinate::parse(&coordinate.to_string()), Some(coordinate));
        }

        #[test]
        fn parser_agrees_with_a_naive_one(text in "[0-9./; ]{0,40}") {
            let naive = naive(&text);
            prop_assert_eq!(Coordinate::parse(&text).map(|c| c.0.to_vec()), naive);
        }

        #[test]
        fn one_scroll_adds_at_most_delimiters_max(
            others in prop::collection::btree_set(prop::array::uniform9(1u16..4), 0..6),
            here in prop::array::uniform9(1u16..4),
        ) {
            let here = Coordinate::new(here).unwrap();
            let mut map: std::collections::BTreeSet<_> =
                others.into_iter().filter_map(Coordinate::new).collect();
            let cost = |set: &std::collections::BTreeSet<Coordinate>| {
                let mut before = Coordinate::ROOT;
                set.iter().map(|c| {
                    let step = c.delimiters_after(&before);
                    before = *c;
                    step
                }).sum::<u64>()
            };
            let was = cost(&map);
            map.insert(here);
            prop_assert!(cost(&map) - was <= here.delimiters_max());
        }
    }

    /// Splits and parses: obviously correct, and slow.
    fn naive(text: &str) -> Option<Vec<u16>> {
        let groups: Vec<&str> = text.split(['/', ';']).collect();
        let parts: Vec<&str> = groups.iter().flat_map(|group| group.split('.')).collect();
        if groups.len() != 3 || groups.iter().any(|group| group.split('.').count() != 3) {
            return None;
        }
        parts
            .iter()
            .map(|part| {
                let plain = part.len() <= 3 && part.bytes().all(|b| b.is_ascii_digit());
                plain.then(|| part.parse().ok()).flatten().filter(|v| (1..=999).contains(v))
            })
            .collect()
    }
}
