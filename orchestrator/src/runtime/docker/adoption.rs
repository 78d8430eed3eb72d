//! Adoption: containers that an earlier orchestrator started are found by their labels. Their keys
//! are read from the key files, or from the command lines of releases that have no key file.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use protocol::containers::{BOOT, KEY_DIGEST, LIMITS, ROLE, ROLE_SQ, SQ_VERSION, TENANT, TIER};
use protocol::{Limits, SqVersion, TenantId, TierName};

use super::engine::{Container, ContainerState};
use super::network_pool::PreparedNetwork;
use super::{Inner, Instance, PORT};
use crate::runtime::{Endpoint, Found, FoundState, InstanceId, RuntimeError, sq_command};

/// The facts about a tenant that its container's labels carry.
#[derive(Debug, PartialEq, Eq)]
struct Labels {
    tenant: TenantId,
    tier: TierName,
    limits: Limits,
    sq_version: SqVersion,
}

impl Inner {
    pub(super) async fn list(&self) -> Result<Vec<Found>, RuntimeError> {
        let containers = self.engine.list(&self.label_filter()).await?;
        let addresses: HashMap<&str, IpAddr> =
            containers.iter().filter_map(|c| Some((c.id.as_str(), c.address?))).collect();
        let mut found = Vec::new();
        for container in containers.iter().filter(|c| c.has_label(ROLE, ROLE_SQ)) {
            // Created and not started: the `start` call that is creating it, or the next one for
            // this tenant, takes care of it.
            if container.state == ContainerState::Created {
                continue;
            }
            if let Some(instance) = self.adopt(container, &addresses).await? {
                found.push(instance);
            } else {
                tracing::warn!(id = container.id, "container is unusable and is removed");
                self.engine.remove(&container.id).await?;
            }
        }
        // A container that died after the daemon made its list was not known then: look again.
        self.reconcile_now.notify_one();
        Ok(found)
    }

    /// Adopts a container; `None` if it can't be used. `addresses` has those of all containers, by
    /// id.
    async fn adopt(
        &self,
        container: &Container,
        addresses: &HashMap<&str, IpAddr>,
    ) -> Result<Option<Found>, RuntimeError> {
        let Some(labels) = Labels::parse(&container.labels) else { return Ok(None) };
        // The list has no exit codes.
        let exit = match container.state {
            ContainerState::Ended(_) => Some(self.exit_kind(&container.id).await?),
            ContainerState::Created | ContainerState::Running | ContainerState::Paused => None,
        };
        let network = joined_network(container, addresses);
        let address = network.as_ref().map(|network| network.address).or(container.address);
        let key = match container.labels.get(KEY_DIGEST) {
            Some(digest) => self.key_files.read(&labels.tenant, digest),
            None => sq_command::key(container.command.split_whitespace()),
        };
        let endpoint = match (address, key) {
            (Some(address), Some(key)) => Some(Endpoint {
                instance: InstanceId(container.id.clone()),
                address: SocketAddr::new(address, PORT),
                key,
            }),
            _ => None,
        };
        if endpoint.is_none() && exit.is_none() {
            return Ok(None);
        }
        if let Some(endpoint) = &endpoint {
            let instance = Instance {
                container: container.id.clone(),
                endpoint: endpoint.clone(),
                announced: true,
                exit,
            };
            self.instances().insert(labels.tenant.clone(), instance);
            if let Some(network) = network {
                self.networks().insert(labels.tenant.clone(), network);
            }
        }
        let from_earlier_boot = container.labels.get(BOOT).is_some_and(|boot| *boot != self.boot);
        let state = match exit {
            Some(_) if from_earlier_boot => FoundState::FromEarlierBoot,
            Some(exit) => FoundState::Stopped(exit),
            None if container.state == ContainerState::Paused => FoundState::Paused,
            None => FoundState::Running,
        };
        Ok(Some(Found {
            tenant: labels.tenant,
            tier: labels.tier,
            limits: labels.limits,
            sq_version: labels.sq_version,
            state,
            endpoint: endpoint.filter(|_| exit.is_none()),
        }))
    }
}

/// The prepared network that a container joined, if it did and the holder still exists.
fn joined_network(
    container: &Container,
    addresses: &HashMap<&str, IpAddr>,
) -> Option<PreparedNetwork> {
    let holder = container.network.strip_prefix("container:")?;
    let address = *addresses.get(holder)?;
    Some(PreparedNetwork { holder: holder.to_owned(), address })
}

impl Labels {
    fn parse(labels: &HashMap<String, String>) -> Option<Self> {
        Some(Self {
            tenant: TenantId::parse(labels.get(TENANT)?).ok()?,
            tier: TierName::parse(labels.get(TIER)?).ok()?,
            limits: serde_json::from_str(labels.get(LIMITS)?).ok()?,
            sq_version: SqVersion::parse(labels.get(SQ_VERSION)?)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_without_our_labels_is_unusable() {
        assert_eq!(Labels::parse(&HashMap::new()), None);
    }
}
