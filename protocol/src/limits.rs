//! Limits of a tenant: the numbers of its tier, with the tenant's own exceptions applied.
//!
//! They are written in the registry, reach the filter with a verdict, and reach the orchestrator with
//! each lease request, so that it needs no registry.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::time::{DAY_S, HOUR_S};

/// One tenant's limits. `Default` is the free tier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Sustained requests per second (the refill rate of the bucket).
    pub requests_per_s: u32,
    /// Requests that may arrive at once (the size of the bucket).
    pub burst: u32,
    /// Tokens that a mutating request takes from the bucket; a read takes one.
    pub write_cost: u32,
    /// Requests per UTC day.
    pub requests_per_day: CountLimit,
    /// Requests per UTC calendar month.
    pub requests_per_month: CountLimit,
    /// Mutating requests per UTC day.
    pub writes_per_day: CountLimit,
    /// Bytes of responses and rewritten phexts per second, sustained.
    pub bytes_per_s: ByteLimit,
    /// Bytes of responses per UTC day.
    pub egress_bytes_per_day: ByteLimit,
    /// Size of all of the tenant's phext files on disk.
    pub storage_bytes: u64,
    /// Memory of the tenant's container.
    pub memory_bytes: u64,
    /// Size of the largest phext, of which SQ needs a multiple in memory (measured in docs/sq.md). 0
    /// derives it from `memory_bytes`.
    pub phext_bytes: u64,
    /// Number of the tenant's phexts.
    pub phexts: u32,
    /// Size of the largest request body. 0 derives it from `memory_bytes`.
    pub body_bytes: u64,
    /// Concurrent requests to SQ. Releases with a single thread get one: see
    /// [`SqVersion::safe_concurrency`](crate::SqVersion::safe_concurrency).
    pub concurrency: u32,
    /// Starts from sleep per hour. Wakes from a doze do not count.
    pub wakes_per_hour: CountLimit,
    /// Idle time until the tenant is paused; `None`: the orchestrator's default.
    pub doze_after_s: Option<u32>,
    /// Idle time until the tenant is stopped; `None`: the orchestrator's default.
    pub sleep_after_s: Option<u32>,
    /// The deepest state of rest that the tenant may enter.
    pub keep: KeepAwake,
    /// Hours of the day in which the tenant, once awake, is neither paused nor stopped.
    pub warm_hours: Option<WarmHours>,
    /// Order of starts when several tenants wait: higher before lower.
    pub priority: u8,
    /// Share of the host's processors and disks, relative to other tenants, while they are contended.
    pub weight: u32,
    /// Number of hourly snapshots to retain.
    pub snapshots_hourly: u32,
    /// Number of daily snapshots to retain.
    pub snapshots_daily: u32,
    /// Price in US cents per month; 0 is free.
    pub price_cents_month: u32,
}

/// A limit on a number of requests or starts. Zero means that none is allowed. In JSON a number or
/// `"unlimited"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "RawCountLimit", into = "RawCountLimit")]
pub enum CountLimit {
    /// There is no limit.
    Unlimited,
    /// This number.
    Count(u64),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum RawCountLimit {
    Count(u64),
    Word(CountLimitWord),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum CountLimitWord {
    Unlimited,
}

impl From<RawCountLimit> for CountLimit {
    fn from(raw: RawCountLimit) -> Self {
        match raw {
            RawCountLimit::Count(count) => Self::Count(count),
            RawCountLimit::Word(CountLimitWord::Unlimited) => Self::Unlimited,
        }
    }
}

impl From<CountLimit> for RawCountLimit {
    fn from(limit: CountLimit) -> Self {
        match limit {
            CountLimit::Count(count) => Self::Count(count),
            CountLimit::Unlimited => Self::Word(CountLimitWord::Unlimited),
        }
    }
}

impl CountLimit {
    /// The largest number; `None` is unlimited.
    pub fn max(self) -> Option<u64> {
        match self {
            Self::Unlimited => None,
            Self::Count(count) => Some(count),
        }
    }
}

/// A limit on bytes. Zero means that no byte is allowed. In JSON a number, `"auto"` or `"unlimited"`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "RawByteLimit", into = "RawByteLimit")]
pub enum ByteLimit {
    /// [`REQUEST_BYTES`] for each request that the tenant may send.
    #[default]
    Auto,
    /// There is no limit.
    Unlimited,
    /// This number of bytes.
    Bytes(u64),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum RawByteLimit {
    Bytes(u64),
    Word(ByteLimitWord),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ByteLimitWord {
    Auto,
    Unlimited,
}

impl From<RawByteLimit> for ByteLimit {
    fn from(raw: RawByteLimit) -> Self {
        match raw {
            RawByteLimit::Bytes(bytes) => Self::Bytes(bytes),
            RawByteLimit::Word(ByteLimitWord::Auto) => Self::Auto,
            RawByteLimit::Word(ByteLimitWord::Unlimited) => Self::Unlimited,
        }
    }
}

impl From<ByteLimit> for RawByteLimit {
    fn from(limit: ByteLimit) -> Self {
        match limit {
            ByteLimit::Bytes(bytes) => Self::Bytes(bytes),
            ByteLimit::Auto => Self::Word(ByteLimitWord::Auto),
            ByteLimit::Unlimited => Self::Word(ByteLimitWord::Unlimited),
        }
    }
}

/// The deepest state of rest that a tenant may enter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeepAwake {
    /// Paused when idle, later stopped.
    #[default]
    Sleep,
    /// Paused when idle, but stopped only under memory pressure.
    Doze,
    /// Neither paused nor stopped once awake.
    Awake,
}

/// Hours of the UTC day, from the full hour `from_h` to the full hour `to_h`. They span midnight if
/// `to_h` is the earlier one, and the whole day if both are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WarmHours {
    /// First hour, 0 to 23.
    pub from_h: u8,
    /// End, 1 to 24.
    pub to_h: u8,
}

impl WarmHours {
    /// Seconds until the warm hours end; `None` if `utc_s` (seconds since 1970) is outside them.
    pub fn left_s(self, utc_s: u64) -> Option<u64> {
        let from_s = u64::from(self.from_h) * HOUR_S;
        let to_s = u64::from(self.to_h) * HOUR_S;
        let is_within_a_day = to_s > from_s;
        let end_s = if is_within_a_day { to_s } else { to_s + DAY_S };
        let length_s = end_s.saturating_sub(from_s);
        // A day is added before the subtraction, so that early hours do not become negative.
        let elapsed_s = (utc_s % DAY_S + DAY_S).saturating_sub(from_s) % DAY_S;
        length_s.checked_sub(elapsed_s).filter(|left_s| *left_s > 0)
    }
}

/// Least weight of one scroll against [`Limits::phext_max_bytes`]. SQ's memory grows with the
/// number of scrolls too: 50,000 small ones weigh as much as the 4 MB that 64 MiB can bear.
pub const SCROLL_BYTES: u64 = 80;

/// Bytes of one request that limits of bytes allow by default: ordinary responses have up to 64 KiB.
pub const REQUEST_BYTES: u64 = 100_000;

/// The most that a tenant may owe to its bucket for bytes, as the time in which it is paid off. At
/// any sane rate it is more than a handful of the largest responses.
pub const DEBT_MAX_S: u64 = 300;

/// Bound on a tier's price: a million US dollars per month. A larger one is a mistake.
pub const PRICE_CENTS_MAX: u32 = 100_000_000;

/// Least weight of a tenant. The kernel's shares of disk time begin at a tenth of the default.
pub const WEIGHT_MIN: u32 = 10;
/// Largest weight of a tenant.
pub const WEIGHT_MAX: u32 = 1_000;
/// Memory of a container. SQ runs in less than the least, but then neither a phext of 2 MB nor a body of
/// 1 MB would be safe.
pub const MEMORY_BYTES: RangeInclusive<u64> = 32 * MIB..=64 << 30;
/// Concurrent requests: SQ accepts no more connections.
pub const CONCURRENCY: RangeInclusive<u32> = 1..=512;
/// Snapshots of each kind that are retained.
pub const SNAPSHOTS_MAX: u32 = 1_000;
/// Longest idle time until a tenant is paused or stopped.
pub const IDLE_MAX_S: u32 = 365 * 24 * 3_600;

/// A mebibyte: 2^20 bytes.
pub const MIB: u64 = 1 << 20;
/// A megabyte: 10^6 bytes.
pub const MB: u64 = 1_000_000;

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_per_s: 10,
            burst: 50,
            write_cost: 1,
            requests_per_day: CountLimit::Count(10_000),
            requests_per_month: CountLimit::Count(100_000),
            writes_per_day: CountLimit::Count(5_000),
            bytes_per_s: ByteLimit::Auto,
            egress_bytes_per_day: ByteLimit::Auto,
            storage_bytes: 25 * MB,
            memory_bytes: 64 * MIB,
            phext_bytes: 0,
            phexts: 100,
            body_bytes: 0,
            concurrency: 4,
            wakes_per_hour: CountLimit::Count(60),
            doze_after_s: None,
            sleep_after_s: None,
            keep: KeepAwake::Sleep,
            warm_hours: None,
            priority: 0,
            weight: 100,
            snapshots_hourly: 6,
            snapshots_daily: 3,
            price_cents_month: 0,
        }
    }
}

impl Limits {
    /// Names the first limit of those that tie up a host whose value no registry accepts.
    pub fn out_of_bounds(&self) -> Option<&'static str> {
        let is_too_long = |idle_s: Option<u32>| idle_s.is_some_and(|idle_s| idle_s > IDLE_MAX_S);
        if !MEMORY_BYTES.contains(&self.memory_bytes) {
            Some("memory_bytes")
        } else if !CONCURRENCY.contains(&self.concurrency) {
            Some("concurrency")
        } else if self.snapshots_hourly > SNAPSHOTS_MAX {
            Some("snapshots_hourly")
        } else if self.snapshots_daily > SNAPSHOTS_MAX {
            Some("snapshots_daily")
        } else if is_too_long(self.doze_after_s) {
            Some("doze_after_s")
        } else if is_too_long(self.sleep_after_s) {
            Some("sleep_after_s")
        } else if !(WEIGHT_MIN..=WEIGHT_MAX).contains(&self.weight) {
            Some("weight")
        } else {
            None
        }
    }

    /// Size of the largest phext: `phext_bytes` if set, else what `memory_bytes` can bear with four
    /// concurrent requests. Measured: 4 MB in 64 MiB, and in proportion above
    /// (docs/decisions/2026-11-23-how-much-a-tenants-memory-holds.md).
    pub fn phext_max_bytes(&self) -> u64 {
        if self.phext_bytes > 0 { self.phext_bytes } else { self.memory_bytes / (16 * MIB) * MB }
    }

    /// Size of the largest body: `body_bytes` if set, else half of the derived phext, as SQ needs five
    /// times a body's size in memory.
    pub fn body_max_bytes(&self) -> u64 {
        if self.body_bytes > 0 { self.body_bytes } else { self.memory_bytes / (32 * MIB) * MB }
    }

    /// Bytes of responses and rewritten phexts per second; `None` is unlimited.
    pub fn bytes_per_s_max(&self) -> Option<u64> {
        match self.bytes_per_s {
            ByteLimit::Auto => Some(u64::from(self.requests_per_s).saturating_mul(REQUEST_BYTES)),
            ByteLimit::Unlimited => None,
            ByteLimit::Bytes(bytes) => Some(bytes),
        }
    }

    /// Bytes that one token of the rate pays for; `None` is unlimited. At the full rate of requests
    /// they make [`bytes_per_s_max`](Self::bytes_per_s_max).
    pub fn token_bytes(&self) -> Option<u64> {
        let bytes_per_s = self.bytes_per_s_max()?;
        Some((bytes_per_s / u64::from(self.requests_per_s.max(1))).max(1))
    }

    /// Bytes of responses per UTC day; `None` is unlimited, which also follows from unlimited
    /// requests if no number is set.
    pub fn egress_per_day_max(&self) -> Option<u64> {
        match self.egress_bytes_per_day {
            ByteLimit::Auto => Some(self.requests_per_day.max()?.saturating_mul(REQUEST_BYTES)),
            ByteLimit::Unlimited => None,
            ByteLimit::Bytes(bytes) => Some(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn free_tier_takes_4_mb_phexts_and_2_mb_bodies() {
        let free = Limits::default();
        assert_eq!((free.phext_max_bytes(), free.body_max_bytes()), (4 * MB, 2 * MB));
    }

    #[test]
    fn stated_cap_replaces_the_derived_one() {
        let limits = Limits { phext_bytes: 7, body_bytes: 9, ..Limits::default() };
        assert_eq!((limits.phext_max_bytes(), limits.body_max_bytes()), (7, 9));
    }

    #[test]
    fn free_tier_answers_1_mb_a_second() {
        let free = Limits::default();
        assert_eq!(free.bytes_per_s_max(), Some(MB));
        assert_eq!(free.token_bytes(), Some(REQUEST_BYTES));
        assert_eq!(free.egress_per_day_max(), Some(1_000 * MB));
    }

    #[test]
    fn limits_of_bytes_follow_those_of_requests() {
        let requests_per_day = CountLimit::Unlimited;
        let limits = Limits { requests_per_s: 25, requests_per_day, ..Limits::default() };
        assert_eq!(limits.token_bytes(), Some(REQUEST_BYTES));
        assert_eq!(limits.egress_per_day_max(), None, "requests are unlimited too");
        let bytes_per_s = ByteLimit::Bytes(5_000);
        assert_eq!(Limits { bytes_per_s, ..limits }.token_bytes(), Some(200));
    }

    #[test]
    fn only_a_word_is_unlimited() {
        let limit = |json: &str| serde_json::from_str::<ByteLimit>(json).unwrap();
        for (json, expected) in [
            ("\"unlimited\"", ByteLimit::Unlimited),
            ("\"auto\"", ByteLimit::Auto),
            ("0", ByteLimit::Bytes(0)),
        ] {
            assert_eq!(limit(json), expected);
            assert_eq!(serde_json::to_string(&expected).unwrap(), json);
        }
        let zero = ByteLimit::Bytes(0);
        let nothing = Limits { bytes_per_s: zero, egress_bytes_per_day: zero, ..Limits::default() };
        assert_eq!((nothing.token_bytes(), nothing.egress_per_day_max()), (Some(1), Some(0)));
    }

    #[test]
    fn warm_hours_may_span_midnight() {
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
    fn absent_limits_are_the_free_tiers() {
        let limits: Limits = serde_json::from_str(r#"{"burst": 5}"#).unwrap();
        assert_eq!(limits, Limits { burst: 5, ..Limits::default() });
    }
    #[test]
    fn zero_and_unlimited_are_different_limits() {
        let json = r#"{"writes_per_day":0,"requests_per_day":"unlimited"}"#;
        let limits: Limits = serde_json::from_str(json).unwrap();
        assert_eq!(limits.writes_per_day.max(), Some(0));
        assert_eq!(limits.requests_per_day.max(), None);
        let text = serde_json::to_string(&limits).unwrap();
        assert_eq!(serde_json::from_str::<Limits>(&text).unwrap(), limits);
    }
}
