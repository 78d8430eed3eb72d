//! The registry's text, read: tiers, tenants and their keys. Pure: text in, registry or faults out.
//!
//! A registry is a phext: one scroll per tenant and one scroll whose first line is `tiers`.
//! Reading goes bytes → text → scrolls → lines → entries → registry, and each step reports what it
//! finds wrong with coordinate and line; only a text without any fault becomes a [`Registry`].
//! The format is described in docs/registry.md.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use libphext::phext::{Coordinate, is_phext_break};
use protocol::calendar;
use protocol::key::KEY_PREFIX;
use protocol::{ApiKey, KeyHash, Limits, TenantId, TenantStatus, TierName, Verdict};

pub mod fault;
pub mod limit_field;
pub mod line;
pub mod redact;
pub mod scroll;
pub mod truncation;

pub use fault::{Fault, Faults};
use limit_field::Field;
use scroll::{Entry, Scroll};

/// A registry without a fault.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registry {
    /// What the tiers are worth.
    pub tiers: BTreeMap<TierName, Limits>,
    /// Who may use the gateway.
    pub tenants: BTreeMap<TenantId, Tenant>,
    /// The text's last line has no end: some editors leave it so, and a cut may.
    pub open_line: bool,
}

/// One tenant's scroll.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Where the scroll stands.
    pub at: Coordinate,
    /// The tier it pays for.
    pub tier: TierName,
    /// Whether it may be served.
    pub status: TenantStatus,
    /// Its keys, in the order of the scroll.
    pub keys: Vec<Key>,
    /// The tier's limits with the scroll's own applied.
    pub limits: Limits,
    /// The `x-…` lines.
    pub notes: BTreeMap<String, String>,
}

/// One of a tenant's keys.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// Its digest.
    pub hash: KeyHash,
    /// When it ends, seconds since 1970 UTC.
    pub expires_s: Option<u64>,
    /// It stands in the registry as plain text.
    pub plain: bool,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} (expires: {:?}, plain: {})", self.hash, self.expires_s, self.plain)
    }
}

/// More keys than a rotation can need; a bound for what one tenant costs the relay.
pub const KEYS_PER_TENANT: usize = 32;

impl Key {
    /// Whether it is good at `now_s`.
    pub fn live(&self, now_s: u64) -> bool {
        self.expires_s.is_none_or(|end| now_s < end)
    }
}

impl Registry {
    /// Reads a registry.
    pub fn read(bytes: &[u8]) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let scrolls = scroll::scrolls(bytes, &mut faults);
        let open_line = bytes.last().is_some_and(|byte| !is_phext_break(*byte));
        let mut registry = Self { open_line, ..Self::default() };
        let (tiers, tenants): (Vec<_>, Vec<_>) = scrolls.iter().partition(|s| s.is_tiers());
        match tiers.as_slice() {
            // An empty or cut file must never pass for a registry without tenants.
            [] if faults.is_empty() => {
                faults.push(Fault::whole("there is no scroll that begins with a line `tiers`"));
            }
            [] => {}
            [first, more @ ..] => {
                registry.read_tiers(first, &mut faults);
                for scroll in more {
                    let what = format!("the tiers stand at {} already", first.at);
                    faults.push(scroll.first_fault(what));
                }
            }
        }
        let mut owners = HashMap::new();
        for scroll in tenants {
            registry.read_tenant(scroll, &mut owners, &mut faults);
        }
        faults.sort();
        if faults.is_empty() { Ok(registry) } else { Err(faults) }
    }

    fn read_tiers(&mut self, scroll: &Scroll, faults: &mut Faults) {
        let mut current: Option<(TierName, Limits)> = None;
        let mut seen = Vec::new();
        let mut begun = false;
        for entry in scroll.entries.iter().skip(1) {
            if entry.name == "tier" {
                begun = true;
                self.tiers.extend(current.take());
                seen.clear();
                match TierName::parse(&entry.value) {
                    Ok(name) if self.tiers.contains_key(&name) => {
                        faults.push(scroll.fault(entry, format!("tier: {name} is there already")));
                    }
                    Ok(name) => current = Some((name, Limits::default())),
                    Err(e) => faults.push(scroll.fault(entry, format!("tier: {e}"))),
                }
            } else if !once(&mut seen, scroll, entry, faults) {
            } else if let Some(field) = Field::named(&entry.name) {
                // The lines of a tier whose own line is at fault are checked all the same.
                let mut spare = Limits::default();
                let limits = current.as_mut().map_or(&mut spare, |(_, limits)| limits);
                if let Err(what) = field.apply(&entry.value, limits) {
                    faults.push(scroll.fault(entry, what));
                } else if !begun {
                    let what = format!("{}: a limit stands after the `tier:` it is of", field.name);
                    faults.push(scroll.fault(entry, what));
                }
            } else {
                faults.push(scroll.unknown(entry, "tier or a limit"));
            }
        }
        self.tiers.extend(current);
        if self.tiers.is_empty() && faults.is_empty() {
            faults.push(scroll.first_fault("there is no tier; write `tier: free`".to_owned()));
        }
    }

    fn read_tenant(
        &mut self,
        scroll: &Scroll,
        owners: &mut HashMap<KeyHash, TenantId>,
        faults: &mut Faults,
    ) {
        let before = faults.len();
        let Some(id) = self.tenant_id(scroll, faults) else { return };
        let tier = self.tenant_tier(scroll, faults);
        let mut limits = tier.as_ref().and_then(|t| self.tiers.get(t)).cloned().unwrap_or_default();
        let mut status = TenantStatus::Active;
        let (mut keys, mut notes, mut seen) = (Vec::new(), BTreeMap::new(), Vec::new());
        for entry in &scroll.entries {
            match entry.name.as_str() {
                "key" | "key-sha256" => match read_key(entry) {
                    Ok(key) => keys.push((entry, key)),
                    Err(what) => faults.push(scroll.fault(entry, what)),
                },
                _ if !once(&mut seen, scroll, entry, faults) => {}
                "tenant" | "tier" => {}
                "status" => match entry.value.as_str() {
                    "active" => status = TenantStatus::Active,
                    "suspended" => status = TenantStatus::Suspended,
                    _ => faults.push(scroll.fault(entry, "status: write active or suspended")),
                },
                name if name.starts_with("x-") => {
                    notes.insert(name.to_owned(), entry.value.clone());
                }
                name => {
                    match Field::named(name).map(|f| f.apply(&entry.value, &mut limits)) {
                        Some(Ok(())) => {}
                        Some(Err(what)) => faults.push(scroll.fault(entry, what)),
                        None => faults.push(scroll.unknown(
                            entry,
                            "tenant, key, key-sha256, tier, status, a limit or x-…",
                        )),
                    }
                }
            }
        }
        if keys.len() > KEYS_PER_TENANT {
            faults.push(scroll.first_fault(format!("more than {KEYS_PER_TENANT} keys")));
        }
        for (entry, key) in &keys {
            if let Some(owner) = owners.insert(key.hash, id.clone()) {
                faults.push(scroll.fault(entry, format!("this key is {owner}'s already")));
            }
        }
        let keys = keys.into_iter().map(|(_, key)| key).collect();
        if let (Some(tier), true) = (tier, before == faults.len()) {
            let tenant = Tenant { at: scroll.coordinate, tier, status, keys, limits, notes };
            self.tenants.insert(id, tenant);
        }
    }

    fn tenant_id(&self, scroll: &Scroll, faults: &mut Faults) -> Option<TenantId> {
        let Some(entry) = scroll.entries.iter().find(|e| e.name == "tenant") else {
            let what = "the scroll has no `tenant: NAME` line (and is not the tiers)";
            faults.push(scroll.first_fault(what.to_owned()));
            return None;
        };
        match TenantId::parse(&entry.value) {
            // It would be shown everywhere, and a key fits into a name.
            Ok(id) if id.as_str().starts_with(KEY_PREFIX) => {
                let what = format!("tenant: a name does not begin with {KEY_PREFIX}");
                faults.push(scroll.fault(entry, what));
                None
            }
            Ok(id) => {
                if let Some(other) = self.tenants.get(&id) {
                    let what = format!("tenant: {id} stands at {} already", other.at);
                    faults.push(scroll.fault(entry, what));
                }
                Some(id)
            }
            Err(e) => {
                faults.push(scroll.fault(entry, format!("tenant: {e}")));
                None
            }
        }
    }

    fn tenant_tier(&self, scroll: &Scroll, faults: &mut Faults) -> Option<TierName> {
        let Some(entry) = scroll.entries.iter().find(|e| e.name == "tier") else {
            faults.push(scroll.first_fault("the tenant has no `tier: NAME` line".to_owned()));
            return None;
        };
        let known = TierName::parse(&entry.value).ok().filter(|t| self.tiers.contains_key(t));
        if known.is_none() {
            let names: Vec<_> = self.tiers.keys().map(TierName::as_str).collect();
            let what = format!("tier: there is no such tier; there are: {}", names.join(", "));
            faults.push(scroll.fault(entry, what));
        }
        known
    }

    /// What each live key's verdict is at `now_s`.
    pub fn verdicts(&self, now_s: u64) -> HashMap<KeyHash, Verdict> {
        let mut verdicts = HashMap::new();
        for (id, tenant) in &self.tenants {
            for key in tenant.keys.iter().filter(|k| k.live(now_s)) {
                let verdict = Verdict {
                    tenant: id.clone(),
                    tier: tenant.tier.clone(),
                    status: tenant.status,
                    expires_s: key.expires_s,
                    limits: tenant.limits.clone(),
                };
                verdicts.insert(key.hash, verdict);
            }
        }
        verdicts
    }

    /// When the next key ends after `now_s`.
    pub fn next_expiry_s(&self, now_s: u64) -> Option<u64> {
        let ends = self.tenants.values().flat_map(|t| &t.keys).filter_map(|k| k.expires_s);
        ends.filter(|end| *end > now_s).min()
    }

    /// How many keys there are, ended ones included.
    pub fn keys(&self) -> usize {
        self.tenants.values().map(|t| t.keys.len()).sum()
    }

    /// What is not wrong but should not stay.
    pub fn warnings(&self) -> Vec<String> {
        let plain = self.tenants.iter().filter(|(_, t)| t.keys.iter().any(|k| k.plain));
        let keyless = self.tenants.iter().filter(|(_, t)| t.keys.is_empty());
        plain
            .map(|(id, t)| format!("{}: {id} has a key in plain text; write key-sha256", t.at))
            .chain(keyless.map(|(id, t)| format!("{}: {id} has no key", t.at)))
            .collect()
    }
}

/// Whether the entry's name comes for the first time; a fault when not.
fn once(seen: &mut Vec<String>, scroll: &Scroll, entry: &Entry, faults: &mut Faults) -> bool {
    if seen.contains(&entry.name) {
        faults.push(scroll.fault(entry, format!("{} is there twice", entry.shown())));
        return false;
    }
    seen.push(entry.name.clone());
    true
}

/// Reads `KEY` or `DIGEST`, both perhaps with `; expires=DATE`. A fault never repeats the value.
fn read_key(entry: &Entry) -> Result<Key, String> {
    let name = &entry.name;
    let mut parts = entry.value.split(';').map(str::trim);
    let value = parts.next().unwrap_or_default();
    let plain = name == "key";
    let hash = if plain {
        ApiKey::parse(value).map(|k| k.hash()).map_err(|e| format!("{name}: {e}"))?
    } else {
        value.parse().map_err(|e| format!("{name}: {e}"))?
    };
    let mut expires_s = None;
    for part in parts {
        let date = part.strip_prefix("expires=").filter(|_| expires_s.is_none());
        let date = date.ok_or_else(|| format!("{name}: after `;` only one `expires=DATE`"))?;
        let end = calendar::parse_utc(date.trim())
            .ok_or_else(|| format!("{name}: a date is 2027-01-31 or 2027-01-31T23:59:59Z"))?;
        expires_s = Some(end);
    }
    Ok(Key { hash, expires_s, plain })
}

#[cfg(test)]
mod tests;
