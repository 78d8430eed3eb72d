//! A usage report as it arrives: rows that can't be read are set aside as text, so that one of them
//! does not keep the others out of the ledger.

use protocol::usage::UsageRow;
use protocol::{GatewayId, UsageReport};
use serde::Deserialize;

/// Bound on the text of a row that can't be read; the rest of it is cut off.
const MALFORMED_MAX_BYTES: usize = 1_024;

/// A report, and the rows that are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedReport {
    /// The report with its readable rows.
    pub report: UsageReport,
    /// The others as JSON.
    pub malformed: Vec<String>,
}

/// The report as JSON, with rows of any form.
#[derive(Debug, Deserialize)]
pub(crate) struct RawReport {
    gateway: GatewayId,
    source: String,
    sequence: u64,
    rows: Vec<serde_json::Value>,
}

impl From<UsageReport> for ReceivedReport {
    fn from(report: UsageReport) -> Self {
        Self { report, malformed: Vec::new() }
    }
}

impl From<RawReport> for ReceivedReport {
    fn from(raw: RawReport) -> Self {
        let RawReport { gateway, source, sequence, rows: raw_rows } = raw;
        let mut rows = Vec::with_capacity(raw_rows.len());
        let mut malformed = Vec::new();
        for row in raw_rows {
            match UsageRow::deserialize(&row) {
                Ok(row) => rows.push(row),
                Err(_) => malformed.push(cut(row.to_string())),
            }
        }
        Self { report: UsageReport { gateway, source, sequence, rows }, malformed }
    }
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MALFORMED_MAX_BYTES));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unreadable_rows_are_set_aside() {
        let good = r#"{"tenant":"alice","tier":"free","limits":{},"hour":1,"counters":{}}"#;
        let long = "é".repeat(MALFORMED_MAX_BYTES);
        let json = format!(
            r#"{{"gateway":"gw","source":"vm","sequence":7,"rows":[
                 {{"tenant":"No Name"}}, {good}, 5, {{"hour":-1}}, "{long}"]}}"#
        );
        let raw: RawReport = serde_json::from_str(&json).unwrap();
        let received = ReceivedReport::from(raw);
        assert_eq!((received.report.rows.len(), received.malformed.len()), (1, 4));
        assert!(received.malformed.iter().all(|row| row.len() <= MALFORMED_MAX_BYTES));
        assert_eq!(received.malformed[1], "5");
    }
}
