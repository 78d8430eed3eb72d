//! The outcomes of the clients' requests during a drill, as one row of its table.

use std::time::Duration;

use crate::columns::Columns;

/// Number of errors that are shown. Further errors are only counted.
const ERRORS_SHOWN: usize = 3;
/// Room for the longest title of a drill.
const TITLE_WIDTH: usize = 34;

/// Counts of what clients saw.
#[derive(Debug, Clone, Default)]
pub struct ClientOutcomes {
    /// Requests sent, retries included.
    pub requests: u64,
    /// Reads that failed.
    pub failed_reads: u64,
    /// Writes that failed.
    pub failed_writes: u64,
    /// Failed writes whose response was not a problem document, or that had no response.
    pub silent_writes: u64,
    /// Writes that were refused because the disk was full.
    pub refused_writes: u64,
    /// Requests that got no response; most were retried.
    pub unanswered: u64,
    /// Reads that returned a text that no client had written there.
    pub wrong_reads: u64,
    /// Acknowledged writes that were missing when all scrolls were checked.
    pub lost_writes: u64,
    /// Acknowledged writes that were lost with SQ, none older than the promised window.
    pub lost_in_window: u64,
    /// The longest duration of one request, its retries included.
    pub longest: Duration,
    /// The first errors.
    pub first_errors: Vec<String>,
}

impl ClientOutcomes {
    fn columns() -> Columns {
        Columns::new(
            TITLE_WIDTH,
            [
                "requests",
                "failed reads",
                "failed writes",
                "refused",
                "retried",
                "wrong",
                "lost",
                "in window",
                "longest ms",
            ],
        )
    }

    /// Formats the headings of the table.
    pub fn heading() -> String {
        Self::columns().heading("drill") + "  goal"
    }

    /// Formats the goals below the rows.
    pub fn goals() -> String {
        let goals = ["any", "0", "*", "*", "*", "0", "0", "*", "any"];
        Self::columns().row("goal", &goals.map(str::to_owned))
    }

    /// Formats one row of the table, without its last column.
    pub fn row(&self, title: &str) -> String {
        let cells = [
            self.requests.to_string(),
            self.failed_reads.to_string(),
            self.failed_writes.to_string(),
            self.refused_writes.to_string(),
            self.unanswered.to_string(),
            self.wrong_reads.to_string(),
            self.lost_writes.to_string(),
            self.lost_in_window.to_string(),
            self.longest.as_millis().to_string(),
        ];
        Self::columns().row(title, &cells)
    }

    pub(super) fn add_error(&mut self, text: String) {
        if self.first_errors.len() < ERRORS_SHOWN {
            self.first_errors.push(text);
        }
    }

    pub(super) fn merge(mut self, other: Self) -> Self {
        self.requests += other.requests;
        self.failed_reads += other.failed_reads;
        self.failed_writes += other.failed_writes;
        self.silent_writes += other.silent_writes;
        self.refused_writes += other.refused_writes;
        self.unanswered += other.unanswered;
        self.wrong_reads += other.wrong_reads;
        self.lost_writes += other.lost_writes;
        self.lost_in_window += other.lost_in_window;
        self.longest = self.longest.max(other.longest);
        other.first_errors.into_iter().for_each(|text| self.add_error(text));
        self
    }
}
