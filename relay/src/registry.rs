//! The registry: tiers, tenants and their keys. Pure: text in, registry or faults out.
//!
//! A registry is a phext with one scroll per tenant and one scroll of tiers, which begins with a line
//! `tiers`. docs/registry.md describes the format for operators.
//!
//! | file | contents |
//! |---|---|
//! | `parse.rs` | scrolls → [`Registry`], or every fault at once |
//! | `scroll.rs`, `line.rs` | bytes → scrolls → entries, and the parts of one line |
//! | `limit_field.rs`, `unit.rs` | the names of limits, and how their values are written |
//! | `odd_limits.rs` | limits that are valid and hardly meant |
//! | `fault.rs` | faults with coordinate and line |
//! | `truncation.rs` | signs that a valid registry has lost its end |
//! | `redact.rs` | the text with digests in place of plain keys |

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use libphext::phext::Coordinate;
use protocol::{KeyHash, Limits, TenantId, TenantStatus, TierName, Verdict};

mod fault;
pub(crate) mod limit_field;
pub(crate) mod line;
mod odd_limits;
mod parse;
pub(crate) mod redact;
pub(crate) mod scroll;
pub(crate) mod truncation;
pub(crate) mod unit;

pub(crate) use fault::Fault;
pub use fault::Faults;

/// A registry without faults.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registry {
    /// Limits of each tier.
    pub tiers: BTreeMap<TierName, Limits>,
    /// Tenants by name, suspended ones included.
    pub tenants: BTreeMap<TenantId, Tenant>,
    /// True if the last line has no line end. Some editors save like this; truncation also does it.
    pub unterminated: bool,
}

/// A tenant, read from its scroll.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Coordinate of the scroll.
    pub coordinate: Coordinate,
    /// The tier that it pays for.
    pub tier: TierName,
    /// Active, or suspended: answered with 403.
    pub status: TenantStatus,
    /// Keys in the order of the scroll, ended ones included.
    pub keys: Vec<Key>,
    /// The tier's limits with the tenant's exceptions applied.
    pub limits: Limits,
    /// The operator's `x-…` lines.
    pub notes: BTreeMap<String, String>,
}

/// A key of a tenant, known by its digest.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// SHA-256 of the key.
    pub hash: KeyHash,
    /// End of the key in seconds since 1970 UTC; `None` for a key without end.
    pub expires_s: Option<u64>,
    /// True if the registry contains the key itself instead of its digest.
    pub plain_text: bool,
}

impl Registry {
    /// Parses the bytes of a registry, or reports every fault in the order of the text.
    pub fn parse(bytes: &[u8]) -> Result<Self, Faults> {
        parse::parse(bytes)
    }

    /// The verdicts on all keys that are live at `now_s`.
    pub(crate) fn verdicts(&self, now_s: u64) -> HashMap<KeyHash, Verdict> {
        let mut verdicts = HashMap::new();
        for (id, tenant) in &self.tenants {
            for key in tenant.keys.iter().filter(|key| key.is_live(now_s)) {
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

    /// The earliest end of a key after `now_s`, in seconds since 1970 UTC.
    pub(crate) fn next_expiry_s(&self, now_s: u64) -> Option<u64> {
        self.keys().filter_map(|key| key.expires_s).filter(|end| *end > now_s).min()
    }

    /// All keys of all tenants, ended ones included.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.tenants.values().flat_map(|tenant| &tenant.keys)
    }

    /// Findings that are no faults but should be corrected, one line each.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for (name, limits) in &self.tiers {
            let findings = odd_limits::findings(limits);
            warnings.extend(findings.iter().map(|finding| format!("tier {name}: {finding}")));
        }
        for (id, tenant) in &self.tenants {
            let coordinate = tenant.coordinate;
            if tenant.keys.is_empty() {
                warnings.push(format!("{coordinate}: tenant {id} has no key"));
            }
            if tenant.keys.iter().any(|key| key.plain_text) {
                warnings.push(format!(
                    "{coordinate}: tenant {id} has a key in plain text; replace it by \
                     `key-sha256: DIGEST`"
                ));
            }
            if self.tiers.get(&tenant.tier) != Some(&tenant.limits) {
                for finding in odd_limits::findings(&tenant.limits) {
                    warnings.push(format!("{coordinate}: tenant {id}: {finding}"));
                }
            }
        }
        warnings
    }
}

impl Key {
    /// Returns true if the key has not ended at `now_s`.
    pub(crate) fn is_live(&self, now_s: u64) -> bool {
        self.expires_s.is_none_or(|end| now_s < end)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("hash", &self.hash)
            .field("expires_s", &self.expires_s)
            .field("plain_text", &self.plain_text)
            .finish()
    }
}

/// The value of a `status:` line.
pub(crate) fn status_text(status: TenantStatus) -> &'static str {
    match status {
        TenantStatus::Active => "active",
        TenantStatus::Suspended => "suspended",
    }
}

#[cfg(test)]
mod tests;
