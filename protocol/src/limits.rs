//! What a tenant may use: the numbers of a tier, with a tenant's own exceptions already applied.
//!
//! The registry is where they are written (`relay`), the verdict carries them to the filter, and
//! the filter passes them on with each lease, so that the orchestrator needs no registry.

use serde::{Deserialize, Serialize};

use crate::time::{DAY_S, HOUR_S};

/// One tenant's limits. `Default` is the free tier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Sustained requests per second (the refill rate of the bucket).
    pub requests_per_s: u32,
    /// Requests that may come at once (the size of the bucket).
    pub burst: u32,
    /// Tokens that a mutating request takes from the bucket; a read takes one.
    pub write_cost: u32,
    /// Requests per UTC day; 0 is unlimited.
    pub requests_per_day: u64,
    /// Requests per UTC calendar month; 0 is unlimited.
    pub requests_per_month: u64,
    /// Mutating requests per UTC day; 0 is unlimited.
    pub writes_per_day: u64,
    /// Sum of the tenant's phext files on disk.
    pub storage_bytes: u64,
    /// The container's memory.
    pub memory_bytes: u64,
    /// The largest single phext; SQ needs several times its size in memory (measured table in
    /// docs/sq.md). 0: derived from `memory_bytes`.
    pub phext_bytes: u64,
    /// Number of phexts.
    pub phexts: u32,
    /// The largest request body. 0: derived from `memory_bytes`.
    pub body_bytes: u64,
    /// Requests inside SQ at the same time (1 on SQ 0.5.0, whatever is said here).
    pub concurrency: u32,
    /// Starts from sleep per hour; 0 is unlimited. Dozing tenants wake for free.
    pub wakes_per_hour: u32,
    /// Idle time until the tenant is paused; `None`: the orchestrator's default.
    pub doze_after_s: Option<u32>,
    /// Idle time until the tenant is stopped; `None`: the orchestrator's default.
    pub sleep_after_s: Option<u32>,
    /// How deep the tenant may sleep.
    pub keep: KeepAwake,
    /// Hours of the day in which the tenant, once awake, is neither paused nor stopped.
    pub warm_hours: Option<WarmHours>,
    /// Who is woken first when many wait: higher before lower.
    pub priority: u8,
    /// Point-in-time copies kept: one per hour, this many.
    pub snapshots_hourly: u32,
    /// Point-in-time copies kept: one per day, this many.
    pub snapshots_daily: u32,
    /// What the tenant pays, in US cents per month; 0 is free.
    pub price_cents_month: u32,
}

/// How deep a tenant may sleep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeepAwake {
    /// Paused, later stopped.
    #[default]
    Sleep,
    /// Paused, never stopped (but under memory pressure).
    Doze,
    /// Never paused or stopped once awake.
    Awake,
}

/// Hours of the UTC day, from the full hour `from_h` to the full hour `to_h`; over midnight when
/// `to_h` is not the later one, the whole day when they are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WarmHours {
    /// 0 to 23.
    pub from_h: u8,
    /// 1 to 24.
    pub to_h: u8,
}

impl WarmHours {
    /// Seconds until the hours end, when `utc_s` (seconds since 1970) is among them.
    pub fn left_s(self, utc_s: u64) -> Option<u64> {
        let (from, to) = (u64::from(self.from_h) * HOUR_S, u64::from(self.to_h) * HOUR_S);
        let length = if to > from { to - from } else { (DAY_S + to).saturating_sub(from) };
        let since = (utc_s % DAY_S + DAY_S).saturating_sub(from) % DAY_S;
        (since < length).then(|| length - since)
    }
}

/// What one scroll counts at least against [`Limits::phext_max_bytes`]. SQ's memory grows with the
/// number of scrolls too: 50,000 small ones weigh as much as the 4 MB that 64 MiB can bear.
pub const SCROLL_BYTES: u64 = 80;

/// 2^20 bytes.
pub const MIB: u64 = 1 << 20;
/// 10^6 bytes.
pub const MB: u64 = 1_000_000;

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_per_s: 10,
            burst: 50,
            write_cost: 1,
            requests_per_day: 10_000,
            requests_per_month: 100_000,
            writes_per_day: 5_000,
            storage_bytes: 25 * MB,
            memory_bytes: 64 * MIB,
            phext_bytes: 0,
            phexts: 100,
            body_bytes: 0,
            concurrency: 4,
            wakes_per_hour: 60,
            doze_after_s: None,
            sleep_after_s: None,
            keep: KeepAwake::Sleep,
            warm_hours: None,
            priority: 0,
            snapshots_hourly: 6,
            snapshots_daily: 3,
            price_cents_month: 0,
        }
    }
}

impl Limits {
    /// The largest phext that survives in `memory_bytes` with four requests at once: 4 MB in 64 MiB,
    /// in proportion above (measured: docs/decisions, "What a tenant's memory bears").
    pub fn phext_max_bytes(&self) -> u64 {
        if self.phext_bytes > 0 { self.phext_bytes } else { self.memory_bytes / (16 * MIB) * MB }
    }

    /// The largest body that survives beside such a phext: half of it, for SQ holds a body five times.
    pub fn body_max_bytes(&self) -> u64 {
        if self.body_bytes > 0 { self.body_bytes } else { self.memory_bytes / (32 * MIB) * MB }
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn the_free_tier_takes_phexts_of_4_mb_and_bodies_of_2() {
        let free = Limits::default();
        assert_eq!((free.phext_max_bytes(), free.body_max_bytes()), (4 * MB, 2 * MB));
    }

    #[test]
    fn a_stated_cap_wins_over_the_derived_one() {
        let limits = Limits { phext_bytes: 7, body_bytes: 9, ..Limits::default() };
        assert_eq!((limits.phext_max_bytes(), limits.body_max_bytes()), (7, 9));
    }

    #[test]
    fn warm_hours_end_at_their_hour_also_over_midnight() {
        let day = WarmHours { from_h: 8, to_h: 18 };
        let at = |h: u64| 20_000 * 86_400 + h * 3_600;
        assert_eq!(
            [7, 8, 17, 18].map(|h| day.left_s(at(h))),
            [None, Some(36_000), Some(3_600), None]
        );
        let night = WarmHours { from_h: 22, to_h: 6 };
        assert_eq!(
            [21, 22, 0, 5, 6].map(|h| night.left_s(at(h))),
            [None, Some(28_800), Some(21_600), Some(3_600), None]
        );
        assert_eq!(WarmHours { from_h: 0, to_h: 24 }.left_s(at(23)), Some(3_600));
    }

    #[test]
    fn what_is_not_said_is_the_free_tier() {
        let limits: Limits = serde_json::from_str(r#"{"burst": 5}"#).unwrap();
        assert_eq!(limits, Limits { burst: 5, ..Limits::default() });
    }
}
