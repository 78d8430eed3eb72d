//! What clients saw of a drill, as a row of its table.

use std::time::Duration;

/// Errors that are kept to be shown; the rest is counted.
const ERRORS_KEPT: usize = 3;

/// What clients saw.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Requests sent.
    pub requests: u64,
    /// Reads that failed.
    pub failed_reads: u64,
    /// Writes that failed.
    pub failed_writes: u64,
    /// Those among them whose answer was no problem document.
    pub mute_writes: u64,
    /// Writes refused for want of room on the disk.
    pub refused_writes: u64,
    /// Requests that nobody answered; asked again.
    pub unanswered: u64,
    /// Reads that gave what nobody had written there.
    pub wrong: u64,
    /// Acknowledged writes that were not there when everything was read.
    pub lost: u64,
    /// Acknowledged writes that SQ's death took with it, none older than the stated window.
    pub young: u64,
    /// The longest that one request took, all its repetitions included.
    pub longest: Duration,
    /// The first errors.
    pub first_errors: Vec<String>,
}

impl Tally {
    /// Over the rows.
    pub const HEADING: &str = "                                  requests  failed reads  writes: \
                               failed  refused  asked again  wrong  lost  in window  longest ms  \
                               goal";

    /// A row of the table, up to its last column.
    pub fn row(&self, title: &str) -> String {
        format!(
            "{title:<33}{:>9}{:>14}{:>16}{:>9}{:>13}{:>7}{:>6}{:>11}{:>12}  ",
            self.requests,
            self.failed_reads,
            self.failed_writes,
            self.refused_writes,
            self.unanswered,
            self.wrong,
            self.lost,
            self.young,
            self.longest.as_millis()
        )
    }

    pub(super) fn error(&mut self, text: String) {
        if self.first_errors.len() < ERRORS_KEPT {
            self.first_errors.push(text);
        }
    }

    pub(super) fn add(mut self, other: Self) -> Self {
        self.requests += other.requests;
        self.failed_reads += other.failed_reads;
        self.failed_writes += other.failed_writes;
        self.mute_writes += other.mute_writes;
        self.refused_writes += other.refused_writes;
        self.unanswered += other.unanswered;
        self.wrong += other.wrong;
        self.lost += other.lost;
        self.young += other.young;
        self.longest = self.longest.max(other.longest);
        other.first_errors.into_iter().for_each(|text| self.error(text));
        self
    }
}
