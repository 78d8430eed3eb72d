//! The data lost in a series of faults, as one row of the table.

use std::time::Duration;

use super::model::Findings;
use crate::columns::Columns;

/// Room for the longest title of a series.
const TITLE_WIDTH: usize = 32;

/// Counts over all faults of a series.
#[derive(Debug, Clone, Default)]
pub struct LossReport {
    /// Faults that were injected.
    pub faults: u64,
    /// Acknowledged writes.
    pub acked: u64,
    /// Writes with an error response or without a response.
    pub failed: u64,
    /// Checks at which the phext could not be read.
    pub unreadable: u64,
    /// Checks at which scrolls were missing.
    pub truncated: u64,
    /// Earlier scrolls that were missing.
    pub missing: u64,
    /// Scrolls with a text that no client wrote.
    pub torn: u64,
    /// The window: five seconds and the longest copy.
    pub window: Duration,
    /// Acknowledged writes older than the window that were lost.
    pub lost: u64,
    /// Acknowledged writes within the window that were lost.
    pub lost_in_window: u64,
    /// The age of the oldest acknowledged write that was lost.
    pub oldest: Duration,
    /// Truncated files that the gateway replaced with a good copy.
    pub restored: u64,
    /// The longest time from a fault to a response with the complete phext.
    pub recovery: Duration,
}

impl LossReport {
    fn columns() -> Columns {
        Columns::new(
            TITLE_WIDTH,
            [
                "faults",
                "acked",
                "failed",
                "put back",
                "unreadable",
                "cut",
                "missing",
                "torn",
                "window s",
                "lost",
                "lost in window",
                "oldest s",
                "back s",
            ],
        )
    }

    /// Formats the headings of the table.
    pub fn heading() -> String {
        Self::columns().heading("series")
    }

    /// Formats one row of the table.
    pub fn row(&self, title: &str) -> String {
        let seconds = |duration: Duration| format!("{:.1}", duration.as_secs_f64());
        let cells = [
            self.faults.to_string(),
            self.acked.to_string(),
            self.failed.to_string(),
            self.restored.to_string(),
            self.unreadable.to_string(),
            self.truncated.to_string(),
            self.missing.to_string(),
            self.torn.to_string(),
            seconds(self.window),
            self.lost.to_string(),
            self.lost_in_window.to_string(),
            seconds(self.oldest),
            seconds(self.recovery),
        ];
        Self::columns().row(title, &cells)
    }

    /// Returns whether both promises held: earlier scrolls are intact, and no write older than the
    /// window is lost.
    pub fn promises_held(&self) -> bool {
        self.unreadable + self.missing + self.torn + self.lost == 0
    }

    /// Adds the findings of one check. Returns whether the file was damaged.
    pub(super) fn add(&mut self, findings: &Findings, window: Duration) -> bool {
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let older = findings.lost.iter().filter(|age| **age > window).count();
        let oldest = findings.lost.first().copied().unwrap_or_default();
        self.window = self.window.max(window);
        self.unreadable += u64::from(findings.unreadable);
        self.truncated += u64::from(findings.missing > 0);
        self.missing += count(findings.missing);
        self.torn += count(findings.torn);
        self.lost += count(older);
        self.lost_in_window += count(findings.lost.len() - older);
        self.oldest = self.oldest.max(oldest);
        findings.unreadable || findings.missing + findings.torn > 0
    }
}
