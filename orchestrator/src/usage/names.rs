//! Tells tenants and tiers that exist from invented names.
//!
//! A tenant exists if it has a folder, a lease since the start, or rows in the ledger; a tier if a
//! lease or a row had it. The registry stays on the ranch, so this is all that the gateway host can
//! know.

use std::collections::HashSet;
use std::hash::Hash;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use protocol::{TenantId, TierName};

/// Bound on the names of leases that are remembered. Beyond it all are forgotten: a tenant's folder
/// tells, and a tier's next lease.
const LEASED_MAX: usize = 65_536;

/// Tenants and tiers that exist, apart from those with rows in the ledger.
pub trait Names: std::fmt::Debug + Send + Sync {
    /// True if the tenant has a folder or had a lease.
    fn is_tenant(&self, tenant: &TenantId) -> bool;
    /// True if a lease had this tier.
    fn is_tier(&self, tier: &TierName) -> bool;
}

/// The tenants' folders, and the leases since the start. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct KnownNames {
    data_root: PathBuf,
    leased: Arc<Mutex<Leased>>,
}

#[derive(Debug, Default)]
struct Leased {
    tenants: HashSet<TenantId>,
    tiers: HashSet<TierName>,
}

impl KnownNames {
    pub(crate) fn new(data_root: &Path) -> Self {
        Self { data_root: data_root.to_owned(), leased: Arc::default() }
    }

    /// Records a lease; returns true if tenant or tier are new.
    pub(crate) fn leased(&self, tenant: &TenantId, tier: &TierName) -> bool {
        let Leased { tenants, tiers } = &mut *self.leased.lock();
        let is_new_tenant = remember(tenants, tenant);
        let is_new_tier = remember(tiers, tier);
        is_new_tenant || is_new_tier
    }
}

/// Returns true if the name is new. The common case, a renewed lease, copies nothing.
fn remember<T: Clone + Eq + Hash>(names: &mut HashSet<T>, name: &T) -> bool {
    if names.contains(name) {
        return false;
    }
    if names.len() >= LEASED_MAX {
        names.clear();
    }
    names.insert(name.clone())
}

impl Names for KnownNames {
    fn is_tenant(&self, tenant: &TenantId) -> bool {
        self.leased.lock().tenants.contains(tenant) || self.data_root.join(tenant.as_str()).is_dir()
    }

    fn is_tier(&self, tier: &TierName) -> bool {
        self.leased.lock().tiers.contains(tier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_or_lease_makes_a_tenant() {
        let dir = tempfile::tempdir().unwrap();
        let names = KnownNames::new(dir.path());
        let [alice, bob, eve] = ["alice", "bob", "eve"].map(|name| TenantId::parse(name).unwrap());
        let pro = TierName::parse("pro").unwrap();
        std::fs::create_dir(dir.path().join("alice")).unwrap();
        assert!(names.leased(&bob, &pro));
        assert!(!names.leased(&bob, &pro), "not new a second time");
        assert!(names.is_tenant(&alice) && names.is_tenant(&bob) && !names.is_tenant(&eve));
        assert!(names.is_tier(&pro) && !names.is_tier(&TierName::default()));
    }

    #[test]
    fn flood_of_leases_is_remembered_within_bounds() {
        let names = KnownNames::new(Path::new("/nonexistent"));
        for n in 0..LEASED_MAX + 10 {
            let tenant = TenantId::parse(&format!("t{n}")).unwrap();
            assert!(names.leased(&tenant, &TierName::default()));
            assert!(names.leased.lock().tenants.len() <= LEASED_MAX);
        }
    }
}
