//! Numbers with units: `5min`, `90 s`, `256MiB`. The registry uses the same syntax.

/// A unit and how many of the base unit it is.
pub type Unit = (&'static str, u64);

/// Units of durations; the base unit is the millisecond. A unit that ends with another one's name
/// comes before it.
pub const DURATIONS_MS: &[Unit] =
    &[("ms", 1), ("min", 60_000), ("s", 1_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Units of sizes; the base unit is the byte.
pub const SIZES: &[Unit] = &[
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

/// Reads a whole number and its unit, with or without a space between them. A number without a unit
/// is refused unless it is 0: most likely the unit was forgotten or cut off.
pub fn parse(text: &str, units: &[Unit]) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let (number, factor) =
        units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)))?;
    parse_whole(number.trim_end())?.checked_mul(factor)
}

/// Reads digits, with `_` allowed between them.
pub fn parse_whole(text: &str) -> Option<u64> {
    let has_edge = text.starts_with('_') || text.ends_with('_');
    let is_number = !has_edge && text.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    if is_number { text.replace('_', "").parse().ok() } else { None }
}

/// Writes a number in the largest unit that shows it whole, with `space` in front of the unit.
pub fn format(value: u64, units: &[Unit], space: &str) -> String {
    let fits = |factor: u64| value >= factor && value.is_multiple_of(factor);
    let largest = units.iter().filter(|(_, factor)| fits(*factor)).max_by_key(|(_, factor)| factor);
    match largest {
        Some((unit, factor)) => format!("{}{space}{unit}", value / factor),
        None => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn number_and_unit_are_read() {
        for (text, ms) in [
            ("250ms", 250),
            ("30s", 30_000),
            ("90 s", 90_000),
            ("5min", 300_000),
            ("20h", 72_000_000),
            ("1d", 86_400_000),
            ("1_000ms", 1_000),
            ("0", 0),
            ("0s", 0),
        ] {
            assert_eq!(parse(text, DURATIONS_MS), Some(ms), "{text}");
        }
        assert_eq!(parse("256MiB", SIZES), Some(256 << 20));
        assert_eq!(parse("25 MB", SIZES), Some(25_000_000));
    }

    #[test]
    fn malformed_number_or_unit_is_refused() {
        for bad in ["", "s", "5", "5x", "1.5s", "-1s", "_1s", "1_s", "1 m s", "5 Min", "s5"] {
            assert_eq!(parse(bad, DURATIONS_MS), None, "{bad}");
        }
        assert_eq!(parse("18446744073709551615TB", SIZES), None);
    }

    #[test]
    fn largest_whole_unit_is_written() {
        for (ms, text) in
            [(250, "250ms"), (90_000, "90s"), (300_000, "5min"), (86_400_000, "1d"), (0, "0")]
        {
            assert_eq!(format(ms, DURATIONS_MS, ""), text);
            assert_eq!(parse(text, DURATIONS_MS), Some(ms));
        }
        assert_eq!(format(256 << 20, SIZES, " "), "256 MiB");
    }
}
