//! Any text: faults, or a registry that every command leaves valid.

#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::{KeyHash, TenantId, TenantStatus};
use relay::edit::{Document, NewTenant};
use relay::registry::Registry;

/// The time of the edits, in seconds since 1970.
const NOW_S: u64 = 1_800_000_000;

fuzz_target!(|text: &[u8]| {
    let registry = match Registry::parse(text) {
        Ok(registry) => registry,
        Err(faults) => return assert!(!faults.to_string().is_empty(), "refused without a fault"),
    };
    let document = Document::parse(text).expect("a valid registry can be edited");
    assert_eq!(document.registry(), &registry);
    assert_eq!(document.text().as_bytes(), text);
    let id = TenantId::parse("new-tenant").expect("a name");
    if let Some(tier) = registry.tiers.keys().next() {
        let key = KeyHash::of(b"pmb-v1-00000000000000000000000000000000");
        let new = NewTenant { id: id.clone(), tier: tier.clone(), key, lines: vec![] };
        if let Ok(added) = document.add(&new) {
            assert_eq!(added.registry().tenants.len(), registry.tenants.len() + 1);
            let removed = added.remove(&id).expect("the tenant was added");
            assert_eq!(removed.registry().tenants, registry.tenants);
        }
    }
    for (id, tenant) in &registry.tenants {
        for status in [TenantStatus::Suspended, TenantStatus::Active] {
            // A tenant whose lines are written in an odd way may be refused, and stays as it was.
            let Ok(edited) = document.set_status(id, status) else { continue };
            assert_eq!(edited.registry().tenants[id].status, status);
            assert_eq!(edited.registry().tenants[id].keys, tenant.keys);
            assert_eq!(edited.registry().tenants.len(), registry.tenants.len());
        }
        let key = KeyHash::of(b"pmb-v1-11111111111111111111111111111111");
        if let Ok(rotated) = document.rotate(id, key, NOW_S, NOW_S + 60) {
            let keys = &rotated.registry().tenants[id].keys;
            assert!(keys.iter().any(|one| one.hash == key && one.expires_s.is_none()));
        }
    }
});
