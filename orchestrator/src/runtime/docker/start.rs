//! Creating and starting a tenant's container.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use protocol::containers::{BOOT, KEY_DIGEST, LIMITS, ROLE_SQ, SQ_VERSION, TENANT, TIER};
use protocol::{TenantId, WakeKind};
use tokio::task::spawn_blocking;

use super::engine::{Container, ContainerSpec, ContainerState, EngineError, HostPath};
use super::{INSPECT_EVERY, Inner, Instance, PIDS, PORT, own_ids};
use crate::runtime::folder::Owner;
use crate::runtime::instance_key::InstanceKey;
use crate::runtime::sq_command::KeySource;
use crate::runtime::{
    Endpoint, ExitKind, InstanceId, RuntimeError, Spec, Started, folder, key_file, probe,
    sq_command,
};

/// Time-out of readiness. SQ answers milliseconds after the container has started; a busy host takes
/// longer.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// Path of the key's file in the container.
const KEY_FILE: &str = "/instance-key.json";

impl Inner {
    /// Starts a tenant's instance. After an error no container and no assigned network is left.
    pub(super) async fn start(&self, spec: &Spec) -> Result<Started, RuntimeError> {
        self.firewall.require().await?;
        let _guard = self.pool.begin_start();
        let started = self.try_start(spec).await;
        if started.is_err() {
            self.release_network(&spec.tenant).await;
        }
        started
    }

    async fn try_start(&self, spec: &Spec) -> Result<Started, RuntimeError> {
        // Remove the tenant's old container. One that is not in the table is found when the new one
        // is created, because the daemon refuses a name that is in use.
        if self.instances().contains_key(&spec.tenant) {
            self.remove_container(&spec.tenant).await?;
        }

        // Create the container and prove the folder at the same time: creation is slow and needs
        // the folder only to exist.
        let data_folder = self.data_root.join(spec.tenant.as_str());
        folder::create(&data_folder)?;
        let owner = self.users.claim(&data_folder)?;
        let proof = spawn_blocking({
            let data_folder = data_folder.clone();
            move || folder::prepare(&data_folder, owner)
        });
        let key = InstanceKey::generate().map_err(RuntimeError::failed)?;
        let container = self.container_spec(spec, data_folder, &key, owner)?;
        let (created, proof) = tokio::join!(self.create(&spec.tenant, &container), proof);
        let proven = proof.map_err(RuntimeError::failed).flatten();
        let started = match (created, proven) {
            // Start it, and wait until SQ answers.
            (Ok(id), Ok(())) => self.start_and_wait(spec, id, container, key).await,
            (Err(error), Ok(())) | (_, Err(error)) => Err(error),
        };
        if started.is_err() {
            self.remove_container(&spec.tenant).await?;
        }
        started
    }

    async fn start_and_wait(
        &self,
        spec: &Spec,
        created: String,
        container: ContainerSpec,
        key: InstanceKey,
    ) -> Result<Started, RuntimeError> {
        let id = self.start_created(&spec.tenant, created, container).await?;
        self.wait_and_announce(&spec.tenant, &id, key).await
    }

    /// Describes the tenant's container, and writes the file of its key.
    fn container_spec(
        &self,
        spec: &Spec,
        data_folder: PathBuf,
        key: &InstanceKey,
        owner: Option<Owner>,
    ) -> Result<ContainerSpec, RuntimeError> {
        let mut labels = self.labels(ROLE_SQ);
        labels.insert(TENANT.to_owned(), spec.tenant.to_string());
        labels.insert(TIER.to_owned(), spec.tier.to_string());
        labels.insert(LIMITS.to_owned(), serde_json::to_string(&spec.limits).unwrap_or_default());
        labels.insert(SQ_VERSION.to_owned(), spec.sq_version.to_string());
        labels.insert(BOOT.to_owned(), self.boot.clone());
        let port = PORT.to_string();
        let mount_point = format!("/data/{}", spec.tenant);
        let mut mounts = Vec::new();
        let key_source = if spec.sq_version.reads_key_file() {
            labels.insert(KEY_DIGEST.to_owned(), key_file::digest(key));
            let file = self.key_files.create(&spec.tenant, key, owner);
            let source = file.map_err(RuntimeError::failed)?;
            mounts.push(HostPath { source, target: KEY_FILE.to_owned(), read_only: true });
            KeySource::File(KEY_FILE)
        } else {
            KeySource::Argument(key)
        };
        let mut command = sq_command::arguments(&port, key_source).map(str::to_owned).to_vec();
        command.push(mount_point.clone());
        mounts.push(HostPath { source: data_folder, target: mount_point, read_only: false });
        let environment = sq_command::ENVIRONMENT.map(|(name, value)| format!("{name}={value}"));
        Ok(ContainerSpec {
            name: self.container_name(&spec.tenant),
            image: self.config.image.replace("{version}", &spec.sq_version.to_string()),
            entrypoint: "/exo/sq".to_owned(),
            command,
            environment: environment.to_vec(),
            labels,
            owner: owner.unwrap_or_else(own_ids),
            memory_bytes: spec.limits.memory_bytes,
            pids: PIDS,
            weight: Some(spec.limits.weight),
            network: self.config.network.clone(),
            mounts,
        })
    }

    /// Creates the container in a prepared network if the tenant has or gets one, else on the bridge
    /// itself.
    async fn create(
        &self,
        tenant: &TenantId,
        on_bridge: &ContainerSpec,
    ) -> Result<String, RuntimeError> {
        if let Some(holder) = self.assign_network(tenant) {
            let network = format!("container:{holder}");
            let joined = ContainerSpec { network, ..on_bridge.clone() };
            match self.create_or_replace(joined).await {
                Ok(id) => return Ok(id),
                Err(error) => self.abandon_network(tenant, &error).await,
            }
        }
        self.create_or_replace(on_bridge.clone()).await
    }

    /// Starts a created container. If its prepared network or the tenants' network is gone, creates
    /// and starts it on the bridge instead.
    async fn start_created(
        &self,
        tenant: &TenantId,
        id: String,
        on_bridge: ContainerSpec,
    ) -> Result<String, RuntimeError> {
        let error = match self.engine.start(&id).await {
            Ok(()) => return Ok(id),
            Err(error) => error,
        };
        if self.networks().contains_key(tenant) {
            self.abandon_network(tenant, &error.into()).await;
        } else if matches!(error, EngineError::NotFound) {
            self.secure_network().await?;
        } else {
            return Err(error.into());
        }
        let id = self.create_or_replace(on_bridge).await?;
        self.engine.start(&id).await?;
        Ok(id)
    }

    async fn abandon_network(&self, tenant: &TenantId, error: &RuntimeError) {
        tracing::warn!(%tenant, %error, "prepared network can't be joined");
        self.release_network(tenant).await;
    }

    /// The holder of the network that the tenant has already, or that it gets from the pool now. A
    /// tenant that died and is started again keeps its network, and with it its address.
    fn assign_network(&self, tenant: &TenantId) -> Option<String> {
        let mut networks = self.networks();
        if let Some(network) = networks.get(tenant) {
            return Some(network.holder.clone());
        }
        let network = self.pool.take()?;
        let holder = network.holder.clone();
        networks.insert(tenant.clone(), network);
        Some(holder)
    }

    async fn create_or_replace(&self, spec: ContainerSpec) -> Result<String, RuntimeError> {
        match self.engine.create(spec.clone()).await {
            // The name belongs to this tenant alone, so the container that has it is a leftover.
            Err(EngineError::Conflict(_)) => {
                self.engine.remove(&spec.name).await?;
                Ok(self.engine.create(spec).await?)
            }
            Err(EngineError::NotFound) => {
                self.provide(&spec.image).await?;
                Ok(self.engine.create(spec).await?)
            }
            created => Ok(created?),
        }
    }

    /// Makes the network again if that is what Docker did not find; a missing image is an error.
    async fn provide(&self, image: &str) -> Result<(), RuntimeError> {
        if self.engine.has_image(image).await? {
            return self.secure_network().await;
        }
        // Nothing is pulled here: an operator decides which image runs customers' databases, and a
        // wake must not wait for a registry.
        Err(RuntimeError::Missing(format!(
            "image {image} does not exist: run `docker pull {image}`, or `make setup`, which builds it"
        )))
    }

    /// Waits until SQ answers. From then on the instance's death is an event; until then it is the
    /// error of this call.
    async fn wait_and_announce(
        &self,
        tenant: &TenantId,
        id: &str,
        key: InstanceKey,
    ) -> Result<Started, RuntimeError> {
        let prepared = self.networks().get(tenant).map(|network| network.address);
        let address = match prepared {
            Some(address) => Some(address),
            None => self.engine.inspect(id).await?.and_then(|container| container.address),
        };
        // The daemon knows no address of a container that has died already.
        let Some(address) = address else {
            return Err(RuntimeError::DiedAtStart(self.exit_kind(id).await?));
        };
        let address = SocketAddr::new(address, PORT);
        let endpoint = Endpoint { instance: InstanceId(id.to_owned()), address, key };

        // Enter it into the table, so that a death during the wait is noted there.
        let instance = Instance {
            container: id.to_owned(),
            endpoint: endpoint.clone(),
            announced: false,
            exit: None,
        };
        self.instances().insert(tenant.clone(), instance);
        self.wait_until_ready(id, address).await?;

        let mut instances = self.instances();
        let instance =
            instances.get_mut(tenant).ok_or_else(|| RuntimeError::NoInstance(tenant.clone()))?;
        if let Some(exit) = instance.exit {
            return Err(RuntimeError::DiedAtStart(exit));
        }
        instance.announced = true;
        Ok(Started { endpoint, kind: WakeKind::Create })
    }

    /// Probes SQ, and watches its container, so that a death ends the wait at once.
    pub(super) async fn wait_until_ready(
        &self,
        id: &str,
        address: SocketAddr,
    ) -> Result<(), RuntimeError> {
        let death = async {
            loop {
                tokio::time::sleep(INSPECT_EVERY).await;
                match self.engine.inspect(id).await {
                    Ok(Some(Container { state: ContainerState::Ended(exit), .. })) => return exit,
                    Ok(None) => return ExitKind::Gone,
                    _ => {}
                }
            }
        };
        tokio::select! {
            ready = probe::wait_until_ready(address, READY_WITHIN) => ready,
            exit = death => Err(RuntimeError::DiedAtStart(exit)),
        }
    }
}
