//! The expected content of a phext after SQ died, compared scroll by scroll.
//!
//! Most scrolls are never written after the start (*cold*). Each of the others (*hot*) is written
//! by one writer only, so that its values are numbered. A text contains the numbers of its scroll
//! and value. A text that is found thus identifies its write, and a torn text is recognised.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Scrolls in a section; below 999, the largest number in a coordinate.
const SECTION: usize = 900;
/// Bytes of a cold scroll.
const COLD_BYTES: usize = 1_000;
/// Smallest size of a hot scroll's text; the largest is three times this.
const HOT_BYTES: usize = 600;

/// The writes to one phext.
#[derive(Debug)]
pub(super) struct PhextModel {
    scrolls: usize,
    hot_every: usize,
    hot: BTreeMap<usize, HotScroll>,
}

#[derive(Debug, Default)]
struct HotScroll {
    /// The value at the last check. Earlier values must not reappear.
    stable: u64,
    /// The last value that was sent.
    sent: u64,
    /// The time at which each value was acknowledged, that of the stable value included.
    acked: BTreeMap<u64, Instant>,
}

/// The findings of one check.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// The phext is empty or not valid UTF-8.
    pub(super) unreadable: bool,
    /// Scrolls that existed at the previous check and are missing.
    pub(super) missing: usize,
    /// Scrolls with a text that no client wrote.
    pub(super) torn: usize,
    /// For each scroll without its last acknowledged write, the age of that write when SQ died, the
    /// oldest first.
    pub(super) lost: Vec<Duration>,
}

impl PhextModel {
    /// Creates a model of about `bytes` with `hot` hot scrolls, spread evenly over the phext.
    pub(super) fn new(bytes: usize, hot: usize) -> Self {
        let scrolls = bytes / (COLD_BYTES + 1);
        let hot_every = (scrolls / hot).max(1);
        let hot = (0..scrolls).step_by(hot_every).map(|n| (n, HotScroll::default())).collect();
        Self { scrolls, hot_every, hot }
    }

    /// Formats the phext's file with the values of the last check.
    pub(super) fn file(&self) -> Vec<u8> {
        let mut file = String::new();
        for n in 0..self.scrolls {
            match n {
                0 => {}
                n if n % SECTION == 0 => file.push('\x18'),
                _ => file.push('\x17'),
            }
            let text = self.hot.get(&n).map_or_else(|| cold_text(n), |hot| text(n, hot.stable));
            file.push_str(&text);
        }
        file.into_bytes()
    }

    /// Selects one of the hot scrolls of writer number `writer` by `pick`. Returns the number of
    /// the scroll and its next value.
    pub(super) fn next_write(
        &mut self,
        writer: usize,
        writers: usize,
        pick: usize,
    ) -> (usize, u64) {
        let scrolls_of_writer = self.hot.len().saturating_sub(writer).div_ceil(writers).max(1);
        let scroll = (pick % scrolls_of_writer * writers + writer) * self.hot_every;
        let hot = self.hot.entry(scroll).or_default();
        hot.sent += 1;
        (scroll, hot.sent)
    }

    /// Records that SQ acknowledged a write.
    pub(super) fn acknowledge(&mut self, scroll: usize, value: u64, at: Instant) {
        self.hot.entry(scroll).or_default().acked.insert(value, at);
    }

    /// Compares a file with the writes after SQ died at `died`. The values found are the stable
    /// ones from now on.
    pub(super) fn check(&mut self, bytes: &[u8], died: Instant) -> Findings {
        let Ok(file) = std::str::from_utf8(bytes) else {
            return Findings { unreadable: true, ..Findings::default() };
        };
        let mut findings = Findings { unreadable: file.is_empty(), ..Findings::default() };
        let scrolls = parse(file);
        for n in 0..self.scrolls {
            let found = scrolls.get(&n).copied().unwrap_or_default();
            match self.hot.get_mut(&n) {
                None if found == cold_text(n) => {}
                None if found.is_empty() => findings.missing += 1,
                None => findings.torn += 1,
                Some(hot) => hot.check(n, found, died, &mut findings),
            }
        }
        let unknown = scrolls.iter().filter(|(n, text)| **n >= self.scrolls && !text.is_empty());
        findings.torn += unknown.count();
        findings.lost.sort_unstable_by(|a, b| b.cmp(a));
        findings
    }
}

impl HotScroll {
    fn check(&mut self, n: usize, found: &str, died: Instant, findings: &mut Findings) {
        let value = value_of(n, found);
        match value {
            None if found.is_empty() => findings.missing += 1,
            None => findings.torn += 1,
            Some(_) => {}
        }
        let value = value.unwrap_or(0);
        // The first acknowledged write after the value found.
        let first_lost = self.acked.range(value + 1..).next().map(|(_, at)| *at);
        if let Some(at) = first_lost {
            findings.lost.push(died.saturating_duration_since(at));
        }
        self.stable = value;
        self.acked.retain(|v, _| *v == value);
    }
}

/// Formats the coordinate of a scroll, `1.1.1/1.1.1/1.SECTION.SCROLL`.
pub(super) fn coordinate(n: usize) -> String {
    format!("1.1.1/1.1.1/1.{}.{}", n / SECTION + 1, n % SECTION + 1)
}

/// Formats the text of a value of a hot scroll. Value 0 is the text before all writes.
pub(super) fn text(n: usize, value: u64) -> String {
    let mixed = (n as u64).wrapping_mul(0x9E37_79B9).wrapping_add(value.wrapping_mul(0x85EB_CA6B));
    let length = HOT_BYTES + usize::try_from(mixed >> 7).unwrap_or(0) % (2 * HOT_BYTES);
    padded(format!("hot {n} {value} "), length)
}

fn cold_text(n: usize) -> String {
    padded(format!("cold {n} "), COLD_BYTES)
}

fn padded(mut text: String, length: usize) -> String {
    const LETTERS: &str = "abcdefghijklmnopqrstuvwxyz 0123456789 ";
    while text.len() < length {
        text.push_str(&LETTERS[..LETTERS.len().min(length - text.len())]);
    }
    text
}

/// Returns the value of a complete hot text.
fn value_of(n: usize, found: &str) -> Option<u64> {
    let rest = found.strip_prefix(&format!("hot {n} "))?;
    let value = rest.split(' ').next()?.parse().ok()?;
    (found == text(n, value)).then_some(value)
}

/// Splits a file into scrolls by their number. A truncated file has fewer of them. Other delimiters
/// than these two occur only in texts that no client wrote.
fn parse(file: &str) -> BTreeMap<usize, &str> {
    let mut scrolls = BTreeMap::new();
    for (section, part) in file.split('\x18').enumerate() {
        for (place, text) in part.split('\x17').enumerate() {
            scrolls.insert(section * SECTION + place, text);
        }
    }
    scrolls
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> PhextModel {
        PhextModel::new(2_000_000, 50)
    }

    #[test]
    fn unchanged_file_has_no_findings() {
        let mut model = model();
        let file = model.file();
        assert!(file.len().abs_diff(2_000_000) < 50_000);
        assert_eq!(model.check(&file, Instant::now()), Findings::default());
    }

    #[test]
    fn missing_acknowledged_write_is_lost_with_its_age() {
        let mut model = model();
        let before = model.file();
        let (n, value) = model.next_write(1, 4, 3);
        let at = Instant::now();
        model.acknowledge(n, value, at);
        let findings = model.check(&before, at + Duration::from_secs(7));
        assert_eq!(
            findings,
            Findings { lost: vec![Duration::from_secs(7)], ..Findings::default() }
        );
    }

    #[test]
    fn unacknowledged_write_may_be_present_or_absent() {
        for applied in [true, false] {
            let mut model = model();
            let (n, value) = model.next_write(0, 4, 0);
            let old = String::from_utf8(model.file()).unwrap();
            let file = if applied { old.replace(&text(n, 0), &text(n, value)) } else { old };
            assert_eq!(model.check(file.as_bytes(), Instant::now()), Findings::default());
            assert_eq!(model.file(), file.as_bytes());
        }
    }

    #[test]
    fn truncated_file_lacks_scrolls_and_one_is_torn() {
        let mut model = model();
        let file = model.file();
        let findings = model.check(&file[..file.len() / 2], Instant::now());
        assert_eq!(findings.torn, 1);
        assert!(findings.missing > 900 && !findings.unreadable);
        assert!(model.check(b"", Instant::now()).unreadable);
    }

    #[test]
    fn no_scroll_has_two_writers() {
        let mut model = model();
        let mut owner = BTreeMap::new();
        for writer in 0..4 {
            for pick in 0..100 {
                let (n, _) = model.next_write(writer, 4, pick);
                assert!(n < model.scrolls);
                assert_eq!(*owner.entry(n).or_insert(writer), writer);
            }
        }
    }
}
