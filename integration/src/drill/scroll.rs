//! What a scroll may read, by what its only client has written there.
//!
//! It reads the last acknowledged text, or one whose write was answered with a failure, for that may
//! have been carried out all the same. When SQ dies within a write of the phext, the last good copy is
//! put back: then it may read an earlier text, if all that is lost with it was written within the
//! stated window before the death. What is lost is forgotten, so that it is lost once.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::proof::target::WINDOW;

/// How long what was written is remembered: longer than from a blow to the look at all scrolls.
const KEPT: Duration = Duration::from_mins(2);

/// The longest that one copy is believed to take, on top of the window.
const COPY: Duration = Duration::from_millis(1_500);

/// When an SQ may have died: between these two moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Blow {
    /// Nothing was dead before.
    pub(super) begun: Instant,
    /// Nothing died later; `None`: it is under way.
    pub(super) ended: Option<Instant>,
}

/// One scroll.
#[derive(Debug)]
pub(super) struct Scroll {
    /// Acknowledged writes, the last one last.
    acked: Vec<Write>,
    unsure: BTreeSet<String>,
}

/// SQ has carried it out between these two moments.
#[derive(Debug)]
struct Write {
    text: String,
    sent: Instant,
    acked: Instant,
}

/// What a text is to its reader.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reads {
    /// As it should be.
    Right,
    /// So many acknowledged writes are lost, all of them within the window.
    Young(u64),
    /// Nothing explains it.
    Wrong,
}

impl Scroll {
    /// Nobody has written there.
    pub(super) fn new(now: Instant) -> Self {
        let nothing = Write { text: String::new(), sent: now, acked: now };
        Self { acked: vec![nothing], unsure: BTreeSet::new() }
    }

    /// Until its answer is there a text may be there or not.
    pub(super) fn sent(&mut self, text: &str) {
        self.unsure.insert(text.to_owned());
    }

    /// From now on it is this text and nothing else.
    pub(super) fn acked(&mut self, text: &str, sent: Instant, now: Instant) {
        self.unsure.clear();
        // Of what is too old to be put back the last one is enough.
        let old = self.acked.iter().rposition(|write| write.acked + KEPT < now).unwrap_or(0);
        self.acked.drain(..old);
        self.acked.push(Write { text: text.to_owned(), sent, acked: now });
    }

    /// It was not carried out.
    pub(super) fn refused(&mut self, text: &str) {
        self.unsure.remove(text);
    }

    /// Judges what was read, and takes it for what is there from now on.
    pub(super) fn read(&mut self, text: &str, blow: Option<Blow>) -> Reads {
        if self.unsure.contains(text) || self.acked.last().is_some_and(|last| last.text == text) {
            return Reads::Right;
        }
        let Some(left) = self.acked.iter().rposition(|write| write.text == text) else {
            return Reads::Wrong;
        };
        let explained = |write: &Write| {
            blow.is_some_and(|blow| {
                let before_its_end = blow.ended.is_none_or(|ended| write.sent <= ended);
                write.acked + WINDOW + COPY > blow.begun && before_its_end
            })
        };
        let lost = &self.acked[left + 1..];
        if !lost.iter().all(explained) {
            return Reads::Wrong;
        }
        let count = u64::try_from(lost.len()).unwrap_or(u64::MAX);
        self.acked.truncate(left + 1);
        Reads::Young(count)
    }

    /// What it may be, for an error's text.
    pub(super) fn expected(&self) -> String {
        let last = self.acked.last().map(|write| &write.text);
        format!("{last:?} or one of {:?}", self.unsure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written as `old` at 0 s, as `new` at 100 s; SQ died `died_s` after the beginning.
    fn scroll(died_s: u64) -> (Scroll, Option<Blow>) {
        let start = Instant::now();
        let mut scroll = Scroll::new(start);
        scroll.acked("old", start, start);
        let new = start + Duration::from_secs(100);
        scroll.acked("new", new, new);
        let died = start + Duration::from_secs(died_s);
        (scroll, Some(Blow { begun: died, ended: Some(died) }))
    }

    #[test]
    fn a_scroll_reads_what_was_acknowledged_last() {
        let (mut scroll, _) = scroll(101);
        assert_eq!(scroll.read("new", None), Reads::Right);
        assert_eq!(scroll.read("old", None), Reads::Wrong);
        assert_eq!(scroll.read("never written", None), Reads::Wrong);
    }

    #[test]
    fn a_write_that_failed_may_be_there_until_the_next_is_acknowledged() {
        let (mut scroll, _) = scroll(101);
        scroll.sent("maybe");
        assert_eq!(scroll.read("maybe", None), Reads::Right);
        assert_eq!(scroll.read("new", None), Reads::Right);
        scroll.acked("newer", Instant::now(), Instant::now());
        assert_eq!(scroll.read("maybe", None), Reads::Wrong);
        scroll.sent("refused");
        scroll.refused("refused");
        assert_eq!(scroll.read("refused", None), Reads::Wrong);
    }

    #[test]
    fn a_death_takes_what_was_written_within_the_window_before_it_and_only_once() {
        let (mut scroll, blow) = scroll(101);
        assert_eq!(scroll.read("old", blow), Reads::Young(1));
        assert_eq!(scroll.read("old", blow), Reads::Right);
        assert_eq!(scroll.read("new", blow), Reads::Wrong);
    }

    #[test]
    fn a_death_takes_nothing_older_than_the_window_and_nothing_written_after_it() {
        let (mut one, blow) = scroll(110);
        assert_eq!(one.read("old", blow), Reads::Wrong);
        let (mut other, blow) = scroll(99);
        assert_eq!(other.read("old", blow), Reads::Wrong);
    }
}
