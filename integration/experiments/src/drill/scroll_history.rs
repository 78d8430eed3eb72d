//! The texts that a read of a scroll may return, given the writes of its only client.
//!
//! A read returns the last acknowledged text, or a later one whose write failed: SQ may have
//! applied it nevertheless. If SQ dies during a write of the phext, the last good copy replaces the
//! file. A read may then return an earlier text of either kind, if all writes that are lost with it
//! were sent within the promised window before the death. Lost writes are removed from the history,
//! so that each can be lost only once.

use std::time::{Duration, Instant};

use crate::proof::target::WINDOW;

/// Time for which writes are remembered: longer than from a fault to the check of all scrolls.
const REMEMBERED: Duration = Duration::from_mins(2);
/// Longest assumed duration of one copy, in addition to the window.
const COPY: Duration = Duration::from_millis(1_500);

/// The interval in which a fault may have killed an SQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FaultPeriod {
    /// No SQ died before this.
    pub(super) begun: Instant,
    /// No SQ died after this; `None` while the fault is being injected.
    pub(super) ended: Option<Instant>,
}

/// The writes to one scroll.
#[derive(Debug)]
pub(super) struct ScrollHistory {
    /// Writes in the order in which they were sent. At least one is acknowledged.
    writes: Vec<Write>,
}

#[derive(Debug)]
struct Write {
    text: String,
    sent: Instant,
    /// `None` if the client does not know whether SQ applied the write.
    acked: Option<Instant>,
}

/// The judgement of a read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReadCheck {
    /// The text is one that the scroll may have.
    Expected,
    /// This number of acknowledged writes is lost, all of them within the window.
    LostInWindow(u64),
    /// No write and no fault explains the text.
    Unexpected,
}

impl ScrollHistory {
    /// Creates the history of an empty scroll.
    pub(super) fn new(now: Instant) -> Self {
        Self { writes: vec![Write { text: String::new(), sent: now, acked: Some(now) }] }
    }

    /// Records a write before it is sent. Until it is acknowledged, reads may return it or not.
    pub(super) fn record_write(&mut self, text: &str, now: Instant) {
        self.writes.push(Write { text: text.to_owned(), sent: now, acked: None });
    }

    /// Acknowledges the last write. From now on reads must return it.
    pub(super) fn acknowledge(&mut self, now: Instant) {
        // Of the writes that no copy can restore any more, the last one is enough.
        let is_old = |write: &Write| write.acked.is_some_and(|acked| acked + REMEMBERED < now);
        let last_old = self.writes.iter().rposition(is_old).unwrap_or(0);
        self.writes.drain(..last_old);
        if let Some(last) = self.writes.last_mut() {
            last.acked = Some(now);
        }
    }

    /// Removes the last write, because the gateway refused it before SQ saw it.
    pub(super) fn remove_refused(&mut self) {
        self.writes.pop();
    }

    fn last_acknowledged(&self) -> usize {
        self.writes.iter().rposition(|write| write.acked.is_some()).unwrap_or(0)
    }

    /// Judges the text that a read returned, and takes it as the current text from now on.
    pub(super) fn check_read(&mut self, text: &str, fault: Option<FaultPeriod>) -> ReadCheck {
        let Some(found) = self.writes.iter().rposition(|write| write.text == text) else {
            return ReadCheck::Unexpected;
        };
        if found >= self.last_acknowledged() {
            return ReadCheck::Expected;
        }
        let Some(fault) = fault else { return ReadCheck::Unexpected };
        let lost = &self.writes[found + 1..];
        if !lost.iter().all(|write| write.may_be_lost(fault)) {
            return ReadCheck::Unexpected;
        }
        let count = lost.iter().filter(|write| write.acked.is_some()).count();
        self.writes.truncate(found + 1);
        // Even if the response to this write was an error: SQ has applied it.
        if let Some(current) = self.writes.last_mut() {
            current.acked.get_or_insert(current.sent);
        }
        ReadCheck::LostInWindow(u64::try_from(count).unwrap_or(u64::MAX))
    }

    /// Formats the texts that a read may return without a fault.
    pub(super) fn expected(&self) -> String {
        let texts = self.writes[self.last_acknowledged()..].iter().map(|write| &write.text);
        format!("{:?}", texts.collect::<Vec<_>>())
    }
}

impl Write {
    /// Returns whether the fault excuses the loss: the write was sent before the fault ended and
    /// acknowledged at most a window before it began. A write without acknowledgement may always be
    /// lost.
    fn may_be_lost(&self, fault: FaultPeriod) -> bool {
        let Some(acked) = self.acked else { return true };
        let sent_before_end = fault.ended.is_none_or(|ended| self.sent <= ended);
        acked + WINDOW + COPY > fault.begun && sent_before_end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a history with `old` written at 0 s and `new` at 100 s, and a death of SQ.
    fn history(died_s: u64) -> (ScrollHistory, Option<FaultPeriod>) {
        let start = Instant::now();
        let mut history = ScrollHistory::new(start);
        write(&mut history, "old", start);
        write(&mut history, "new", start + Duration::from_secs(100));
        let died = start + Duration::from_secs(died_s);
        (history, Some(FaultPeriod { begun: died, ended: Some(died) }))
    }

    fn write(history: &mut ScrollHistory, text: &str, at: Instant) {
        history.record_write(text, at);
        history.acknowledge(at);
    }

    #[test]
    fn read_returns_the_last_acknowledged_write() {
        let (mut history, _) = history(101);
        assert_eq!(history.check_read("new", None), ReadCheck::Expected);
        assert_eq!(history.check_read("old", None), ReadCheck::Unexpected);
        assert_eq!(history.check_read("never written", None), ReadCheck::Unexpected);
    }

    #[test]
    fn failed_write_may_appear_until_the_next_acknowledgement() {
        let (mut history, _) = history(101);
        history.record_write("maybe", Instant::now());
        assert_eq!(history.check_read("maybe", None), ReadCheck::Expected);
        assert_eq!(history.check_read("new", None), ReadCheck::Expected);
        write(&mut history, "newer", Instant::now());
        assert_eq!(history.check_read("maybe", None), ReadCheck::Unexpected);
        history.record_write("refused", Instant::now());
        history.remove_refused();
        assert_eq!(history.check_read("refused", None), ReadCheck::Unexpected);
    }

    #[test]
    fn copy_may_contain_a_failed_but_applied_write() {
        let start = Instant::now();
        let mut history = ScrollHistory::new(start);
        history.record_write("failed", start);
        write(&mut history, "new", start + Duration::from_secs(100));
        let died = start + Duration::from_secs(101);
        let fault = Some(FaultPeriod { begun: died, ended: Some(died) });
        assert_eq!(history.check_read("failed", fault), ReadCheck::LostInWindow(1));
        assert_eq!(history.check_read("failed", fault), ReadCheck::Expected);
        assert_eq!(history.check_read("", fault), ReadCheck::Unexpected, "it was applied");
    }

    #[test]
    fn write_within_the_window_is_lost_once() {
        let (mut history, fault) = history(101);
        assert_eq!(history.check_read("old", fault), ReadCheck::LostInWindow(1));
        assert_eq!(history.check_read("old", fault), ReadCheck::Expected);
        assert_eq!(history.check_read("new", fault), ReadCheck::Unexpected);
    }

    #[test]
    fn older_and_later_writes_must_survive() {
        let (mut older, fault) = history(110);
        assert_eq!(older.check_read("old", fault), ReadCheck::Unexpected);
        let (mut later, fault) = history(99);
        assert_eq!(later.check_read("old", fault), ReadCheck::Unexpected);
    }
}
