//! A phext coordinate: nine integers 1…999, written `1.1.1/1.1.1/1.1.1`.
//!
//! SQ reads a coordinate leniently: what is missing or not a digit is 1, a zero or a number above
//! 999 is taken as it is and breaks the phext when it is next loaded, and a very large one never
//! ends. Only the nine integers in their standard grouping mean the same to everyone.

use std::fmt;

/// The largest value of one part: SQ's reader can't step beyond it.
pub(crate) const PART_MAX: u16 = 999;
/// Digits of one part; leading zeros are read as SQ reads them.
const DIGITS_MAX: u8 = 3;

/// Library, shelf, series / collection, volume, book / chapter, section, scroll.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Coordinate([u16; 9]);

/// Whether `;` may stand for `/` between groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Groups {
    /// `/` only: what SQ's `query` reads.
    Slash,
    /// `/` or `;`.
    SlashOrSemicolon,
}

/// Reads a coordinate byte by byte, so that a body can be checked as it comes.
#[derive(Debug, Clone)]
pub(crate) struct Scan {
    parts: [u16; 9],
    /// The part being read, 0…8.
    at: u8,
    /// Digits of it so far.
    digits: u8,
    groups: Groups,
}

/// What a byte was to a [`Scan`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Part of the coordinate.
    Taken,
    /// Not part of it; the coordinate before it is whole.
    After(Coordinate),
    /// No coordinate goes on like this.
    Wrong,
}

impl Coordinate {
    /// The first coordinate.
    pub const ROOT: Self = Self([1; 9]);

    /// Reads a whole text; `/` or `;` between groups.
    pub fn parse(text: &str) -> Option<Self> {
        let mut scan = Scan::new(Groups::SlashOrSemicolon);
        for byte in text.bytes() {
            if scan.push(byte) != Step::Taken {
                return None;
            }
        }
        scan.end()
    }

    /// From its parts; `None` if one is not 1…999.
    pub fn new(parts: [u16; 9]) -> Option<Self> {
        parts.iter().all(|part| (1..=PART_MAX).contains(part)).then_some(Self(parts))
    }

    /// The nine parts, library first.
    pub fn parts(&self) -> &[u16; 9] {
        &self.0
    }

    /// By how many delimiter bytes a phext grows at most when its first text is stored here.
    ///
    /// A phext is one text in which each step in a dimension is one byte. With `p` the scroll before
    /// and `n` the one after, the growth is the way p→here plus here→n less p→n, and that is at most
    /// the way from the first coordinate: the sum of all parts less one. 8,982 bytes at the farthest.
    pub(crate) fn delimiters_max(&self) -> u64 {
        self.0.iter().map(|part| u64::from(*part) - 1).sum()
    }

    /// Delimiter bytes on the way from `before`, which comes first, to here.
    pub(crate) fn delimiters_after(&self, before: &Self) -> u64 {
        let Some(level) = (0..9).find(|level| self.0[*level] != before.0[*level]) else { return 0 };
        let step = self.0[level].saturating_sub(before.0[level]);
        let below = self.0[level + 1..].iter().map(|part| u64::from(*part) - 1).sum::<u64>();
        u64::from(step) + below
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
    /// A scan that has read nothing.
    pub(crate) fn new(groups: Groups) -> Self {
        Self { parts: [0; 9], at: 0, digits: 0, groups }
    }

    /// Reads one byte.
    pub(crate) fn push(&mut self, byte: u8) -> Step {
        let at = usize::from(self.at);
        match byte {
            b'0'..=b'9' if self.digits < DIGITS_MAX => {
                self.parts[at] = self.parts[at] * 10 + u16::from(byte - b'0');
                self.digits += 1;
                Step::Taken
            }
            _ if self.digits == 0 || self.parts[at] == 0 => Step::Wrong,
            b'.' | b'/' | b';' if self.at < 8 => {
                let between_groups = self.at % 3 == 2;
                let right = match byte {
                    b'.' => !between_groups,
                    b'/' => between_groups,
                    _ => between_groups && self.groups == Groups::SlashOrSemicolon,
                };
                if !right {
                    return Step::Wrong;
                }
                self.at += 1;
                self.digits = 0;
                Step::Taken
            }
            b'0'..=b'9' => Step::Wrong,
            _ => self.end().map_or(Step::Wrong, Step::After),
        }
    }

    /// The coordinate, if it is whole.
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
    fn a_coordinate_is_nine_integers_from_1_to_999_in_three_groups() {
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
    fn the_farthest_coordinate_costs_8982_delimiters() {
        assert_eq!(Coordinate::new([999; 9]).unwrap().delimiters_max(), 8982);
        assert_eq!(Coordinate::ROOT.delimiters_max(), 0);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(parts: [u16; 9]) {
            let wrapped = parts.map(|part| part % PART_MAX + 1);
            let coordinate = Coordinate::new(wrapped).unwrap();
            prop_assert_eq!(Coordinate::parse(&coordinate.to_string()), Some(coordinate));
        }

        #[test]
        fn any_text_is_read_as_a_naive_reader_would(text in "[0-9./; ]{0,40}") {
            let naive = naive(&text);
            prop_assert_eq!(Coordinate::parse(&text).map(|c| c.0.to_vec()), naive);
        }

        #[test]
        fn storing_one_scroll_never_adds_more_than_delimiters_max(
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

    /// Split and parse: obviously right, and slow.
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
