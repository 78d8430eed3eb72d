//! What a scroll may read, by what its only client has written there.
//!
//! It reads the last acknowledged text, or one whose write was answered with a failure since, for that
//! may have been carried out all the same. When SQ dies within a write of the phext, the last good copy
//! is put back: then it may read an earlier text, of either kind, if all that is lost with it was written
//! within the stated window before the death. What is lost is forgotten, so that it is lost once.

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
    /// Writes, the last one last; one at least is acknowledged.
    writes: Vec<Write>,
}

/// One write.
#[derive(Debug)]
struct Write {
    text: String,
    sent: Instant,
    /// `None`: nobody knows whether it was carried out.
    acked: Option<Instant>,
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
        Self { writes: vec![Write { text: String::new(), sent: now, acked: Some(now) }] }
    }

    /// Until its answer is there a text may be there or not.
    pub(super) fn sent(&mut self, text: &str, now: Instant) {
        self.writes.push(Write { text: text.to_owned(), sent: now, acked: None });
    }

    /// From now on it is the text that was sent last and nothing else.
    pub(super) fn acked(&mut self, now: Instant) {
        // Of what is too old to be put back the last one is enough.
        let is_old = |write: &Write| write.acked.is_some_and(|acked| acked + KEPT < now);
        let old = self.writes.iter().rposition(is_old).unwrap_or(0);
        self.writes.drain(..old);
        if let Some(last) = self.writes.last_mut() {
            last.acked = Some(now);
        }
    }

    /// What was sent last was not carried out.
    pub(super) fn refused(&mut self) {
        self.writes.pop();
    }

    /// Where the last acknowledged write is.
    fn last_acked(&self) -> usize {
        self.writes.iter().rposition(|write| write.acked.is_some()).unwrap_or(0)
    }

    /// Judges what was read, and takes it for what is there from now on.
    pub(super) fn read(&mut self, text: &str, blow: Option<Blow>) -> Reads {
        let Some(left) = self.writes.iter().rposition(|write| write.text == text) else {
            return Reads::Wrong;
        };
        if left >= self.last_acked() {
            return Reads::Right;
        }
        let explained = |write: &Write| {
            blow.zip(write.acked).is_none_or(|(blow, acked)| {
                let before_its_end = blow.ended.is_none_or(|ended| write.sent <= ended);
                acked + WINDOW + COPY > blow.begun && before_its_end
            })
        };
        let lost = &self.writes[left + 1..];
        if blow.is_none() || !lost.iter().all(explained) {
            return Reads::Wrong;
        }
        let count = lost.iter().filter(|write| write.acked.is_some()).count();
        self.writes.truncate(left + 1);
        // Whatever its answer was: it was carried out.
        if let Some(there) = self.writes.last_mut() {
            there.acked.get_or_insert(there.sent);
        }
        Reads::Young(u64::try_from(count).unwrap_or(u64::MAX))
    }

    /// What it may be, for an error's text.
    pub(super) fn expected(&self) -> String {
        let last = self.writes[self.last_acked()..].iter().map(|write| &write.text);
        format!("{:?}", last.collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written as `old` at 0 s, as `new` at 100 s; SQ died `died_s` after the beginning.
    fn scroll(died_s: u64) -> (Scroll, Option<Blow>) {
        let start = Instant::now();
        let mut scroll = Scroll::new(start);
        write(&mut scroll, "old", start);
        let new = start + Duration::from_secs(100);
        write(&mut scroll, "new", new);
        let died = start + Duration::from_secs(died_s);
        (scroll, Some(Blow { begun: died, ended: Some(died) }))
    }

    fn write(scroll: &mut Scroll, text: &str, at: Instant) {
        scroll.sent(text, at);
        scroll.acked(at);
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
        scroll.sent("maybe", Instant::now());
        assert_eq!(scroll.read("maybe", None), Reads::Right);
        assert_eq!(scroll.read("new", None), Reads::Right);
        write(&mut scroll, "newer", Instant::now());
        assert_eq!(scroll.read("maybe", None), Reads::Wrong);
        scroll.sent("refused", Instant::now());
        scroll.refused();
        assert_eq!(scroll.read("refused", None), Reads::Wrong);
    }

    #[test]
    fn a_copy_may_hold_a_write_that_failed_and_was_carried_out() {
        let start = Instant::now();
        let mut scroll = Scroll::new(start);
        scroll.sent("failed", start);
        write(&mut scroll, "new", start + Duration::from_secs(100));
        let died = start + Duration::from_secs(101);
        let blow = Some(Blow { begun: died, ended: Some(died) });
        assert_eq!(scroll.read("failed", blow), Reads::Young(1));
        assert_eq!(scroll.read("failed", blow), Reads::Right);
        assert_eq!(scroll.read("", blow), Reads::Wrong, "it has been there");
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
