//! UTC hours, days and months without a clock: proleptic Gregorian calendar, Unix time.
//!
//! The gate judges quotas by it and the ledger keeps its sums by it, so both must mean the same.

use crate::time::{DAY_S, HOUR_S};

/// A calendar month: months since January of year 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Month(pub u64);

impl Month {
    /// The month that `unix_s` is in. After Howard Hinnant's `civil_from_days`.
    pub fn of(unix_s: u64) -> Self {
        let days = unix_s / DAY_S + 719_468;
        let (era, day) = (days / 146_097, days % 146_097);
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let of_year = day - (365 * year + year / 4 - year / 100);
        let from_march = (5 * of_year + 2) / 153;
        Self((era * 400 + year) * 12 + from_march + 2)
    }

    /// Its first second; 0 before 1970. After `days_from_civil`.
    pub fn start_s(self) -> u64 {
        let (from_march, year) = ((self.0 + 10) % 12, (self.0.max(2) - 2) / 12);
        let (era, of_era) = (year / 400, year % 400);
        let day = 365 * of_era + of_era / 4 - of_era / 100 + (153 * from_march + 2) / 5;
        (era * 146_097 + day).saturating_sub(719_468) * DAY_S
    }

    /// The month after.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// Reads `YYYY-MM`, from 1970 to 9999.
    pub fn parse(text: &str) -> Option<Self> {
        let (year, month) = text.split_once('-')?;
        let digits = |t: &str, n| t.len() == n && t.bytes().all(|b| b.is_ascii_digit());
        if !digits(year, 4) || !digits(month, 2) {
            return None;
        }
        let (year, month): (u64, u64) = (year.parse().ok()?, month.parse().ok()?);
        let good = year >= 1970 && (1..=12).contains(&month);
        good.then_some(Self(year * 12 + month - 1))
    }
}

impl std::fmt::Display for Month {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04}-{:02}", self.0 / 12, self.0 % 12 + 1)
    }
}

/// A second as people read it: `2026-12-31T23:59:59Z` (RFC 3339).
pub fn rfc3339(unix_s: u64) -> String {
    let month = Month::of(unix_s);
    let (day, second) = ((unix_s - month.start_s()) / DAY_S + 1, unix_s % DAY_S);
    let (hour, minute, second) = (second / HOUR_S, second / 60 % 60, second % 60);
    format!("{month}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn a_month_ends_with_its_last_second() {
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
    fn a_second_is_written_as_rfc_3339_has_it() {
        // date -ud @N +%FT%TZ
        assert_eq!(rfc3339(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(rfc3339(1_798_761_599), "2026-12-31T23:59:59Z");
    }

    #[test]
    fn every_month_starts_where_the_one_before_ends_and_reads_back() {
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
    fn what_is_not_a_month_is_refused() {
        for bad in ["", "2026", "2026-13", "2026-00", "26-01", "2026-1", "1969-12", "2026-01-01"] {
            assert_eq!(Month::parse(bad), None, "{bad}");
        }
    }
}
