use proptest::prelude::*;
use protocol::ApiKey;
use protocol::limits::MB;

use super::*;

const HASH: &str = "5f0c1d9f35b9d0d07e2ea7d7f0a1a26f3ad2ab1d8fb6bb2d3f43fb1e8ee0f4aa";
const TIERS: &str = "# notes\ntiers\ntier: free\n  burst: 5\ntier: pro\n  storage: 500 MB\n";

fn registry(scrolls: &[&str]) -> String {
    let mut text = TIERS.to_owned();
    for scroll in scrolls {
        text.push('\u{17}');
        text.push_str(scroll);
    }
    text
}

fn faults(text: impl AsRef<[u8]>) -> String {
    Registry::parse(text.as_ref()).unwrap_err().to_string()
}

/// The faults of a tenant's scroll that follows the tiers.
fn fault(scroll: &str) -> String {
    faults(registry(&[scroll]))
}

#[test]
fn a_tenants_limits_override_its_tiers() {
    let text = registry(&[&format!(
        "tenant: alice\nkey-sha256: {HASH}\ntier: pro\nburst: 7\nx-email: a@example.com # hers\n"
    )]);
    let registry = Registry::parse(text.as_bytes()).unwrap();
    let alice = &registry.tenants[&TenantId::parse("alice").unwrap()];
    assert_eq!((alice.limits.burst, alice.limits.storage_bytes), (7, 500 * MB));
    assert_eq!(alice.status, TenantStatus::Active);
    assert_eq!(alice.notes["x-email"], "a@example.com");
    assert_eq!(alice.coordinate.to_string(), "1.1.1/1.1.1/1.1.2");
}

#[test]
fn a_plain_key_works_with_a_warning() {
    let key = "pmb-v1-00112233445566778899aabbccddeeff";
    let text = registry(&[&format!("tenant: a\ntier: free\nkey: {key}; expires=2027-01-01")]);
    let registry = Registry::parse(text.as_bytes()).unwrap();
    let verdicts = registry.verdicts(0);
    let verdict = &verdicts[&ApiKey::parse(key).unwrap().hash()];
    assert_eq!(verdict.expires_s, Some(1_798_761_600));
    assert!(registry.verdicts(1_798_761_600).is_empty(), "the key has ended");
    assert_eq!(registry.next_expiry_s(0), Some(1_798_761_600));
    assert_eq!(registry.next_expiry_s(1_798_761_600), None);
    assert!(registry.warnings()[0].contains("plain text"));
    assert!(!format!("{registry:?}").contains(key));
}

#[test]
fn every_fault_has_its_coordinate_and_line() {
    for (scroll, expected) in [
        (
            "tenant: a\n\ntier: gold\n",
            "line 3 (line 9 of the file): tier: unknown tier; the registry defines free, pro",
        ),
        (
            "# x\ntier: free",
            "line 2 (line 8 of the file): the scroll has neither a line `tenant: NAME` nor `tiers` as its first line",
        ),
        ("tenant: a", "line 1 (line 7 of the file): the tenant has no line `tier: NAME`"),
        ("tenant: A\ntier: free", "line 1 (line 7 of the file): tenant: a name is"),
        (
            "tenant: a\ntier: free\nburst: lots",
            "line 3 (line 9 of the file): burst: expected a whole number",
        ),
        (
            "tenant: a\ntier: free\nbursts: 1",
            "line 3 (line 9 of the file): bursts is unknown; expected",
        ),
        ("tenant: a\ntier: free\ntier: free", "line 3 (line 9 of the file): tier is set twice"),
        ("tenant: a\ntier: free\nhello", "line 3 (line 9 of the file): expected `name: value`"),
        (
            "tenant: a\ntier: free\nstatus: off",
            "line 3 (line 9 of the file): status: expected active or suspended",
        ),
        ("tenant: a\ntier: free\nkey: abc", "line 3 (line 9 of the file): key: a key is pmb-v1-"),
        (
            "tenant: a\ntier: free\nkey-sha256: abc",
            "line 3 (line 9 of the file): key-sha256: a digest is",
        ),
        ("tenant: a\ntier: free\nx-a: \u{7}", "line 3 (line 9 of the file): control byte 0x07"),
        (
            "tiers\ntier: x",
            "line 1 (line 7 of the file): a second scroll of tiers; the first is at 1.1.1/1.1.1/1.1.1",
        ),
    ] {
        let found = fault(scroll);
        let expected = format!("1.1.1/1.1.1/1.1.2 {expected}");
        assert!(found.starts_with(&expected), "{scroll:?}:\n{found}");
        assert_eq!(found.lines().count(), 1, "{scroll:?}:\n{found}");
    }
}

#[test]
fn keys_and_tenants_are_unique() {
    let key = format!("key-sha256: {HASH}");
    let a = format!("tenant: a\ntier: free\n{key}\n");
    let b = format!("tenant: b\ntier: free\n{key}\n");
    assert!(
        faults(registry(&[&a, &b])).contains(
            "1.1.3 line 3 (line 12 of the file): key-sha256: this key already belongs to a"
        )
    );
    assert!(
        faults(registry(&[&a, "tenant: a\ntier: pro"]))
            .contains("tenant: a is already defined at 1.1.1/1.1.1/1.1.2")
    );
    assert!(
        fault(&format!("tenant: a\ntier: free\n{key}\n{key}"))
            .contains("key-sha256: this key already belongs to a")
    );
}

#[test]
fn a_limit_before_the_first_tier_is_a_fault() {
    let found = faults("tiers\n  burst: 5\n  storage: 1 GB\ntier: free\n");
    assert_eq!(
        found,
        "1.1.1/1.1.1/1.1.1 line 2 (line 2 of the file): burst: a limit must follow the \
         `tier:` line of its tier\n1.1.1/1.1.1/1.1.1 line 3 (line 3 of the file): storage: a limit must \
         follow the `tier:` line of its tier"
    );
}

#[test]
fn key_attributes_are_checked() {
    for attribute in
        ["expires=soon", "expires=", "ends=2027-01-01", "", "expires=2027-01-01;expires=2027-01-01"]
    {
        let found = fault(&format!("tenant: a\ntier: free\nkey-sha256: {HASH}; {attribute}"));
        assert!(found.contains("line 3"), "{attribute}: {found}");
    }
}

#[test]
fn all_faults_are_reported_in_order() {
    let text =
        "tiers\ntier: free\nburst: x\n\u{17}tenant: a\ntier: gold\nfoo: 1\n\u{17}tenant: a\n";
    let found = faults(text);
    let lines: Vec<_> = found.lines().map(|l| l.split_once(" (").unwrap().0).collect();
    assert_eq!(
        lines,
        [
            "1.1.1/1.1.1/1.1.1 line 3",
            "1.1.1/1.1.1/1.1.2 line 2",
            "1.1.1/1.1.1/1.1.2 line 3",
            "1.1.1/1.1.1/1.1.3 line 1",
        ],
        "{found}"
    );
}

#[test]
fn faults_never_repeat_a_key() {
    let key = "pmb-v1-00112233445566778899aabbccddeeff";
    for scroll in [
        format!("tenant: a\ntier: free\n{key}"),
        format!("tenant: a\ntier: free\n{key}: x"),
        format!("tenant: a\ntier: free\nkey: {key}0"),
        format!("tenant: {key}-and-more-of-it\ntier: {key}"),
        format!("tenant: {key}\ntier: free"),
        format!("tenant: a\ntier: free\nstatus: {key}"),
        format!("tenant: a\ntier: free\nburst: {key}"),
        format!("tenant: a\ntier: free\nkey-sha256: {HASH}; {key}"),
    ] {
        assert!(!fault(&scroll).contains("0011223344"), "{}", fault(&scroll));
    }
}

#[test]
fn an_empty_text_is_not_a_registry() {
    for text in ["", "\n", "# only words\n", "\u{17}\u{17}", "tiers\n", "tie"] {
        assert!(Registry::parse(text.as_bytes()).is_err(), "{text:?}");
    }
}

#[test]
fn a_fault_locates_invalid_utf8() {
    let mut bytes = registry(&["tenant: a\ntier: free\nx-name: "]).into_bytes();
    bytes.push(0xff);
    assert!(faults(bytes).contains(
        "1.1.1/1.1.1/1.1.2 line 3 (line 9 of the file): the text is not UTF-8 from here on"
    ));
}

#[test]
fn a_coordinate_beyond_999_is_refused() {
    let text = format!("{TIERS}{}tenant: a\ntier: free\n", "\u{17}".repeat(999));
    assert!(
        faults(text).contains(
            "1.1.1/1.1.1/1.1.1000 line 1 (line 7 of the file): the numbers of a coordinate"
        )
    );
}

#[test]
fn crlf_and_byte_order_marks_are_accepted() {
    let text = format!("\u{feff}{}", registry(&["tenant: a\ntier: free\n"])).replace('\n', "\r\n");
    assert_eq!(Registry::parse(text.as_bytes()).unwrap().tenants.len(), 1);
}

#[test]
fn the_templates_free_tier_has_the_defaults() {
    let registry = Registry::parse(crate::TEMPLATE.as_bytes()).unwrap();
    let tier = |name: &str| registry.tiers[&TierName::parse(name).unwrap()].clone();
    assert_eq!(tier("free"), Limits::default());
    let storage = ["free", "starter", "pro", "team"].map(|t| tier(t).storage_bytes / MB);
    assert_eq!(storage, [25, 100, 500, 1000]);
    for limits in registry.tiers.values() {
        // Measured: in 64 MiB, four concurrent requests are safe with phexts of 4 MB and bodies of
        // 2 MB.
        let concurrency = u64::from(limits.concurrency);
        let memory_units = limits.memory_bytes / (64 << 20);
        assert!(concurrency * limits.phext_max_bytes() <= memory_units * 16 * MB);
        assert!(concurrency * limits.body_max_bytes() <= memory_units * 8 * MB);
    }
}

#[test]
fn the_documentation_matches_the_parser() {
    let page = include_str!("../../../docs/registry.md");
    let example = page.split("```phext\n").nth(1).unwrap().split("```").next().unwrap();
    let registry = Registry::parse(example.replace("^W", "\u{17}").as_bytes()).unwrap();
    let bob = &registry.tenants[&TenantId::parse("bob").unwrap()];
    assert_eq!((bob.keys.len(), bob.status), (2, TenantStatus::Suspended));
    assert_eq!((bob.limits.storage_bytes, bob.limits.price_cents_month), (750 * MB, 2000));
    // The table lists every limit with its default.
    for field in limit_field::FIELDS {
        let row = page.lines().find(|l| l.starts_with(&format!("| `{}` |", field.name)));
        let default = row.unwrap_or(field.name).trim_end_matches(" |").rsplit("| ").next().unwrap();
        let mut limits = Limits { burst: 1, ..Limits::default() };
        field.apply(default, &mut limits).unwrap();
        assert_eq!(field.format(&limits), field.format(&Limits::default()), "{}", field.name);
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Registry::parse(&bytes);
    }

    #[test]
    fn no_text_of_registry_words_panics(words in proptest::collection::vec(prop_oneof![
        Just("tiers\n"), Just("tier: "), Just("free"), Just("tenant: "), Just("a"), Just("\n"),
        Just("key: "), Just("key-sha256: "), Just(HASH), Just("; expires="), Just("2027-01-01"),
        Just("storage: "), Just("25 MB"), Just("é"), Just("\u{17}"), Just("\u{1}"), Just("\u{1f}"),
        Just("\u{0}"), Just(" #"), Just(":"), Just("\r\n"), Just("x-a: "), Just("\u{feff}"),
    ], 0..60)) {
        let text = words.concat();
        let parsed = Registry::parse(text.as_bytes());
        prop_assert!(parsed.is_ok() || !parsed.unwrap_err().is_empty());
    }
}
