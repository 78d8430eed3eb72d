//! Bodies of requests on their way, by tenant.
//!
//! Envoy keeps a body until all of it has come and SQ has taken it, in memory that all tenants
//! share, and counts requests only behind that. What one tenant may have there is bounded here.

use std::collections::BTreeMap;

use protocol::{Limits, TenantId};

/// A tenant may have as many bodies of the largest size on their way as its SQ works on at the same
/// time, and as many again that wait.
const ROUNDS: u64 = 2;

/// The bodies of one VM.
#[derive(Debug, Default)]
pub(crate) struct BodyBudget(BTreeMap<TenantId, u64>);

impl BodyBudget {
    /// Bytes that a tenant may have on their way in one VM.
    pub(crate) fn most(limits: &Limits) -> u64 {
        let at_once = u64::from(limits.concurrency.max(1));
        ROUNDS.saturating_mul(at_once).saturating_mul(limits.body_max_bytes())
    }

    /// `bytes` more of a body have come, or are to come. `false`: there is no room for them.
    pub(crate) fn hold(&mut self, tenant: &TenantId, limits: &Limits, bytes: u64) -> bool {
        if bytes == 0 {
            return true;
        }
        let held = self.0.get(tenant).copied().unwrap_or(0).saturating_add(bytes);
        let has_room = held <= Self::most(limits);
        if has_room {
            self.0.insert(tenant.clone(), held);
        }
        has_room
    }

    /// `bytes` that were held are not kept any more.
    pub(crate) fn release(&mut self, tenant: &TenantId, bytes: u64) {
        if let Some(held) = self.0.get_mut(tenant) {
            *held = held.saturating_sub(bytes);
            if *held == 0 {
                self.0.remove(tenant);
            }
        }
    }
}
