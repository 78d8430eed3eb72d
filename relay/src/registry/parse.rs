//! From scrolls to a registry.
//!
//! Parsing never stops at the first fault: an operator sees all of them at once. Only a text without
//! any fault becomes a [`Registry`]. A fault never repeats a value from the text, since the value may
//! be a key that was put on the wrong line.

use std::collections::{BTreeMap, HashMap};

use libphext::phext::is_phext_break;
use protocol::key::KEY_PREFIX;
use protocol::{ApiKey, KeyHash, Limits, TenantId, TenantStatus, TierName, calendar};

use super::limit_field::LimitField;
use super::scroll::{self, Entry, Scroll};
use super::{Fault, Faults, Key, Registry, Tenant, status_text};

/// More keys than a rotation can need; bounds the memory that one tenant takes in the relay.
pub(super) const KEYS_PER_TENANT_MAX: usize = 32;

/// Names of a tenant's lines, for the fault of an unknown one.
const TENANT_LINES: &str = "tenant, key, key-sha256, tier, status, a limit or x-…";

#[derive(Default)]
struct Parser {
    registry: Registry,
    key_owners: HashMap<KeyHash, TenantId>,
    faults: Faults,
}

pub(super) fn parse(bytes: &[u8]) -> Result<Registry, Faults> {
    let mut parser = Parser::default();
    let scrolls = scroll::split(bytes, &mut parser.faults);
    let (tier_scrolls, tenant_scrolls): (Vec<_>, Vec<_>) =
        scrolls.iter().partition(|scroll| scroll.is_tiers());
    // Tiers come first, wherever their scroll stands: tenants refer to them.
    parser.add_tier_scrolls(&tier_scrolls);
    for scroll in tenant_scrolls {
        parser.add_tenant(scroll);
    }
    parser.registry.unterminated = bytes.last().is_some_and(|byte| !is_phext_break(*byte));
    parser.faults.sort();
    if parser.faults.is_empty() { Ok(parser.registry) } else { Err(parser.faults) }
}

impl Parser {
    fn add_tier_scrolls(&mut self, scrolls: &[&Scroll]) {
        let Some((first, others)) = scrolls.split_first() else {
            // An empty or truncated file must never pass for a registry without tenants. If it has
            // another fault, this one would only distract.
            if self.faults.is_empty() {
                self.faults.push(Fault::of_text("no scroll begins with a line `tiers`"));
            }
            return;
        };
        self.add_tiers(first);
        for scroll in others {
            let first = &first.coordinate_text;
            self.faults.push(
                scroll.fault_at_start(format!("a second scroll of tiers; the first is at {first}")),
            );
        }
    }

    fn add_tiers(&mut self, scroll: &Scroll) {
        let mut current: Option<(TierName, Limits)> = None;
        let mut seen = Vec::new();
        let mut before_first_tier = true;
        // The first entry is the line `tiers`.
        for entry in scroll.entries.iter().skip(1) {
            if entry.name == "tier" {
                self.registry.tiers.extend(current.take());
                current = self.tier_name(scroll, entry).map(|name| (name, Limits::default()));
                seen.clear();
                before_first_tier = false;
                continue;
            }
            if !self.check_first_of_name(&mut seen, scroll, entry) {
                continue;
            }
            let Some(field) = LimitField::named(&entry.name) else {
                self.faults.push(scroll.unknown_name_fault(entry, "tier or a limit"));
                continue;
            };
            // The limits of a tier whose name is at fault are still checked, in a spare set.
            let mut spare = Limits::default();
            let limits = current.as_mut().map_or(&mut spare, |(_, limits)| limits);
            if let Err(what) = field.apply(&entry.value, limits) {
                self.faults.push(scroll.fault(entry, what));
            } else if before_first_tier {
                let what =
                    format!("{}: a limit must follow the `tier:` line of its tier", field.name);
                self.faults.push(scroll.fault(entry, what));
            }
        }
        self.registry.tiers.extend(current);
        if self.registry.tiers.is_empty() && self.faults.is_empty() {
            self.faults.push(scroll.fault_at_start("the scroll has no tier; add `tier: free`"));
        }
    }

    fn tier_name(&mut self, scroll: &Scroll, entry: &Entry) -> Option<TierName> {
        match TierName::parse(&entry.value) {
            Ok(name) if self.registry.tiers.contains_key(&name) => {
                self.faults.push(scroll.fault(entry, format!("tier: {name} is defined twice")));
                None
            }
            Ok(name) => Some(name),
            Err(error) => {
                self.faults.push(scroll.fault(entry, format!("tier: {error}")));
                None
            }
        }
    }

    fn add_tenant(&mut self, scroll: &Scroll) {
        let faults_before = self.faults.len();
        let Some(id) = self.tenant_id(scroll) else { return };
        let tier = self.tenant_tier(scroll);
        let tier_limits = tier.as_ref().and_then(|tier| self.registry.tiers.get(tier));
        let mut limits = tier_limits.cloned().unwrap_or_default();
        let mut status = TenantStatus::Active;
        let mut keys = Vec::new();
        let mut notes = BTreeMap::new();
        let mut seen = Vec::new();
        for entry in &scroll.entries {
            if matches!(entry.name.as_str(), "key" | "key-sha256") {
                // The only names that may be repeated.
                keys.extend(self.key(scroll, entry, &id));
                continue;
            }
            if !self.check_first_of_name(&mut seen, scroll, entry) {
                continue;
            }
            match entry.name.as_str() {
                "tenant" | "tier" => {}
                "status" => status = self.status(scroll, entry),
                name if name.starts_with("x-") => {
                    notes.insert(name.to_owned(), entry.value.clone());
                }
                name => match LimitField::named(name) {
                    Some(field) => {
                        if let Err(what) = field.apply(&entry.value, &mut limits) {
                            self.faults.push(scroll.fault(entry, what));
                        }
                    }
                    None => self.faults.push(scroll.unknown_name_fault(entry, TENANT_LINES)),
                },
            }
        }
        if keys.len() > KEYS_PER_TENANT_MAX {
            let what = format!("{} keys; a tenant has at most {KEYS_PER_TENANT_MAX}", keys.len());
            self.faults.push(scroll.fault_at_start(what));
        }
        // A tenant at fault is left out: nothing is built from it.
        if let Some(tier) = tier.filter(|_| self.faults.len() == faults_before) {
            let coordinate = scroll.coordinate;
            let tenant = Tenant { coordinate, tier, status, keys, limits, notes };
            self.registry.tenants.insert(id, tenant);
        }
    }

    fn tenant_id(&mut self, scroll: &Scroll) -> Option<TenantId> {
        let Some(entry) = scroll.entries.iter().find(|entry| entry.name == "tenant") else {
            let what = "the scroll has neither a line `tenant: NAME` nor `tiers` as its first line";
            self.faults.push(scroll.fault_at_start(what));
            return None;
        };
        let id = match TenantId::parse(&entry.value) {
            Ok(id) => id,
            Err(error) => {
                self.faults.push(scroll.fault(entry, format!("tenant: {error}")));
                return None;
            }
        };
        // A key has the form of a name, and names are shown everywhere.
        if id.as_str().starts_with(KEY_PREFIX) {
            let what = format!("tenant: a name must not begin with {KEY_PREFIX}");
            self.faults.push(scroll.fault(entry, what));
            return None;
        }
        if let Some(other) = self.registry.tenants.get(&id) {
            let what = format!("tenant: {id} is already defined at {}", other.coordinate);
            self.faults.push(scroll.fault(entry, what));
        }
        Some(id)
    }

    fn tenant_tier(&mut self, scroll: &Scroll) -> Option<TierName> {
        let Some(entry) = scroll.entries.iter().find(|entry| entry.name == "tier") else {
            self.faults.push(scroll.fault_at_start("the tenant has no line `tier: NAME`"));
            return None;
        };
        let tiers = &self.registry.tiers;
        let tier = TierName::parse(&entry.value).ok().filter(|name| tiers.contains_key(name));
        if tier.is_none() {
            let names: Vec<_> = tiers.keys().map(TierName::as_str).collect();
            let what = format!("tier: unknown tier; the registry defines {}", names.join(", "));
            self.faults.push(scroll.fault(entry, what));
        }
        tier
    }

    fn status(&mut self, scroll: &Scroll, entry: &Entry) -> TenantStatus {
        let all = [TenantStatus::Active, TenantStatus::Suspended];
        all.into_iter().find(|status| status_text(*status) == entry.value).unwrap_or_else(|| {
            self.faults.push(scroll.fault(entry, "status: expected active or suspended"));
            TenantStatus::Active
        })
    }

    fn key(&mut self, scroll: &Scroll, entry: &Entry, tenant: &TenantId) -> Option<Key> {
        let key = match parse_key(entry) {
            Ok(key) => key,
            Err(what) => {
                self.faults.push(scroll.fault(entry, what));
                return None;
            }
        };
        if let Some(owner) = self.key_owners.insert(key.hash, tenant.clone()) {
            let what = format!("{}: this key already belongs to {owner}", entry.name);
            self.faults.push(scroll.fault(entry, what));
        }
        Some(key)
    }

    /// Returns true if `entry` is the first of its name in the scroll or tier; otherwise reports it.
    fn check_first_of_name(
        &mut self,
        seen: &mut Vec<String>,
        scroll: &Scroll,
        entry: &Entry,
    ) -> bool {
        if seen.contains(&entry.name) {
            let what = format!("{} is set twice", entry.printable_name());
            self.faults.push(scroll.fault(entry, what));
            return false;
        }
        seen.push(entry.name.clone());
        true
    }
}

/// Parses `KEY` or `DIGEST`, optionally with `; expires=DATE`.
fn parse_key(entry: &Entry) -> Result<Key, String> {
    let name = &entry.name;
    let mut parts = entry.value.split(';').map(str::trim);
    let value = parts.next().unwrap_or_default();
    let plain_text = name == "key";
    let hash = if plain_text {
        ApiKey::parse(value).map(|key| key.hash()).map_err(|error| format!("{name}: {error}"))?
    } else {
        value.parse().map_err(|error| format!("{name}: {error}"))?
    };
    let mut expires_s = None;
    for part in parts {
        let date = part.strip_prefix("expires=").filter(|_| expires_s.is_none());
        let date = date
            .ok_or_else(|| format!("{name}: expected one `expires=DATE` after `;` and no more"))?;
        let end_s = calendar::parse_utc(date.trim()).ok_or_else(|| {
            format!("{name}: expected a date such as 2027-01-31 or 2027-01-31T23:59:59Z")
        })?;
        expires_s = Some(end_s);
    }
    Ok(Key { hash, expires_s, plain_text })
}
