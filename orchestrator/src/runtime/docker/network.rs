//! The tenants' network: a bridge of this host, closed by Docker between containers and by the
//! firewall to everything else.

use std::collections::HashMap;

use protocol::TenantId;
use protocol::containers::{INSTALLATION, ROLE_NAMESPACE};

use super::network_pool::PoolTask;
use super::{Inner, own_ids};
use crate::config::FirewallMode;
use crate::runtime::RuntimeError;
use crate::runtime::firewall::{self, FirewallState, Rules};

impl Inner {
    /// Makes the network if it does not exist, and its firewall rules if they are not as they
    /// should be. Both may have gone with a restart of the daemon.
    pub(super) async fn secure_network(&self) -> Result<(), RuntimeError> {
        let subnet = Some(self.config.subnet.as_str()).filter(|subnet| !subnet.is_empty());
        let labels = HashMap::from([(INSTALLATION.to_owned(), self.installation.clone())]);
        let interface = self.engine.ensure_network(&self.config.network, subnet, labels).await?;
        if self.config.firewall == FirewallMode::Off {
            return Ok(());
        }
        let uids = self.client_uids.clone();
        let installed = self.firewall.install(Rules::Bridge { interface, uids }).await;
        installed.map_err(|error| RuntimeError::Failed(firewall::explanation(&error)))
    }

    /// Text about the firewall for the operator's status.
    pub(super) fn firewall_note(&self) -> String {
        let table = self.firewall.table();
        match self.firewall.state() {
            FirewallState::InForce => format!(
                "firewall: only uids {:?} of this host reach tenants, and tenants reach nothing \
                 (nftables, table inet {table})",
                self.client_uids
            ),
            FirewallState::Missing => format!(
                "firewall: RULES ARE MISSING and can't be restored: no tenant is started \
                 (nftables, table inet {table})"
            ),
            FirewallState::Off => "firewall: OFF by docker.firewall: every user of this host \
                                   reaches tenants, and tenants reach the host"
                .to_owned(),
        }
    }

    /// Discards the tenant's prepared network, if it has one: it is never used again.
    pub(super) async fn release_network(&self, tenant: &TenantId) {
        let network = self.networks().remove(tenant);
        if let Some(network) = network {
            self.pool.discard(network).await;
        }
    }

    pub(super) fn pool_task(&self) -> PoolTask {
        PoolTask {
            engine: self.engine.clone(),
            size: self.pool_size,
            image: self.config.pause_image.clone(),
            network: self.config.network.clone(),
            owner: self.users.shared().unwrap_or_else(own_ids),
            labels: self.labels(ROLE_NAMESPACE),
            name_prefix: format!("sq-{}-network-", self.installation),
        }
    }
}
