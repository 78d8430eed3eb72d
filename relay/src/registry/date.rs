//! UTC dates as the registry writes them: `2027-01-31T23:59:59Z`, or `2027-01-31` for its first
//! second. Seconds since 1970 inside. Years 1970 to 9999.
//!
//! Two functions instead of a calendar library: no zones, no locales, no leap seconds.

const DAY_S: u64 = 86_400;

/// Reads a date; `None` when it is not one.
pub fn parse(text: &str) -> Option<u64> {
    let (day, time) = match text.split_once('T') {
        Some((day, time)) => (day, Some(time.strip_suffix('Z')?)),
        None => (text, None),
    };
    let [year, month, of_month] = numbers(day, '-', [4, 2, 2])?;
    let [hour, minute, second] = match time {
        Some(time) => numbers(time, ':', [2, 2, 2])?,
        None => [0; 3],
    };
    let month_days = *days_of_months(year).get(usize::try_from(month).ok()?.checked_sub(1)?)?;
    let good = (1970..=9999).contains(&year)
        && (1..=month_days).contains(&of_month)
        && hour < 24
        && minute < 60
        && second < 60;
    let days = days_before_year(year)
        + days_of_months(year).iter().take(usize::try_from(month).ok()? - 1).sum::<u64>()
        + of_month;
    good.then(|| (days - 1) * DAY_S + hour * 3600 + minute * 60 + second)
}

/// Writes a date.
pub fn format(seconds: u64) -> String {
    let (mut days, time) = (seconds / DAY_S, seconds % DAY_S);
    // 366 is the longest year: the guess is never too late, and one correction is enough per year.
    let mut year = 1970 + days / 366;
    while days_before_year(year + 1) <= days {
        year += 1;
    }
    days -= days_before_year(year);
    let mut month = 1;
    for length in days_of_months(year) {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", days + 1)
}

fn numbers(text: &str, separator: char, widths: [usize; 3]) -> Option<[u64; 3]> {
    let mut parts = text.split(separator);
    let mut out = [0; 3];
    for (slot, width) in out.iter_mut().zip(widths) {
        let part = parts.next()?;
        let digits = part.len() == width && part.bytes().all(|b| b.is_ascii_digit());
        *slot = if digits { part.parse().ok()? } else { return None };
    }
    parts.next().is_none().then_some(out)
}

fn leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_of_months(year: u64) -> [u64; 12] {
    [31, if leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
}

/// Days from 1970-01-01 to the first of January of `year`.
fn days_before_year(year: u64) -> u64 {
    let leaps = |y: u64| y / 4 - y / 100 + y / 400;
    year.saturating_sub(1970) * 365 + leaps(year.saturating_sub(1)).saturating_sub(leaps(1969))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dates_agree_with_the_calendar() {
        // date -u -d … +%s
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:34:56Z", 951_827_696),
            ("2027-01-01T00:00:00Z", 1_798_761_600),
            ("2100-03-01T00:00:00Z", 4_107_542_400),
            ("9999-12-31T23:59:59Z", 253_402_300_799),
        ] {
            assert_eq!(parse(text), Some(seconds), "{text}");
            assert_eq!(format(seconds), text);
        }
        assert_eq!(parse("2027-01-01"), Some(1_798_761_600));
    }

    #[test]
    fn what_is_no_date_is_refused() {
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
            "2027-01-01 00:00:00Z",
            "2027-01-01T00:00Z",
            "+027-01-01",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_second_survives_the_round_trip(seconds in 0..253_402_300_800_u64) {
            prop_assert_eq!(parse(&format(seconds)), Some(seconds));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = parse(&text);
        }
    }
}
