//! Units of time as numbers. Names end in the unit that they count in: [`HOUR_S`] is an hour in
//! seconds.

/// A millisecond, in nanoseconds.
pub const MS_NS: u64 = 1_000_000;
/// A second, in nanoseconds.
pub const SECOND_NS: u64 = 1_000 * MS_NS;

/// A second, in milliseconds.
pub const SECOND_MS: u64 = 1_000;
/// A minute, in milliseconds.
pub const MINUTE_MS: u64 = 60 * SECOND_MS;
/// An hour, in milliseconds.
pub const HOUR_MS: u64 = 60 * MINUTE_MS;
/// A day, in milliseconds.
pub const DAY_MS: u64 = 24 * HOUR_MS;
/// A year of 365 days, in milliseconds: an upper bound for settings, not a date.
pub const YEAR_MS: u64 = 365 * DAY_MS;

/// A minute, in seconds.
pub const MINUTE_S: u64 = 60;
/// An hour, in seconds.
pub const HOUR_S: u64 = 60 * MINUTE_S;
/// A day, in seconds: Unix time has no leap seconds.
pub const DAY_S: u64 = 24 * HOUR_S;
