//! What runs is found again by its labels, its key by its command line.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use protocol::containers::{BOOT, LIMITS, ROLE, ROLE_SQ, SQ_VERSION, TENANT, TIER};
use protocol::{Limits, SqVersion, TenantId, TierName};

use super::engine::{Seen, SeenState};
use super::network_pool::Slot;
use super::{Inner, Live, PORT};
use crate::runtime::instance_key::InstanceKey;
use crate::runtime::{Endpoint, Found, FoundState, InstanceId, RuntimeError};

impl Inner {
    pub(super) async fn list(&self) -> Result<Vec<Found>, RuntimeError> {
        let seen = self.engine.list(&self.ours()).await?;
        let slots: HashMap<&str, IpAddr> =
            seen.iter().filter_map(|s| Some((s.id.as_str(), s.address?))).collect();
        let mut found = Vec::new();
        for container in seen.iter().filter(|s| s.labels.get(ROLE).is_some_and(|r| r == ROLE_SQ)) {
            // Between making and starting: `start` deals with it, here or when it is next called.
            if container.state == SeenState::Created {
                continue;
            }
            if let Some(instance) = self.adopt(container, &slots).await? {
                found.push(instance);
            } else {
                tracing::warn!(id = container.id, "a container of ours is unusable: removed");
                self.engine.remove(&container.id).await?;
            }
        }
        // Who has died since the daemon wrote the list was not known when that was told.
        self.look.notify_one();
        Ok(found)
    }

    /// What is known of a container by its labels; `None`: it can't be used.
    async fn adopt(
        &self,
        seen: &Seen,
        slots: &HashMap<&str, IpAddr>,
    ) -> Result<Option<Found>, RuntimeError> {
        let Some((tenant, tier, limits, sq_version)) = described(&seen.labels) else {
            return Ok(None);
        };
        let exit = match seen.state {
            SeenState::Created | SeenState::Running | SeenState::Paused => None,
            SeenState::Ended(_) => Some(self.exit_of(&seen.id).await?),
        };
        let slot = seen.network.strip_prefix("container:").and_then(|id| {
            slots.get(id).map(|address| Slot { id: id.to_owned(), address: *address })
        });
        let address = slot.as_ref().map(|slot| slot.address).or(seen.address);
        let endpoint = address.zip(key_in(&seen.command)).map(|(address, key)| Endpoint {
            instance: InstanceId(seen.id.clone()),
            address: SocketAddr::new(address, PORT),
            key,
        });
        let left = seen.labels.get(BOOT).is_some_and(|boot| *boot != self.boot);
        let state = match (exit, seen.state) {
            (Some(_), _) if left => FoundState::FromEarlierBoot,
            (Some(exit), _) => FoundState::Stopped(exit),
            (None, SeenState::Paused) => FoundState::Paused,
            (None, _) => FoundState::Running,
        };
        if let Some(endpoint) = &endpoint {
            let (id, endpoint) = (seen.id.clone(), endpoint.clone());
            let live = Live { id, endpoint, announced: true, dead: exit };
            self.live().insert(tenant.clone(), live);
            self.seats().extend(slot.map(|slot| (tenant.clone(), slot)));
        } else if exit.is_none() {
            return Ok(None);
        }
        let endpoint = endpoint.filter(|_| exit.is_none());
        Ok(Some(Found { tenant, tier, limits, sq_version, state, endpoint }))
    }
}

fn described(labels: &HashMap<String, String>) -> Option<(TenantId, TierName, Limits, SqVersion)> {
    let tenant = TenantId::parse(labels.get(TENANT)?).ok()?;
    let tier = TierName::parse(labels.get(TIER)?).ok()?;
    let limits = serde_json::from_str(labels.get(LIMITS)?).ok()?;
    Some((tenant, tier, limits, SqVersion::parse(labels.get(SQ_VERSION)?)?))
}

/// The key that a container was started with.
fn key_in(command: &str) -> Option<InstanceKey> {
    let mut words = command.split_whitespace();
    words.find(|word| *word == "--key")?;
    InstanceKey::parse(words.next()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_learnt_from_the_command() {
        let key = "ab".repeat(16);
        let command = format!("/exo/sq host 1337 --key {key} --data-dir /data/a");
        assert_eq!(key_in(&command).unwrap().expose(), key);
        for bad in ["", "/exo/sq host 1337 --key", "/exo/sq --key short --data-dir /data/a"] {
            assert_eq!(key_in(bad), None, "{bad}");
        }
    }

    #[test]
    fn labels_of_another_kind_are_not_a_tenant() {
        assert_eq!(described(&HashMap::new()), None);
    }
}
