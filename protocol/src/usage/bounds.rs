//! The most that a truthful usage report can contain.
//!
//! A row is what one worker counted for one tenant in one hour, or in a few hours: rows that were
//! never sent may be merged. The bounds are far above what any worker was measured at, so that no
//! honest row meets them, and so low that the sums of all rows that a ledger can have stay within 63
//! bits.

use crate::time::{HOUR_MS, HOUR_S};

/// Bound on each count of requests, responses and wakes in a row: 277,000 a second for an hour. A
/// worker was measured at 20,000 a second, so that 14 hours of them may be merged.
pub const REQUESTS_MAX: u64 = 1_000_000_000;

/// Bound on the bytes of a row, in each direction: an hour of a link of 100 Gbit/s.
pub const BYTES_MAX: u64 = 45_000_000_000_000;

/// Bound on the service time of a row: the 512 connections that SQ accepts, in use for the 14 days
/// after which hours are summed up.
pub const SERVICE_MS_MAX: u64 = 512 * 14 * 24 * HOUR_MS;

/// Requests that one source can add in a second, over all of its tenants.
pub const REQUESTS_PER_S_MAX: u64 = REQUESTS_MAX / HOUR_S;

/// Bytes that one source can add in a second, over all of its tenants and both directions.
pub const BYTES_PER_S_MAX: u64 = 2 * BYTES_MAX / HOUR_S;

/// Time that is added to the time between two reports of a source: the orchestrator's clock may
/// have stepped back, and a worker's clock may differ.
pub const JUMP_SLACK_S: u64 = 600;

/// Rows further ahead of the orchestrator's clock than this come from a broken clock.
pub const AHEAD_HOURS_MAX: u64 = 48;

/// Rows at which a gate ends a report: about 300 kB of JSON.
pub const REPORT_ROWS: usize = 500;

/// Bound on the rows of a report. The last tenant of a report brings all of its hours: those of 14
/// days are 336.
pub const REPORT_ROWS_MAX: usize = 1_000;

/// Bound on a source's name, of which a gate's has about 20 bytes.
pub const SOURCE_MAX_BYTES: usize = 64;

/// True for a source's name that a gate could have: 1 to 64 letters, digits and `-`.
pub fn is_source(name: &str) -> bool {
    let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    (1..=SOURCE_MAX_BYTES).contains(&name.len()) && name.bytes().all(is_allowed)
}

#[cfg(test)]
mod tests {
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn source_names_are_short_and_plain() {
        let own = crate::usage::source_id(u64::MAX, u64::MAX);
        for good in [own.as_str(), "vm", "186f-1-2", &"x".repeat(64)] {
            assert!(is_source(good), "{good}");
        }
        for bad in ["", "a b", "é", "a\n", &"x".repeat(65)] {
            assert!(!is_source(bad), "{bad}");
        }
    }
}
