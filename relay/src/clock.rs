//! The wall clock. Everything else in the crate receives the time as an argument.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970 UTC; 0 if the host's clock is set to an earlier time.
pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
