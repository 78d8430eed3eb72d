//! The storage half of notices: a look at a tenant's files serves all VMs of a second.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use protocol::{TenantId, TenantNotice};

use crate::storage::disk::{Disk, Used};

/// How old a look may be: each VM reports once a second, and each would look.
const FRESH: Duration = Duration::from_millis(900);
/// How often old looks are thrown out.
const SWEEP: Duration = Duration::from_secs(1);
/// Looks remembered, about 300 bytes each and what the phexts' names need; a host with more tenants
/// that are active within a second looks again at those that have no place.
const LOOKS_MAX: usize = 65_536;

/// The tenants' files, looked at once a second.
#[derive(Debug)]
pub struct Storage {
    disk: Disk,
    looks: Mutex<Looks>,
}

#[derive(Debug, Default)]
struct Looks {
    tenants: HashMap<TenantId, (Instant, Used)>,
    host: Option<(Instant, bool)>,
    /// When old looks were last thrown out: that takes a walk through all.
    swept: Option<Instant>,
}

impl Looks {
    fn remember(&mut self, tenant: &TenantId, at: Instant, used: Used) {
        if self.swept.is_none_or(|swept| at.saturating_duration_since(swept) >= SWEEP) {
            self.tenants.retain(|_, (seen, _)| at.saturating_duration_since(*seen) < FRESH);
            self.swept = Some(at);
        }
        if self.tenants.len() < LOOKS_MAX || self.tenants.contains_key(tenant) {
            self.tenants.insert(tenant.clone(), (at, used));
        }
    }
}

impl Storage {
    /// The files below `disk`.
    pub fn new(disk: Disk) -> Self {
        Self { disk, looks: Mutex::default() }
    }

    /// Puts the storage facts and their age into `notice`. What can't be looked at counts as a
    /// full host: a mutation refused is better than a file cut. Blocks on one folder's listing.
    pub fn fill(&self, tenant: &TenantId, notice: &mut TenantNotice) {
        notice.host_full = self.host_full();
        if let Some((at, used)) = self.known(tenant) {
            notice.storage_age_ms = u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
            notice.storage_used_bytes = used.bytes;
            notice.phexts = used.phexts;
            return;
        }
        // From before the look: what is written meanwhile may be missing in it.
        let at = Instant::now();
        let Ok(used) = self.disk.used(tenant) else {
            notice.host_full = true;
            return;
        };
        notice.storage_age_ms = u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
        notice.storage_used_bytes = used.bytes;
        notice.phexts.clone_from(&used.phexts);
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        looks.remember(tenant, at, used);
    }

    fn known(&self, tenant: &TenantId) -> Option<(Instant, Used)> {
        let looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        looks.tenants.get(tenant).filter(|(at, _)| at.elapsed() < FRESH).cloned()
    }

    fn host_full(&self) -> bool {
        let known = self.looks.lock().unwrap_or_else(PoisonError::into_inner).host;
        if let Some((_, full)) = known.filter(|(at, _)| at.elapsed() < FRESH) {
            return full;
        }
        let at = Instant::now();
        let full = self.disk.is_full();
        self.looks.lock().unwrap_or_else(PoisonError::into_inner).host = Some((at, full));
        full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_bounded_and_thrown_out_when_they_are_old() {
        let (mut looks, begin) = (Looks::default(), Instant::now());
        let look = |looks: &mut Looks, n: usize, at| {
            looks.remember(&TenantId::parse(&format!("t{n}")).unwrap(), at, Used::default());
        };
        for n in 0..LOOKS_MAX + 10 {
            look(&mut looks, n, begin);
        }
        assert_eq!(looks.tenants.len(), LOOKS_MAX);
        look(&mut looks, 0, begin + SWEEP / 2);
        assert_eq!(looks.tenants.len(), LOOKS_MAX, "not swept with every look");
        look(&mut looks, 1, begin + SWEEP);
        assert_eq!(looks.tenants.len(), 2);
    }
}
