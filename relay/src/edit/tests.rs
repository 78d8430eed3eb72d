use libphext::phext::PositionedScroll;
use proptest::prelude::*;

use super::*;

fn hash(n: u8) -> KeyHash {
    KeyHash::of(&[n])
}

fn id(name: &str) -> TenantId {
    TenantId::parse(name).unwrap()
}

fn tier(name: &str) -> TierName {
    TierName::parse(name).unwrap()
}

fn new_tenant(name: &str, key: u8) -> NewTenant {
    NewTenant { id: id(name), tier: tier("free"), key: hash(key), lines: Vec::new() }
}

fn template() -> Document {
    Document::parse(crate::TEMPLATE.as_bytes()).unwrap()
}

/// The template with `scroll`, which describes alice.
fn with_alice(scroll: &str) -> Document {
    Document::parse(format!("{}\u{17}{scroll}", crate::TEMPLATE).as_bytes()).unwrap()
}

fn scroll(document: &Document) -> String {
    document.scroll(&id("alice")).unwrap().1
}

#[test]
fn suspending_keeps_comments_and_spacing() {
    let written =
        "\n# Alice, since May\n  tenant:  alice\n\ttier:free # soon pro\n status :\tactive\t# ok\n";
    let suspended = with_alice(written).set_status(&id("alice"), TenantStatus::Suspended).unwrap();
    assert_eq!(scroll(&suspended), written.replace("active\t#", "suspended\t#"));
    let resumed = suspended.set_status(&id("alice"), TenantStatus::Active).unwrap();
    assert_eq!(resumed.text(), with_alice(written).text());
}

#[test]
fn a_new_line_follows_the_last_setting() {
    let document = with_alice("tenant: alice\r\n  tier: free\r\nx-email: a@b\r\n\r\n# end");
    let set = document.set_status(&id("alice"), TenantStatus::Suspended).unwrap();
    assert_eq!(
        scroll(&set),
        "tenant: alice\r\n  tier: free\r\n  status: suspended\r\nx-email: a@b\r\n\r\n# end"
    );
    let unended =
        with_alice("tenant: alice\ntier: free").set_status(&id("alice"), TenantStatus::Suspended);
    assert_eq!(scroll(&unended.unwrap()), "tenant: alice\ntier: free\nstatus: suspended\n");
}

#[test]
fn an_empty_value_removes_the_line() {
    let document = with_alice("tenant: alice\ntier: free\nburst: 7\nx-a: b\n");
    let set = document.set(&id("alice"), &[("burst".into(), String::new())]).unwrap();
    assert_eq!(scroll(&set), "tenant: alice\ntier: free\nx-a: b\n");
}

#[test]
fn edits_never_make_a_registry_invalid() {
    let document = with_alice("tenant: alice\ntier: free\n");
    let set = |name: &str, value: &str| {
        document.set(&id("alice"), &[(name.into(), value.into())]).unwrap_err()
    };
    assert!(matches!(set("storage", "lots"), EditError::WouldBreak(_)));
    assert!(matches!(set("tier", "gold"), EditError::WouldBreak(_)));
    assert!(matches!(set("x-a", "b\ntier: pro"), EditError::Unwritable(_)));
    assert!(matches!(set("x-a", "b\u{17}tenant: eve"), EditError::Unwritable(_)));
    assert!(matches!(set("x-a", "b # c"), EditError::Unwritable(_)));
    assert!(matches!(set("x: a", "b"), EditError::Unwritable(_)));
    assert!(matches!(set("tenant", "b"), EditError::Fixed(_)));
    assert!(matches!(document.add(&new_tenant("alice", 1)), Err(EditError::TenantExists(..))));
    let gold = NewTenant { tier: tier("gold"), ..new_tenant("bob", 1) };
    assert!(matches!(document.add(&gold), Err(EditError::NoTier(..))));
    assert!(matches!(document.remove(&id("bob")), Err(EditError::NoTenant(_))));
    assert!(matches!(Document::parse(b"nothing"), Err(EditError::Invalid(_))));
}

#[test]
fn a_tenant_can_be_added_suspended() {
    let lines = vec![("status".to_owned(), "suspended".to_owned())];
    let document = template().add(&NewTenant { lines, ..new_tenant("alice", 1) }).unwrap();
    assert_eq!(document.registry().tenants[&id("alice")].status, TenantStatus::Suspended);
}

#[test]
fn rotation_ends_old_keys_and_removes_ended_ones() {
    let a = hash(1);
    let b = hash(2);
    let c = hash(3);
    let document = with_alice(&format!(
        "tenant: alice\nkey-sha256: {a}  # first\nkey-sha256: {b}; expires=2020-01-01\n\
         key-sha256: {c};expires=2026-05-01\ntier: free\n"
    ));
    let now = calendar::parse_utc("2026-01-01").unwrap();
    let end = calendar::parse_utc("2026-06-01T12:00:00Z").unwrap();
    let rotated = document.rotate(&id("alice"), hash(4), now, end).unwrap();
    assert_eq!(
        scroll(&rotated),
        format!(
            "tenant: alice\nkey-sha256: {a}; expires=2026-06-01T12:00:00Z  # first\n\
             key-sha256: {c};expires=2026-05-01\nkey-sha256: {}\ntier: free\n",
            hash(4)
        )
    );
}

#[test]
fn rotation_gives_a_keyless_tenant_a_key() {
    let document = with_alice("tenant: alice\ntier: free\n");
    let rotated = document.rotate(&id("alice"), hash(4), 0, 1).unwrap();
    assert!(scroll(&rotated).starts_with("tenant: alice\nkey-sha256: "));
}

#[test]
fn the_thousandth_tenant_goes_to_the_next_section() {
    let mut text = crate::TEMPLATE.to_owned();
    for n in 2..=999 {
        let _ = write!(text, "\u{17}tenant: t{n}\ntier: free\n");
    }
    let document = Document::parse(text.as_bytes()).unwrap().add(&new_tenant("alice", 1)).unwrap();
    let coordinate = document.registry().tenants[&id("alice")].coordinate;
    assert_eq!(coordinate.to_string(), "1.1.1/1.1.1/1.2.1");
}

#[test]
fn the_last_coordinate_is_reused_after_removal() {
    let two = template().add(&new_tenant("alice", 1)).unwrap().add(&new_tenant("bob", 2)).unwrap();
    let one = two.remove(&id("alice")).unwrap();
    assert_eq!(one.registry().tenants[&id("bob")].coordinate.to_string(), "1.1.1/1.1.1/1.1.3");
    let none = one.remove(&id("bob")).unwrap();
    let again = none.add(&new_tenant("carol", 3)).unwrap();
    assert_eq!(again.registry().tenants[&id("carol")].coordinate.to_string(), "1.1.1/1.1.1/1.1.2");
}

/// Registries as an operator might write them.
fn hand_written() -> impl Strategy<Value = String> {
    let breaks = prop_oneof![
        4 => Just("\u{17}"), 1 => Just("\u{17}\u{17}"), 1 => Just("\u{18}"), 1 => Just("\u{1a}"),
        1 => Just("\u{17}\n# just words\n\u{17}"),
    ];
    let line = prop_oneof![
        Just("\n"),
        Just("# comment: é\n"),
        Just("  x-@: v # why\n"),
        Just("\tstatus :active\n"),
        Just("status:\tsuspended # late\r\n"),
        Just("storage: 50 MB\n"),
    ];
    let scroll = (breaks, proptest::collection::vec(line, 0..5), any::<bool>());
    (proptest::collection::vec(scroll, 1..6), any::<bool>()).prop_map(|(scrolls, first)| {
        let mut text = crate::TEMPLATE.to_owned();
        for (n, (gap, lines, spaced)) in scrolls.iter().enumerate() {
            let mut seen = Vec::new();
            text.push_str(gap);
            text.push_str(if *spaced { "\n# t\n  tenant : " } else { "tenant:" });
            let key = KeyHash::of(&[0, u8::try_from(n).unwrap()]);
            let _ = write!(text, "t{n}\nkey-sha256: {key}\ntier: free\n");
            for (i, line) in lines.iter().enumerate() {
                let name = line.trim().split(':').next().unwrap_or_default().trim();
                if name.starts_with('#') || name.is_empty() || !seen.contains(&name) {
                    text.push_str(&line.replace('@', &i.to_string()));
                    if !name.starts_with("x-") {
                        seen.push(name);
                    }
                }
            }
        }
        if first { format!("\u{feff}{text}") } else { text }
    })
}

/// The scrolls of the other tenants and of the tiers.
fn other_scrolls(document: &Document, id: &TenantId) -> Vec<PositionedScroll> {
    let coordinate = document.registry.tenants.get(id).map(|tenant| tenant.coordinate);
    let mut all = phext::phokenize(document.text());
    all.retain(|s| Some(s.coord) != coordinate && !s.scroll.is_empty());
    all
}

/// The lines that neither a status nor a rotation changes.
fn unedited_lines(scroll: &str) -> Vec<&str> {
    let lines = scroll.split_inclusive('\n');
    lines.filter(|line| !line.contains("status") && !line.contains("key-sha256")).collect()
}

proptest! {
    #[test]
    fn an_edit_leaves_other_bytes_unchanged(text in hand_written(), edit in 0..5) {
        let before = Document::parse(text.as_bytes()).unwrap();
        let t0 = id("t0");
        let (coordinate, old) = before.scroll(&t0).unwrap();
        let (start, end, _) = phext::get_subspace_coordinates(text.as_bytes(), coordinate);
        let after = match edit {
            0 => before.set_status(&t0, TenantStatus::Suspended).unwrap(),
            1 => before.set_status(&t0, TenantStatus::Active).unwrap(),
            2 => before.rotate(&t0, hash(99), 1_000, 2_000).unwrap(),
            3 => before.remove(&t0).unwrap(),
            _ => before.add(&new_tenant("zoe", 77)).unwrap(),
        };
        if edit == 4 {
            prop_assert!(after.text().starts_with(text.as_str()), "a new tenant comes last");
            return Ok(());
        }
        prop_assert!(after.text().starts_with(&text[..start]));
        prop_assert!(after.text().ends_with(&text[end..]));
        prop_assert_eq!(other_scrolls(&before, &t0).len(), phext::phokenize(&text).iter()
            .filter(|s| !s.scroll.is_empty()).count() - 1);
        // Within the scroll, the lines that the edit does not concern stay, in order.
        if edit != 3 {
            let (_, new) = after.scroll(&t0).unwrap();
            prop_assert_eq!(unedited_lines(&old), unedited_lines(&new));
        }
    }

    #[test]
    fn suspend_and_resume_restores_the_text(text in hand_written()) {
        let before = Document::parse(text.as_bytes()).unwrap();
        let t0 = id("t0");
        let was = before.registry().tenants[&t0].status;
        prop_assume!(before.scroll(&t0).unwrap().1.contains("status"));
        let other = match was {
            TenantStatus::Active => TenantStatus::Suspended,
            TenantStatus::Suspended => TenantStatus::Active,
        };
        let back = before.set_status(&t0, other).unwrap().set_status(&t0, was).unwrap();
        prop_assert_eq!(back.text(), text);
    }

    #[test]
    fn no_edit_panics(text in "(tiers\n|tier: a\n|tenant: t0\n|x-é:|\u{17}|\u{1}|\n| #|:)*", value in ".{0,8}") {
        if let Ok(document) = Document::parse(text.as_bytes()) {
            let _ = document.set(&id("t0"), &[("x-é".into(), value)]);
            let _ = document.rotate(&id("t0"), hash(1), 5, 6);
            let _ = document.remove(&id("t0"));
        }
    }
}
