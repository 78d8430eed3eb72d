//! Months and dates in UTC, as Unix time counts them; no clock and no time zones.
//!
//! The gate checks monthly quotas with [`Month`] and the ledger keys its sums by it, so both must cut
//! time at the same second. The arithmetic is jiff's, without its clock and time-zone database. Its
//! `Timestamp` ends two hours before the year 9999 does, so civil dates are used throughout.

use std::fmt;

use jiff::SignedDuration;
use jiff::civil::{Date, DateTime, date};

/// Unix time 0.
const EPOCH: DateTime = date(1970, 1, 1).at(0, 0, 0, 0);

/// A calendar month in UTC: the number of months since January of year 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Month(pub u64);

impl Month {
    /// The month of a point in time, given in seconds since 1970.
    pub fn of(unix_s: u64) -> Self {
        Self::of_date(date_time(unix_s).date())
    }

    fn of_date(date: Date) -> Self {
        let year = u64::try_from(date.year()).unwrap_or(0);
        let month = u64::try_from(date.month()).unwrap_or(1);
        Self(year * 12 + month - 1)
    }

    /// The month's first second since 1970; 0 for months before that, and for those after 9999.
    pub fn start_s(self) -> u64 {
        let year = i16::try_from(self.0 / 12);
        let month = i8::try_from(self.0 % 12 + 1);
        let (Ok(year), Ok(month)) = (year, month) else {
            return 0;
        };
        Date::new(year, month, 1).map_or(0, |first| unix_s(first.at(0, 0, 0, 0)).unwrap_or(0))
    }

    /// The following month.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// Reads `YYYY-MM`, from 1970 to 9999.
    pub fn parse(text: &str) -> Option<Self> {
        let first: Date = format!("{text}-01").parse().ok()?;
        let month = Self::of_date(first);
        let is_canonical = first >= EPOCH.date() && month.to_string() == text;
        is_canonical.then_some(month)
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.0 / 12, self.0 % 12 + 1)
    }
}

/// Writes seconds since 1970 in the form of RFC 3339, `2026-12-31T23:59:59Z`; later than 9999 as its
/// last second.
pub fn rfc3339(unix_s: u64) -> String {
    format!("{}Z", date_time(unix_s))
}

/// Reads what [`rfc3339`] writes, or a bare day, `2026-12-31`, as its first second. Other forms of
/// RFC 3339 are refused, so that each point in time has one spelling in the registry.
pub fn parse_utc(text: &str) -> Option<u64> {
    let full = if text.contains('T') { text.to_owned() } else { format!("{text}T00:00:00Z") };
    let date_time: DateTime = full.strip_suffix('Z')?.parse().ok()?;
    let unix_s = unix_s(date_time)?;
    (rfc3339(unix_s) == full).then_some(unix_s)
}

fn date_time(unix_s: u64) -> DateTime {
    let since_epoch = SignedDuration::from_secs(i64::try_from(unix_s).unwrap_or(i64::MAX));
    let last_second = date(9999, 12, 31).at(23, 59, 59, 0);
    EPOCH.checked_add(since_epoch).unwrap_or(last_second)
}

/// Seconds since 1970; `None` before that.
fn unix_s(date_time: DateTime) -> Option<u64> {
    u64::try_from(date_time.duration_since(EPOCH).as_secs()).ok()
}

#[cfg(test)]
mod tests {
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn month_ends_with_its_last_second() {
        // date -ud @N +%Y-%m
        for (unix_s, month) in [
            (0, "1970-01"),
            (951_868_799, "2000-02"),
            (951_868_800, "2000-03"),
            (1_798_761_599, "2026-12"),
            (1_798_761_600, "2027-01"),
        ] {
            assert_eq!(Month::of(unix_s).to_string(), month, "{unix_s}");
        }
    }

    #[test]
    fn months_follow_each_other_without_gap() {
        let mut month = Month::of(0);
        while month < Month(2400 * 12) {
            let start_s = month.start_s();
            assert_eq!(Month::of(start_s), month);
            assert!(start_s == 0 || Month::of(start_s - 1).next() == month);
            assert_eq!(Month::parse(&month.to_string()), Some(month));
            month = month.next();
        }
    }

    #[test]
    fn malformed_month_is_refused() {
        for bad in ["", "2026", "2026-13", "2026-00", "26-01", "2026-1", "1969-12", "2026-01-01"] {
            assert_eq!(Month::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn dates_agree_with_gnu_date() {
        // date -u -d TEXT +%s
        for (text, unix_s) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:34:56Z", 951_827_696),
            ("2026-12-31T23:59:59Z", 1_798_761_599),
            ("2027-01-01T00:00:00Z", 1_798_761_600),
            ("2100-03-01T00:00:00Z", 4_107_542_400),
            ("9999-12-31T23:59:59Z", 253_402_300_799),
        ] {
            assert_eq!(parse_utc(text), Some(unix_s), "{text}");
            assert_eq!(rfc3339(unix_s), text);
        }
        assert_eq!(parse_utc("2027-01-01"), Some(1_798_761_600));
    }

    #[test]
    fn dates_survive_a_round_trip() {
        // A step of 199,999,999 s, a prime, meets all kinds of days and seconds.
        for unix_s in (0..253_402_300_800).step_by(199_999_999) {
            assert_eq!(parse_utc(&rfc3339(unix_s)), Some(unix_s));
        }
    }

    #[test]
    fn malformed_date_is_refused() {
        for bad in [
            "",
            "2027",
            "2027-1-1",
            "2027-02-29",
            "2100-02-29",
            "2027-13-01",
            "2027-00-01",
            "2027-01-00",
            "1969-12-31",
            "2027-01-01T24:00:00Z",
            "2027-01-01T00:00:00",
            "2027-01-01T00:00:00+01:00",
            "2027-01-01T00:00:60Z",
            "2027-01-01T00:00:00.5Z",
            "2027-01-01 00:00:00Z",
            "2027-01-01T00:00Z",
            "+027-01-01",
            "20270101",
            "2027-01-01T",
            "2027-01-01TZ",
        ] {
            assert_eq!(parse_utc(bad), None, "{bad}");
        }
    }

    #[test]
    fn dates_after_9999_saturate() {
        assert_eq!(rfc3339(u64::MAX), "9999-12-31T23:59:59Z");
    }
}
