//! Bounds the memory that one tenant's request bodies occupy in Envoy.
//!
//! Envoy holds a body until it is complete and SQ has received it, in memory that all tenants share.
//! Its limit on concurrent requests applies only after that.

use std::collections::BTreeMap;

use protocol::{Limits, TenantId};

/// A tenant may have as many bodies of the largest size as its SQ processes concurrently, and as many
/// again that wait.
const ROUNDS: u64 = 2;

/// Bytes of request bodies in flight, by tenant, in one VM.
#[derive(Debug, Default)]
pub(crate) struct BodyBudget(BTreeMap<TenantId, u64>);

impl BodyBudget {
    /// Bytes that one tenant may have in flight in one VM.
    pub(crate) fn max(limits: &Limits) -> u64 {
        let at_once = u64::from(limits.concurrency.max(1));
        ROUNDS.saturating_mul(at_once).saturating_mul(limits.body_max_bytes())
    }

    /// Reserves room for `bytes` more of a body. Returns `false` if there is none.
    pub(crate) fn reserve(&mut self, tenant: &TenantId, limits: &Limits, bytes: u64) -> bool {
        if bytes == 0 {
            return true;
        }
        let reserved = self.0.get(tenant).copied().unwrap_or(0).saturating_add(bytes);
        let has_room = reserved <= Self::max(limits);
        if has_room {
            self.0.insert(tenant.clone(), reserved);
        }
        has_room
    }

    /// Releases `bytes` that were reserved.
    pub(crate) fn release(&mut self, tenant: &TenantId, bytes: u64) {
        if let Some(reserved) = self.0.get_mut(tenant) {
            *reserved = reserved.saturating_sub(bytes);
            if *reserved == 0 {
                self.0.remove(tenant);
            }
        }
    }
}
