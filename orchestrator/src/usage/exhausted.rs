//! Who has just used up a quota: told to every gateway with its next report, at most a second
//! later, also to one that has not served the tenant and could not know.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use protocol::TenantId;

/// How long something is news: longer than any gateway goes without a report (a second, or two
/// when an answer is late). A tenant that goes on asking stays news.
const NEWS: Duration = Duration::from_secs(5);
/// Tenants told at a time: each adds its notice to every answer. One more waits until it is asked
/// about, which is when its next request at that gateway has been reported.
const TENANTS_MAX: usize = 64;

/// Tenants and until when they are news.
#[derive(Debug, Default)]
pub struct News(Mutex<BTreeMap<TenantId, Instant>>);

impl News {
    /// `tenant` has used up a quota.
    pub fn tell(&self, tenant: TenantId) {
        let mut tenants = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if tenants.len() >= TENANTS_MAX {
            tenants.retain(|_, until| now < *until);
        }
        if tenants.len() < TENANTS_MAX || tenants.contains_key(&tenant) {
            tenants.insert(tenant, now + NEWS);
        }
    }

    /// Who is news.
    pub fn recent(&self) -> Vec<TenantId> {
        let now = Instant::now();
        let tenants = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tenants.iter().filter(|(_, until)| now < **until).map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_are_bounded() {
        let news = News::default();
        for n in 0..TENANTS_MAX + 5 {
            news.tell(TenantId::parse(&format!("t{n}")).unwrap());
        }
        assert_eq!(news.recent().len(), TENANTS_MAX);
    }
}
