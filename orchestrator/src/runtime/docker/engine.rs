//! The Docker daemon's API, reduced to the calls that this crate needs. The only file that names
//! bollard.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ContainerStateStatusEnum, ContainerSummary,
    ContainerSummaryStateEnum, ContainerUpdateBody, EventMessage, HostConfig, HostConfigLogConfig,
    Ipam, IpamConfig, Mount, MountType, NetworkCreateRequest, ResourcesUlimits, SystemInfo,
};
use bollard::query_parameters::{
    CreateContainerOptions, EventsOptions, InspectContainerOptions, InspectNetworkOptions,
    ListContainersOptions, RemoveContainerOptions, StartContainerOptions, StatsOptions,
};
use futures_util::{Stream, StreamExt};

use super::{seccomp, weight};
use crate::config::SeccompProfile;
use crate::runtime::folder::Owner;
use crate::runtime::{ExitKind, RuntimeError};

/// Time-out of one call. The daemon usually answers in milliseconds; twenty simultaneous starts take
/// it 3.5 s.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Time between SIGTERM and SIGKILL when the daemon shuts down. SQ ignores SIGTERM, so the default of
/// ten seconds would only keep clients waiting; a write takes less than a second.
const STOP_TIMEOUT_S: i64 = 1;

/// Option of a bridge that lets its containers reach each other. It is off for tenants.
const INTER_CONTAINER: &str = "com.docker.network.bridge.enable_icc";

/// Option of a bridge that names its network interface. Our networks do not set it, but an operator's
/// may.
const BRIDGE_NAME: &str = "com.docker.network.bridge.name";

/// Digits of a network's id in the name of its network interface.
const BRIDGE_ID_DIGITS: usize = 12;

/// Name server of containers, an address for documentation (RFC 5737) that nothing can reach from
/// an internal network. Without it, Docker before 23.0.11 and 25.0.4 resolves outside names for
/// containers through a resolver on the host's loopback (CVE-2024-29018).
const NO_NAME_SERVER: &str = "198.51.100.53";

/// A connection to the daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Engine {
    docker: Docker,
    /// The daemon remaps uids. Containers must opt out, else none could write its folder.
    remaps_uids: bool,
    /// Security options of every container.
    security: Vec<String>,
    /// Containers may have weights for disks.
    pub(super) weighs_disks: bool,
    /// The daemon's version.
    pub(super) version: String,
}

/// Properties of a container to create. All others are the same for every container: hardened. Not
/// `Debug`, because the command may contain the instance key.
#[derive(Clone)]
pub(super) struct ContainerSpec {
    pub(super) name: String,
    pub(super) image: String,
    pub(super) entrypoint: String,
    pub(super) command: Vec<String>,
    pub(super) environment: Vec<String>,
    pub(super) labels: HashMap<String, String>,
    pub(super) owner: Owner,
    pub(super) memory_bytes: u64,
    pub(super) pids: i64,
    /// Weight of the tenant; `None` leaves Docker's default.
    pub(super) weight: Option<u32>,
    /// A network's name, or `container:<id>` to join the namespace of that container.
    pub(super) network: String,
    pub(super) mounts: Vec<HostPath>,
}

/// A file or folder of the host in a container.
#[derive(Debug, Clone)]
pub(super) struct HostPath {
    /// Absolute path on the host.
    pub(super) source: PathBuf,
    /// Path in the container.
    pub(super) target: String,
    pub(super) read_only: bool,
}

/// A container as the daemon reports it. Not `Debug`, because the command may contain the instance
/// key.
#[derive(Clone)]
pub(super) struct Container {
    pub(super) id: String,
    pub(super) labels: HashMap<String, String>,
    pub(super) state: ContainerState,
    /// `None` if it is not running or has joined another's network.
    pub(super) address: Option<IpAddr>,
    /// A network's name, or `container:<id>`.
    pub(super) network: String,
    /// Words of the command line, separated by spaces.
    pub(super) command: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContainerState {
    /// Created and never started.
    Created,
    Running,
    Paused,
    /// Dead. In a list the reason is always [`ExitKind::Gone`], because the daemon omits it there.
    Ended(ExitKind),
}

/// Failure of a call. `NotFound` and `Conflict` are the daemon's status 404 and 409.
#[derive(Debug, thiserror::Error)]
pub(super) enum EngineError {
    #[error("Docker does not know the container, image or network")]
    NotFound,
    #[error("Docker: {0}")]
    Conflict(String),
    #[error("Docker: {0}")]
    Refused(String),
    #[error("{0}")]
    Unavailable(String),
}

impl Container {
    pub(super) fn has_label(&self, label: &str, value: &str) -> bool {
        self.labels.get(label).is_some_and(|present| present == value)
    }
}

impl From<Error> for EngineError {
    fn from(error: Error) -> Self {
        match error {
            Error::DockerResponseServerError { status_code: 404, .. } => Self::NotFound,
            Error::DockerResponseServerError { status_code: 409, message } => {
                Self::Conflict(message)
            }
            Error::DockerResponseServerError { message, .. } => Self::Refused(message),
            other => Self::Unavailable(other.to_string()),
        }
    }
}

impl From<EngineError> for RuntimeError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Unavailable(text) => Self::Unavailable(text),
            other => Self::failed(other),
        }
    }
}

type EngineResult<T> = Result<T, EngineError>;

impl Engine {
    /// Connects to the daemon of `DOCKER_HOST`, or of the local socket.
    pub(super) async fn connect(profile: &SeccompProfile) -> Result<Self, RuntimeError> {
        let (docker, info) = Self::reach_daemon().await?;
        let abilities = info.security_options.unwrap_or_default();
        let has = |name| abilities.iter().any(|option| option.contains(name));
        let remaps_uids = has("name=userns");
        let mut security = vec!["no-new-privileges".to_owned()];
        security.extend(seccomp::security_option(profile, has("name=seccomp"))?);
        Ok(Self {
            docker,
            remaps_uids,
            security,
            weighs_disks: weight::kernel_weighs_disks(),
            version: info.server_version.unwrap_or_default(),
        })
    }

    async fn reach_daemon() -> EngineResult<(Docker, SystemInfo)> {
        let docker = Docker::connect_with_defaults()?.with_timeout(CALL_TIMEOUT);
        let docker = docker.negotiate_version().await?;
        let info = docker.info().await?;
        Ok((docker, info))
    }

    /// Creates the tenants' bridge unless it exists, and returns the name of its network interface.
    /// An existing one that would let tenants reach each other or the world is refused.
    pub(super) async fn ensure_network(
        &self,
        name: &str,
        subnet: Option<&str>,
        labels: HashMap<String, String>,
    ) -> Result<String, RuntimeError> {
        match self.docker.inspect_network(name, None::<InspectNetworkOptions>).await {
            Ok(found) => {
                let options = found.options.unwrap_or_default();
                let is_closed = options.get(INTER_CONTAINER).is_some_and(|value| value == "false");
                if found.internal == Some(true) && is_closed {
                    let interface = options.get(BRIDGE_NAME).cloned();
                    return Ok(interface.unwrap_or_else(|| bridge_name(found.id.as_deref())));
                }
                return Err(RuntimeError::Failed(format!(
                    "Docker network {name} exists and is not internal with {INTER_CONTAINER}=false: \
                     configure another name or remove it"
                )));
            }
            Err(error) => match EngineError::from(error) {
                EngineError::NotFound => {}
                other => return Err(other.into()),
            },
        }
        let ipam = subnet.map(|subnet| Ipam {
            config: Some(vec![IpamConfig {
                subnet: Some(subnet.to_owned()),
                ..IpamConfig::default()
            }]),
            ..Ipam::default()
        });
        let request = NetworkCreateRequest {
            name: name.to_owned(),
            driver: Some("bridge".to_owned()),
            internal: Some(true),
            ipam,
            options: Some(HashMap::from([(INTER_CONTAINER.to_owned(), "false".to_owned())])),
            labels: Some(labels),
            ..NetworkCreateRequest::default()
        };
        let created = self.docker.create_network(request).await.map_err(EngineError::from)?;
        Ok(bridge_name(Some(&created.id)))
    }

    pub(super) async fn has_image(&self, image: &str) -> EngineResult<bool> {
        match self.docker.inspect_image(image).await.map_err(EngineError::from) {
            Ok(_) => Ok(true),
            Err(EngineError::NotFound) => Ok(false),
            Err(other) => Err(other),
        }
    }

    /// Creates a container without starting it, and returns its id.
    pub(super) async fn create(&self, spec: ContainerSpec) -> EngineResult<String> {
        let options = CreateContainerOptions {
            name: Some(spec.name.clone()),
            ..CreateContainerOptions::default()
        };
        let body = self.create_body(spec);
        Ok(self.docker.create_container(Some(options), body).await?.id)
    }

    /// Starts a created container. One that can't be started is removed.
    pub(super) async fn start(&self, id: &str) -> EngineResult<()> {
        let started = self.docker.start_container(id, None::<StartContainerOptions>).await;
        if let Err(error) = started {
            self.remove(id).await?;
            return Err(error.into());
        }
        Ok(())
    }

    fn create_body(&self, spec: ContainerSpec) -> ContainerCreateBody {
        let memory = i64::try_from(spec.memory_bytes).unwrap_or(i64::MAX);
        let mounts = spec.mounts.into_iter().map(|path| Mount {
            target: Some(path.target),
            source: Some(path.source.display().to_string()),
            typ: Some(MountType::BIND),
            read_only: Some(path.read_only),
            ..Mount::default()
        });
        // A dump of SQ's memory would have the tenant's texts and its key.
        let no_core_dumps =
            ResourcesUlimits { name: Some("core".to_owned()), soft: Some(0), hard: Some(0) };
        // A container that joins another's network has that one's name servers.
        let joins = spec.network.starts_with("container:");
        let host = HostConfig {
            dns: (!joins).then(|| vec![NO_NAME_SERVER.to_owned()]),
            memory: Some(memory),
            memory_swap: Some(memory),
            pids_limit: Some(spec.pids),
            cpu_shares: spec.weight.map(weight::cpu_shares),
            blkio_weight: spec.weight.filter(|_| self.weighs_disks).map(weight::blkio_weight),
            ulimits: Some(vec![no_core_dumps]),
            readonly_rootfs: Some(true),
            cap_drop: Some(vec!["ALL".to_owned()]),
            security_opt: Some(self.security.clone()),
            // SQ 0.5.0 prints every request's headers, keys included.
            log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
            network_mode: Some(spec.network),
            mounts: Some(mounts.collect()),
            userns_mode: self.remaps_uids.then(|| "host".to_owned()),
            ..HostConfig::default()
        };
        ContainerCreateBody {
            image: Some(spec.image),
            entrypoint: Some(vec![spec.entrypoint]),
            cmd: Some(spec.command),
            env: Some(spec.environment),
            user: Some(format!("{}:{}", spec.owner.uid, spec.owner.gid)),
            labels: Some(spec.labels),
            stop_timeout: Some(STOP_TIMEOUT_S),
            host_config: Some(host),
            ..ContainerCreateBody::default()
        }
    }

    /// Lists all containers with this label, in every state.
    pub(super) async fn list(&self, label: &str) -> EngineResult<Vec<Container>> {
        let options = ListContainersOptions {
            all: true,
            filters: Some(HashMap::from([("label".to_owned(), vec![label.to_owned()])])),
            ..ListContainersOptions::default()
        };
        let found = self.docker.list_containers(Some(options)).await?;
        Ok(found.into_iter().filter_map(from_summary).collect())
    }

    /// Inspects a container by id or name; `None` if it does not exist.
    pub(super) async fn inspect(&self, id: &str) -> EngineResult<Option<Container>> {
        match self.docker.inspect_container(id, None::<InspectContainerOptions>).await {
            Ok(found) => Ok(from_inspection(found)),
            Err(error) => match EngineError::from(error) {
                EngineError::NotFound => Ok(None),
                other => Err(other),
            },
        }
    }

    pub(super) async fn pause(&self, id: &str) -> EngineResult<()> {
        let result = self.docker.pause_container(id).await.map_err(EngineError::from);
        self.accept_if_already(ContainerState::Paused, id, result).await
    }

    pub(super) async fn unpause(&self, id: &str) -> EngineResult<()> {
        let result = self.docker.unpause_container(id).await.map_err(EngineError::from);
        self.accept_if_already(ContainerState::Running, id, result).await
    }

    /// Makes a change of state idempotent: the daemon refuses it if the container has the state
    /// already.
    async fn accept_if_already(
        &self,
        wanted: ContainerState,
        id: &str,
        result: EngineResult<()>,
    ) -> EngineResult<()> {
        let refusal = match result {
            Err(EngineError::Conflict(text) | EngineError::Refused(text)) => text,
            other => return other,
        };
        match self.inspect(id).await?.map(|container| container.state) {
            Some(state) if state == wanted => Ok(()),
            Some(ContainerState::Ended(_)) => Err(EngineError::NotFound),
            _ => Err(EngineError::Refused(refusal)),
        }
    }

    /// Kills and removes a container by id or name. Idempotent.
    pub(super) async fn remove(&self, id: &str) -> EngineResult<()> {
        let options = RemoveContainerOptions { force: true, v: true, link: false };
        match self.docker.remove_container(id, Some(options)).await.map_err(EngineError::from) {
            Ok(()) | Err(EngineError::NotFound) => Ok(()),
            // Another removal of it is in progress.
            Err(EngineError::Conflict(_)) => self.wait_until_gone(id).await,
            Err(other) => Err(other),
        }
    }

    async fn wait_until_gone(&self, id: &str) -> EngineResult<()> {
        let gone = async {
            while self.inspect(id).await?.is_some() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        };
        let late = |_| EngineError::Refused(format!("container {id} was not removed in time"));
        tokio::time::timeout(CALL_TIMEOUT, gone).await.map_err(late)?
    }

    /// Sets the memory limit of a running container.
    pub(super) async fn resize(&self, id: &str, memory_bytes: u64) -> EngineResult<()> {
        let memory = i64::try_from(memory_bytes).unwrap_or(i64::MAX);
        // Both limits in one call: memory may never exceed memory plus swap, so that a change of
        // either alone is refused.
        let update = ContainerUpdateBody {
            memory: Some(memory),
            memory_swap: Some(memory),
            ..ContainerUpdateBody::default()
        };
        Ok(self.docker.update_container(id, update).await?)
    }

    /// Reads the memory use from the daemon, which may take it a second.
    pub(super) async fn memory_bytes(&self, id: &str) -> EngineResult<Option<u64>> {
        let options = StatsOptions { stream: false, one_shot: true };
        match Box::pin(self.docker.stats(id, Some(options))).next().await {
            Some(stats) => Ok(stats?.memory_stats.and_then(|memory| memory.usage)),
            None => Ok(None),
        }
    }

    /// Reads the process id of a running container, on the daemon's host.
    pub(super) async fn pid(&self, id: &str) -> EngineResult<Option<i32>> {
        let found = self.docker.inspect_container(id, None::<InspectContainerOptions>).await?;
        // The daemon reports pid 0 for a container that does not run.
        let pid = found.state.and_then(|state| state.pid).filter(|pid| *pid > 0);
        Ok(pid.and_then(|pid| pid.try_into().ok()))
    }

    /// Streams deaths and lacks of memory of the containers with this label, with their ids, from
    /// `since_s` (Unix time in seconds) on. Ends when the daemon does.
    pub(super) fn deaths(
        &self,
        label: &str,
        since_s: u64,
    ) -> impl Stream<Item = EngineResult<(String, Event)>> + Send + use<> {
        let filters = HashMap::from([
            ("label".to_owned(), vec![label.to_owned()]),
            ("type".to_owned(), vec!["container".to_owned()]),
            ("event".to_owned(), vec!["die".to_owned(), "oom".to_owned()]),
        ]);
        let options = EventsOptions {
            since: Some(since_s.to_string()),
            filters: Some(filters),
            ..EventsOptions::default()
        };
        let docker = self.docker.clone();
        docker.events(Some(options)).filter_map(async |event| match event {
            Ok(message) => from_event(message).map(Ok),
            Err(error) => Some(Err(EngineError::from(error))),
        })
    }
}

/// An event of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// It lacks memory, and the kernel has killed a process of it.
    OutOfMemory,
    /// Its process has ended.
    Die,
}

fn from_event(message: EventMessage) -> Option<(String, Event)> {
    let event = if message.action? == "oom" { Event::OutOfMemory } else { Event::Die };
    Some((message.actor?.id?, event))
}

fn from_summary(found: ContainerSummary) -> Option<Container> {
    let state = match found.state? {
        ContainerSummaryStateEnum::CREATED => ContainerState::Created,
        ContainerSummaryStateEnum::PAUSED => ContainerState::Paused,
        ContainerSummaryStateEnum::RUNNING | ContainerSummaryStateEnum::RESTARTING => {
            ContainerState::Running
        }
        _ => ContainerState::Ended(ExitKind::Gone),
    };
    let networks = found.network_settings.and_then(|settings| settings.networks);
    Some(Container {
        id: found.id?,
        labels: found.labels.unwrap_or_default(),
        state,
        address: networks.unwrap_or_default().into_values().find_map(|n| address(n.ip_address)),
        network: found.host_config.and_then(|host| host.network_mode).unwrap_or_default(),
        command: found.command.unwrap_or_default(),
    })
}

fn from_inspection(found: ContainerInspectResponse) -> Option<Container> {
    let state = found.state?;
    let exit = match (state.oom_killed, state.exit_code) {
        (Some(true), _) => ExitKind::OutOfMemory,
        (_, Some(0)) => ExitKind::Clean,
        (_, Some(code)) => ExitKind::Crashed(code),
        (_, None) => ExitKind::Gone,
    };
    let state = match state.status? {
        ContainerStateStatusEnum::CREATED => ContainerState::Created,
        ContainerStateStatusEnum::PAUSED => ContainerState::Paused,
        ContainerStateStatusEnum::RUNNING | ContainerStateStatusEnum::RESTARTING => {
            ContainerState::Running
        }
        _ => ContainerState::Ended(exit),
    };
    let networks = found.network_settings.and_then(|settings| settings.networks);
    Some(Container {
        id: found.id?,
        labels: found.config.and_then(|config| config.labels).unwrap_or_default(),
        state,
        address: networks.unwrap_or_default().into_values().find_map(|n| address(n.ip_address)),
        network: found.host_config.and_then(|host| host.network_mode).unwrap_or_default(),
        command: found.args.unwrap_or_default().join(" "),
    })
}

/// Name of a bridge's network interface, as Docker derives it from the network's id.
fn bridge_name(id: Option<&str>) -> String {
    format!("br-{:.BRIDGE_ID_DIGITS$}", id.unwrap_or_default())
}

fn address(text: Option<String>) -> Option<IpAddr> {
    text?.parse().ok()
}
