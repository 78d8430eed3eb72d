//! Tenants that have just used up a quota.
//!
//! Every gateway gets their notices with the response to its next report, at most a second later;
//! also a gateway that has not served the tenant and could not know.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use protocol::TenantId;

/// Time for which a tenant is announced: longer than any gateway goes without a report, which is a
/// second, or two when a response is late. A tenant that keeps sending requests stays announced.
const ANNOUNCED: Duration = Duration::from_secs(5);
/// Bound on announced tenants: each adds its notice to every response. A gateway that misses one
/// learns of it when it reports that tenant's next request.
const TENANTS_MAX: usize = 64;

/// Tenants, each with the end of its announcement.
#[derive(Debug, Default)]
pub(crate) struct ExhaustedQuotas(Mutex<BTreeMap<TenantId, Instant>>);

impl ExhaustedQuotas {
    /// Announces a tenant that has used up a quota, or extends its announcement.
    pub(crate) fn announce(&self, tenant: TenantId) {
        let mut tenants = self.0.lock();
        let now = Instant::now();
        if tenants.len() >= TENANTS_MAX {
            tenants.retain(|_, until| now < *until);
        }
        if tenants.len() < TENANTS_MAX || tenants.contains_key(&tenant) {
            tenants.insert(tenant, now + ANNOUNCED);
        }
    }

    /// Returns the tenants that are announced now.
    pub(crate) fn announced(&self) -> Vec<TenantId> {
        let now = Instant::now();
        let tenants = self.0.lock();
        let current = tenants.iter().filter(|(_, until)| now < **until);
        current.map(|(tenant, _)| tenant.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcements_are_bounded() {
        let exhausted = ExhaustedQuotas::default();
        for n in 0..TENANTS_MAX + 5 {
            exhausted.announce(TenantId::parse(&format!("t{n}")).unwrap());
        }
        assert_eq!(exhausted.announced().len(), TENANTS_MAX);
    }
}
