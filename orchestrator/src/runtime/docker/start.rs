//! How a tenant's container is made and started.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use protocol::containers::{BOOT, LIMITS, ROLE_SQ, SQ_VERSION, TENANT, TIER};
use protocol::{TenantId, WakeKind};
use tokio::task::spawn_blocking;

use super::engine::{Blueprint, EngineError, Seen, SeenState};
use super::{Inner, LOOK_EVERY, Live, MALLOC_ENV, PIDS, PORT};
use crate::runtime::instance_key::InstanceKey;
use crate::runtime::{Endpoint, ExitKind, InstanceId, RuntimeError, Spec, Started};
use crate::runtime::{folder, probe};

/// After the container has started SQ answers within milliseconds; a busy host takes longer.
const READY_WITHIN: Duration = Duration::from_secs(10);

impl Inner {
    /// On an error nothing is left: no container, and no slot.
    pub(super) async fn start(&self, spec: &Spec) -> Result<Started, RuntimeError> {
        let _starting = self.slots.starting();
        let outcome = self.try_start(spec).await;
        if outcome.is_err() {
            self.give_up_slot(&spec.tenant).await;
        }
        outcome
    }

    async fn try_start(&self, spec: &Spec) -> Result<Started, RuntimeError> {
        // One that is not known here is found by its name, which the daemon gives only once.
        if self.live().contains_key(&spec.tenant) {
            self.clear(&spec.tenant).await?;
        }
        let data_folder = self.data_root.join(spec.tenant.as_str());
        let owner = self.may_chown.then_some(self.owner);
        folder::create(&data_folder)?;
        let data = data_folder.clone();
        let proof = spawn_blocking(move || folder::prepare(&data, owner));
        let image = self.config.image.replace("{version}", &spec.sq_version.to_string());
        let key = InstanceKey::generate().map_err(|e| RuntimeError::Failed(e.to_string()))?;
        let blueprint = self.blueprint(spec, image, data_folder, &key);
        // Made meanwhile: that takes long, and the folder need only be there.
        let (made, proof) = tokio::join!(self.make(&spec.tenant, &blueprint), proof);
        let proof = proof.map_err(|e| RuntimeError::Failed(e.to_string())).flatten();
        if let (Ok(id), Err(_)) = (&made, &proof) {
            self.engine.remove(id).await?;
        }
        proof?;
        let id = self.launch(&spec.tenant, made?, blueprint).await?;
        let outcome = self.announce(&spec.tenant, &id, key).await;
        if outcome.is_err() {
            self.clear(&spec.tenant).await?;
        }
        outcome
    }

    fn blueprint(
        &self,
        spec: &Spec,
        image: String,
        folder: PathBuf,
        key: &InstanceKey,
    ) -> Blueprint {
        let inside = format!("/data/{}", spec.tenant);
        let mut labels = self.labels(ROLE_SQ);
        labels.insert(TENANT.to_owned(), spec.tenant.to_string());
        labels.insert(TIER.to_owned(), spec.tier.to_string());
        labels.insert(LIMITS.to_owned(), serde_json::to_string(&spec.limits).unwrap_or_default());
        labels.insert(SQ_VERSION.to_owned(), spec.sq_version.to_string());
        labels.insert(BOOT.to_owned(), self.boot.clone());
        let port = PORT.to_string();
        let command = ["host", &port, "--key", key.expose(), "--data-dir", &inside];
        Blueprint {
            name: self.name(&spec.tenant),
            image,
            entrypoint: "/exo/sq".to_owned(),
            command: command.map(str::to_owned).to_vec(),
            environment: MALLOC_ENV.map(|(name, value)| format!("{name}={value}")).to_vec(),
            labels,
            owner: self.owner,
            memory_bytes: spec.limits.memory_bytes,
            pids: PIDS,
            network: self.config.network.clone(),
            folder: Some((folder, inside)),
        }
    }

    /// In the slot the tenant had, in a new one, or the plain way.
    async fn make(&self, tenant: &TenantId, plain: &Blueprint) -> Result<String, RuntimeError> {
        if let Some(slot) = self.seat(tenant) {
            let joined = Blueprint { network: format!("container:{slot}"), ..plain.clone() };
            match self.make_once(joined).await {
                Ok(id) => return Ok(id),
                Err(e) => self.unseat(tenant, &e).await,
            }
        }
        self.make_once(plain.clone()).await
    }

    /// Starts what was made; the plain way if its slot is gone.
    async fn launch(
        &self,
        tenant: &TenantId,
        id: String,
        plain: Blueprint,
    ) -> Result<String, RuntimeError> {
        match self.engine.start(&id).await {
            Err(e) if self.seats().contains_key(tenant) => {
                self.unseat(tenant, &e.into()).await;
                let id = self.make_once(plain).await?;
                self.engine.start(&id).await?;
                Ok(id)
            }
            other => Ok(other.map(|()| id)?),
        }
    }

    async fn unseat(&self, tenant: &TenantId, why: &RuntimeError) {
        tracing::warn!(%tenant, %why, "a network slot could not be joined");
        self.give_up_slot(tenant).await;
    }

    /// The slot that the tenant has, or gets now.
    fn seat(&self, tenant: &TenantId) -> Option<String> {
        let mut seats = self.seats();
        if let Some(slot) = seats.get(tenant) {
            return Some(slot.id.clone());
        }
        let slot = self.slots_on.then(|| self.slots.take()).flatten()?;
        let id = slot.id.clone();
        seats.insert(tenant.clone(), slot);
        Some(id)
    }

    async fn make_once(&self, blueprint: Blueprint) -> Result<String, RuntimeError> {
        match self.engine.make(blueprint.clone()).await {
            // The name is the tenant's alone: whoever has it is a container of ours, left over.
            Err(EngineError::Conflict(_)) => {
                self.engine.remove(&blueprint.name).await?;
                Ok(self.engine.make(blueprint).await?)
            }
            Err(EngineError::NotFound) => {
                self.pull(&blueprint.image).await?;
                Ok(self.engine.make(blueprint).await?)
            }
            other => Ok(other?),
        }
    }

    async fn pull(&self, image: &str) -> Result<(), RuntimeError> {
        if self.engine.has_image(image).await? {
            return Err(RuntimeError::Failed("Docker lost what was to be started".to_owned()));
        }
        tracing::info!(image, "pulling");
        self.engine.pull(image).await.map_err(|e| {
            RuntimeError::Missing(format!(
                "there is no image {image} and it can't be pulled ({e:?}): run `make setup`"
            ))
        })
    }

    /// Waits until it answers; from then on its death is told.
    async fn announce(
        &self,
        tenant: &TenantId,
        id: &str,
        key: InstanceKey,
    ) -> Result<Started, RuntimeError> {
        let seat = self.seats().get(tenant).map(|slot| slot.address);
        let address = match seat {
            Some(address) => Some(address),
            None => self.engine.inspect(id).await?.and_then(|seen| seen.address),
        };
        let Some(address) = address else {
            return Err(RuntimeError::DiedAtStart(self.exit_of(id).await?));
        };
        let address = SocketAddr::new(address, PORT);
        let endpoint = Endpoint { instance: InstanceId(id.to_owned()), address, key };
        let (id, started) = (id.to_owned(), endpoint.clone());
        let live = Live { id: id.clone(), endpoint, announced: false, dead: None };
        self.live().insert(tenant.clone(), live);
        self.answers(&id, address).await?;
        match self.live().get_mut(tenant).map(|live| (live.dead, &mut live.announced)) {
            Some((None, announced)) => *announced = true,
            Some((Some(exit), _)) => return Err(RuntimeError::DiedAtStart(exit)),
            None => return Err(RuntimeError::NoInstance(tenant.clone())),
        }
        Ok(Started { endpoint: started, kind: WakeKind::Create })
    }

    pub(super) async fn answers(&self, id: &str, address: SocketAddr) -> Result<(), RuntimeError> {
        let death = async {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                match self.engine.inspect(id).await {
                    Ok(Some(Seen { state: SeenState::Ended(exit), .. })) => return exit,
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
