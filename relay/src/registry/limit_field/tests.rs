use proptest::prelude::*;

use super::*;

/// Parses a value and formats it again.
fn reformat(name: &str, text: &str) -> Result<String, String> {
    let field = LimitField::named(name).unwrap();
    let mut limits = Limits::default();
    field.apply(text, &mut limits).map(|()| field.format(&limits))
}

#[test]
fn every_limit_has_exactly_one_name() {
    let json = |l: &Limits| serde_json::to_value(l).unwrap().as_object().unwrap().clone();
    let before = json(&Limits::default());
    let mut touched = std::collections::BTreeSet::new();
    for field in FIELDS {
        let mut limits = Limits::default();
        // The highest value differs from every default.
        (field.set)(&mut limits, field.max);
        let after = json(&limits);
        let changed: Vec<_> = before.keys().filter(|k| before[*k] != after[*k]).collect();
        assert_eq!(changed.len(), 1, "{}", field.name);
        touched.insert(changed[0].clone());
    }
    assert_eq!(touched.len(), before.len());
}

#[test]
fn values_are_written_with_their_units() {
    for (name, text, formatted) in [
        ("storage", "50 MB", "50 MB"),
        ("storage", "1GB", "1 GB"),
        ("memory", "64 MiB", "64 MiB"),
        ("requests-per-s", "20/s", "20"),
        ("requests-per-day", "10_000", "10000"),
        ("requests-per-day", "unlimited", "unlimited"),
        ("doze-after", "5 min", "5 min"),
        ("doze-after", "default", "default"),
        ("writes-per-day", "0", "0"),
        ("wakes-per-hour", "0", "0"),
        ("wakes-per-hour", "unlimited", "unlimited"),
        ("keep", "awake", "awake"),
        ("warm-hours", "08-18", "08-18"),
        ("warm-hours", "22 - 06", "22-06"),
        ("warm-hours", "none", "none"),
        ("price-usd-month", "4.99", "4.99"),
        ("price-usd-month", "20", "20"),
        ("body-max", "auto", "auto"),
        ("egress-per-day", "500MB", "500 MB"),
        ("egress-per-day", "10GB", "10 GB"),
        ("egress-per-day", "unlimited", "unlimited"),
        ("egress-per-day", "auto", "auto"),
        ("egress-per-day", "0 B", "0"),
        ("bytes-per-s", "2 MB/s", "2 MB"),
        ("bytes-per-s", "500 kB", "500 kB"),
        ("bytes-per-s", "unlimited", "unlimited"),
    ] {
        assert_eq!(reformat(name, text), Ok(formatted.to_owned()), "{name}: {text}");
    }
}

#[test]
fn invalid_values_report_the_expected_form() {
    let fault = reformat("storage", "lots").unwrap_err();
    assert_eq!(fault, "storage: expected a size with its unit such as 25 MB, 64 MiB or 1 GB");
    assert_eq!(
        reformat("memory", "1 MB").unwrap_err(),
        "memory: must be between 32 MiB and 64 GiB"
    );
    for (name, text) in [
        ("memory", "1 MB"),
        ("storage", "0"),
        ("doze-after", "0"),
        ("phext-max", "0 B"),
        ("body-max", "0 B"),
        ("storage", "25"),
        ("egress-per-day", "25"),
        ("egress-per-day", "none"),
        ("egress-per-day", "2000 TB"),
        ("bytes-per-s", "0 B"),
        ("bytes-per-s", "999 B/s"),
        ("storage", "25_000_000"),
        ("storage", "25 M"),
        ("doze-after", "5"),
        ("storage", "-1 MB"),
        ("storage", "99999999999 GB"),
        ("priority", "256"),
        ("weight", "9"),
        ("weight", "1001"),
        ("price-usd-month", "4.9"),
        ("keep", "Awake"),
        ("warm-hours", "8-18"),
        ("warm-hours", "24-25"),
        ("warm-hours", "08-00"),
        ("burst", ""),
        ("burst", "1_"),
    ] {
        assert!(reformat(name, text).is_err(), "{name}: {text}");
    }
}

proptest! {
    #[test]
    fn formatted_values_parse_to_the_same_limits(row in 0..FIELDS.len(), number: u64) {
        let field = FIELDS[row];
        let number = number.clamp(field.min, field.max);
        let mut limits = Limits::default();
        (field.set)(&mut limits, number);
        let mut parsed = Limits::default();
        field.apply(&field.format(&limits), &mut parsed).unwrap();
        prop_assert_eq!(limits, parsed);
    }

    #[test]
    fn no_text_panics(row in 0..FIELDS.len(), text in "[0-9a-zA-Z_. /é]{0,24}") {
        let _ = FIELDS[row].apply(&text, &mut Limits::default());
    }
}
