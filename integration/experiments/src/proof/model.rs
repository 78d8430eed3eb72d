//! What a phext must hold after SQ died: a text in memory, compared scroll by scroll.
//!
//! Most scrolls are never written again (*cold*); some are (*hot*), each by one writer, so that
//! every value has its number. A text names its scroll and number, so that a value found says which
//! write it came from, and a torn one shows.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Scrolls in a section; below 999, the most that a coordinate may say.
const SECTION: usize = 900;
/// Bytes of a scroll that is never written.
const COLD_BYTES: usize = 1_000;
/// A hot scroll's text is at least so long, and at most thrice that.
const HOT_BYTES: usize = 600;

/// One phext's history.
#[derive(Debug)]
pub struct Model {
    scrolls: usize,
    hot_every: usize,
    hot: BTreeMap<usize, Hot>,
}

#[derive(Debug, Default)]
struct Hot {
    /// The value at the last look, and everything before it.
    stable: u64,
    /// The last number given out.
    sent: u64,
    /// When each value was acknowledged, the stable one's included.
    acked: BTreeMap<u64, Instant>,
}

/// What one look found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// It is not text, or not there.
    pub unreadable: bool,
    /// Scrolls that were there at the look before and are not now.
    pub missing: usize,
    /// Scrolls that hold what nobody wrote.
    pub torn: usize,
    /// Scrolls whose last acknowledged write is not there, by its age when SQ died, oldest first.
    pub lost: Vec<Duration>,
}

impl Model {
    /// A phext of about `bytes`, with `hot` scrolls spread evenly from its first to its end.
    pub fn new(bytes: usize, hot: usize) -> Self {
        let scrolls = bytes / (COLD_BYTES + 1);
        let hot_every = (scrolls / hot).max(1);
        let hot = (0..scrolls).step_by(hot_every).map(|n| (n, Hot::default())).collect();
        Self { scrolls, hot_every, hot }
    }

    /// The file as it is at the beginning, or as it should be now.
    pub fn file(&self) -> Vec<u8> {
        let mut file = String::new();
        for n in 0..self.scrolls {
            match n {
                0 => {}
                n if n % SECTION == 0 => file.push('\x18'),
                _ => file.push('\x17'),
            }
            file.push_str(&self.hot.get(&n).map_or_else(|| cold(n), |hot| text(n, hot.stable)));
        }
        file.into_bytes()
    }

    /// The hot scroll number `pick` of writer `writer` of `writers`: its coordinate and next text.
    pub fn next(&mut self, writer: usize, writers: usize, pick: usize) -> (usize, u64) {
        let own = self.hot.len().saturating_sub(writer).div_ceil(writers).max(1);
        let n = (pick % own * writers + writer) * self.hot_every;
        let hot = self.hot.entry(n).or_default();
        hot.sent += 1;
        (n, hot.sent)
    }

    /// The write was acknowledged.
    pub fn acked(&mut self, n: usize, value: u64, at: Instant) {
        self.hot.entry(n).or_default().acked.insert(value, at);
    }

    /// Compares with what is there after SQ died at `died`; from now on what is there is what must
    /// stay.
    pub fn look(&mut self, bytes: &[u8], died: Instant) -> Found {
        let Ok(file) = std::str::from_utf8(bytes) else {
            return Found { unreadable: true, ..Found::default() };
        };
        let mut found = Found { unreadable: file.is_empty(), ..Found::default() };
        let scrolls = parse(file);
        for n in 0..self.scrolls {
            let there = scrolls.get(&n).copied().unwrap_or_default();
            match self.hot.get_mut(&n) {
                None if there == cold(n) => {}
                None if there.is_empty() => found.missing += 1,
                None => found.torn += 1,
                Some(hot) => hot.look(n, there, died, &mut found),
            }
        }
        let strangers = scrolls.iter().filter(|(n, text)| **n >= self.scrolls && !text.is_empty());
        found.torn += strangers.count();
        found.lost.sort_unstable_by(|a, b| b.cmp(a));
        found
    }
}

impl Hot {
    fn look(&mut self, n: usize, there: &str, died: Instant, found: &mut Found) {
        let value = value_of(n, there);
        match value {
            None if there.is_empty() => found.missing += 1,
            None => found.torn += 1,
            Some(_) => {}
        }
        let value = value.unwrap_or(0);
        // The first acknowledged write that the value found is older than.
        let first = self.acked.range(value + 1..).next().map(|(_, at)| *at);
        if let Some(at) = first {
            found.lost.push(died.saturating_duration_since(at));
        }
        self.stable = value;
        self.acked.retain(|v, _| *v == value);
    }
}

/// `1.1.1/1.1.1/1.S.N` of a scroll.
pub fn coordinate(n: usize) -> String {
    format!("1.1.1/1.1.1/1.{}.{}", n / SECTION + 1, n % SECTION + 1)
}

/// The text of a value; 0 is the one before all writes.
pub fn text(n: usize, value: u64) -> String {
    let mixed = (n as u64).wrapping_mul(0x9E37_79B9).wrapping_add(value.wrapping_mul(0x85EB_CA6B));
    let length = HOT_BYTES + usize::try_from(mixed >> 7).unwrap_or(0) % (2 * HOT_BYTES);
    filled(format!("hot {n} {value} "), length)
}

fn cold(n: usize) -> String {
    filled(format!("cold {n} "), COLD_BYTES)
}

fn filled(mut text: String, length: usize) -> String {
    const LETTERS: &str = "abcdefghijklmnopqrstuvwxyz 0123456789 ";
    while text.len() < length {
        text.push_str(&LETTERS[..LETTERS.len().min(length - text.len())]);
    }
    text
}

fn value_of(n: usize, there: &str) -> Option<u64> {
    let rest = there.strip_prefix(&format!("hot {n} "))?;
    let value = rest.split(' ').next()?.parse().ok()?;
    (there == text(n, value)).then_some(value)
}

/// Scrolls by their number. A phext that lost its end has fewer; other delimiters than these two
/// stand only in what nobody wrote.
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

    fn model() -> Model {
        Model::new(2_000_000, 50)
    }

    #[test]
    fn the_file_of_the_beginning_is_whole() {
        let mut model = model();
        let file = model.file();
        assert!(file.len().abs_diff(2_000_000) < 50_000);
        assert_eq!(model.look(&file, Instant::now()), Found::default());
    }

    #[test]
    fn an_acknowledged_write_that_is_not_there_is_lost_with_its_age() {
        let mut model = model();
        let before = model.file();
        let (n, value) = model.next(1, 4, 3);
        let at = Instant::now();
        model.acked(n, value, at);
        let found = model.look(&before, at + Duration::from_secs(7));
        assert_eq!(found, Found { lost: vec![Duration::from_secs(7)], ..Found::default() });
    }

    #[test]
    fn a_write_without_an_answer_may_be_there_or_not() {
        for there in [true, false] {
            let mut model = model();
            let (n, value) = model.next(0, 4, 0);
            let old = String::from_utf8(model.file()).unwrap();
            let file = if there { old.replace(&text(n, 0), &text(n, value)) } else { old };
            assert_eq!(model.look(file.as_bytes(), Instant::now()), Found::default());
            assert_eq!(model.file(), file.as_bytes());
        }
    }

    #[test]
    fn a_cut_file_misses_scrolls_and_one_is_torn() {
        let mut model = model();
        let file = model.file();
        let found = model.look(&file[..file.len() / 2], Instant::now());
        assert_eq!(found.torn, 1);
        assert!(found.missing > 900 && !found.unreadable);
        assert!(model.look(b"", Instant::now()).unreadable);
    }

    #[test]
    fn each_writer_has_scrolls_of_its_own() {
        let mut model = model();
        let mut owner = BTreeMap::new();
        for writer in 0..4 {
            for pick in 0..100 {
                let (n, _) = model.next(writer, 4, pick);
                assert!(n < model.scrolls);
                assert_eq!(*owner.entry(n).or_insert(writer), writer);
            }
        }
    }
}
