//! The Docker daemon in the few words this crate needs. The only file that names bollard.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ContainerStateStatusEnum, ContainerSummary,
    ContainerSummaryStateEnum, ContainerUpdateBody, EventMessage, HostConfig, HostConfigLogConfig,
    Ipam, IpamConfig, Mount, MountType, NetworkCreateRequest,
};
use bollard::query_parameters::{
    CreateContainerOptions, CreateImageOptions, EventsOptions, InspectContainerOptions,
    InspectNetworkOptions, ListContainersOptions, RemoveContainerOptions, StartContainerOptions,
    StatsOptions,
};
use futures_util::{Stream, StreamExt};

use crate::runtime::folder::Owner;
use crate::runtime::{ExitKind, RuntimeError};

/// The daemon answers in milliseconds; twenty starts at once take it 3.5 s.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// SQ heeds no SIGTERM: a daemon that ends would wait for ten seconds before it kills it, and clients
/// with it. What is being written is through in less.
const STOP_WITHIN_S: i64 = 1;

/// Tenants don't reach each other through their bridge.
const NO_TALK: &str = "com.docker.network.bridge.enable_icc";

/// A connection to the daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Engine {
    docker: Docker,
    /// The daemon remaps uids: containers must opt out, or none could write its folder.
    host_uids: bool,
    pub(super) version: String,
}

/// A container to be made. Everything not named here is the same for all: hardened.
#[derive(Debug, Clone)]
pub(super) struct Blueprint {
    pub(super) name: String,
    pub(super) image: String,
    pub(super) entrypoint: String,
    pub(super) command: Vec<String>,
    pub(super) environment: Vec<String>,
    pub(super) labels: HashMap<String, String>,
    pub(super) owner: Owner,
    pub(super) memory_bytes: u64,
    pub(super) pids: i64,
    /// A network's name or `container:<id>`.
    pub(super) network: String,
    /// Folder on the host and where it is seen.
    pub(super) folder: Option<(PathBuf, String)>,
}

/// A container as the daemon knows it.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) id: String,
    pub(super) labels: HashMap<String, String>,
    pub(super) state: SeenState,
    pub(super) address: Option<IpAddr>,
    pub(super) network: String,
    pub(super) command: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SeenState {
    /// Made and never started.
    Created,
    Running,
    Paused,
    /// In a list the exit is not known: [`ExitKind::Gone`].
    Ended(ExitKind),
}

/// Why the daemon did not do it.
#[derive(Debug)]
pub(super) enum EngineError {
    NotFound,
    Conflict(String),
    Refused(String),
    Unavailable(String),
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
            EngineError::NotFound => Self::Failed("Docker does not know it".to_owned()),
            EngineError::Conflict(text) | EngineError::Refused(text) => {
                Self::Failed(format!("Docker: {text}"))
            }
            EngineError::Unavailable(text) => Self::Unavailable(text),
        }
    }
}

type Done<T> = Result<T, EngineError>;

impl Engine {
    /// The daemon of `DOCKER_HOST`, or of the local socket.
    pub(super) async fn connect() -> Done<Self> {
        let docker = Docker::connect_with_defaults()?.with_timeout(ANSWER_WITHIN);
        let docker = docker.negotiate_version().await?;
        let info = docker.info().await?;
        let security = info.security_options.unwrap_or_default();
        let host_uids = security.iter().any(|option| option.contains("name=userns"));
        Ok(Self { docker, host_uids, version: info.server_version.unwrap_or_default() })
    }

    /// Makes the tenants' bridge unless it is there; one that lets tenants out is refused.
    pub(super) async fn ensure_network(
        &self,
        name: &str,
        subnet: Option<&str>,
        labels: HashMap<String, String>,
    ) -> Result<(), RuntimeError> {
        match self.docker.inspect_network(name, None::<InspectNetworkOptions>).await {
            Ok(found) => {
                let options = found.options.unwrap_or_default();
                let closed = options.get(NO_TALK).is_some_and(|value| value == "false");
                if found.internal == Some(true) && closed {
                    return Ok(());
                }
                return Err(RuntimeError::Failed(format!(
                    "Docker network {name} exists and is not internal with {NO_TALK}=false: \
                     name another one or remove it"
                )));
            }
            Err(e) => match EngineError::from(e) {
                EngineError::NotFound => {}
                other => return Err(other.into()),
            },
        }
        let pool = subnet.map(|subnet| Ipam {
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
            ipam: pool,
            options: Some(HashMap::from([(NO_TALK.to_owned(), "false".to_owned())])),
            labels: Some(labels),
            ..NetworkCreateRequest::default()
        };
        self.docker.create_network(request).await.map_err(EngineError::from)?;
        Ok(())
    }

    pub(super) async fn has_image(&self, image: &str) -> Done<bool> {
        match self.docker.inspect_image(image).await.map_err(EngineError::from) {
            Ok(_) => Ok(true),
            Err(EngineError::NotFound) => Ok(false),
            Err(other) => Err(other),
        }
    }

    pub(super) async fn pull(&self, image: &str) -> Done<()> {
        let options = CreateImageOptions {
            from_image: Some(image.to_owned()),
            ..CreateImageOptions::default()
        };
        let mut progress = Box::pin(self.docker.create_image(Some(options), None, None));
        while let Some(step) = progress.next().await {
            step?;
        }
        Ok(())
    }

    /// Makes a container, which does not run yet; its id.
    pub(super) async fn make(&self, blueprint: Blueprint) -> Done<String> {
        let options = CreateContainerOptions {
            name: Some(blueprint.name.clone()),
            ..CreateContainerOptions::default()
        };
        let body = self.body(blueprint);
        Ok(self.docker.create_container(Some(options), body).await?.id)
    }

    /// Starts a container that was made; one that can't be started is removed.
    pub(super) async fn start(&self, id: &str) -> Done<()> {
        let started = self.docker.start_container(id, None::<StartContainerOptions>).await;
        if let Err(e) = started {
            self.remove(id).await?;
            return Err(e.into());
        }
        Ok(())
    }

    fn body(&self, blueprint: Blueprint) -> ContainerCreateBody {
        let memory = i64::try_from(blueprint.memory_bytes).unwrap_or(i64::MAX);
        let mounts = blueprint.folder.map(|(source, target)| Mount {
            target: Some(target),
            source: Some(source.display().to_string()),
            typ: Some(MountType::BIND),
            ..Mount::default()
        });
        let host = HostConfig {
            memory: Some(memory),
            memory_swap: Some(memory),
            pids_limit: Some(blueprint.pids),
            readonly_rootfs: Some(true),
            cap_drop: Some(vec!["ALL".to_owned()]),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            // SQ 0.5.0 prints every request's headers.
            log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
            network_mode: Some(blueprint.network),
            mounts: Some(mounts.into_iter().collect()),
            userns_mode: self.host_uids.then(|| "host".to_owned()),
            ..HostConfig::default()
        };
        ContainerCreateBody {
            image: Some(blueprint.image),
            entrypoint: Some(vec![blueprint.entrypoint]),
            cmd: Some(blueprint.command),
            env: Some(blueprint.environment),
            user: Some(format!("{}:{}", blueprint.owner.uid, blueprint.owner.gid)),
            labels: Some(blueprint.labels),
            stop_timeout: Some(STOP_WITHIN_S),
            host_config: Some(host),
            ..ContainerCreateBody::default()
        }
    }

    /// All containers with this label, however they are.
    pub(super) async fn list(&self, label: &str) -> Done<Vec<Seen>> {
        let options = ListContainersOptions {
            all: true,
            filters: Some(HashMap::from([("label".to_owned(), vec![label.to_owned()])])),
            ..ListContainersOptions::default()
        };
        let found = self.docker.list_containers(Some(options)).await?;
        Ok(found.into_iter().filter_map(summarised).collect())
    }

    /// A container by id or name.
    pub(super) async fn inspect(&self, id: &str) -> Done<Option<Seen>> {
        match self.docker.inspect_container(id, None::<InspectContainerOptions>).await {
            Ok(found) => Ok(inspected(found)),
            Err(e) => match EngineError::from(e) {
                EngineError::NotFound => Ok(None),
                other => Err(other),
            },
        }
    }

    pub(super) async fn pause(&self, id: &str) -> Done<()> {
        let done = self.docker.pause_container(id).await.map_err(EngineError::from);
        self.unless_so_already(id, done, SeenState::Paused).await
    }

    pub(super) async fn unpause(&self, id: &str) -> Done<()> {
        let done = self.docker.unpause_container(id).await.map_err(EngineError::from);
        self.unless_so_already(id, done, SeenState::Running).await
    }

    async fn unless_so_already(&self, id: &str, done: Done<()>, wanted: SeenState) -> Done<()> {
        match done {
            Err(EngineError::Conflict(text) | EngineError::Refused(text)) => {
                match self.inspect(id).await? {
                    Some(seen) if seen.state == wanted => Ok(()),
                    Some(seen) if matches!(seen.state, SeenState::Ended(_)) => {
                        Err(EngineError::NotFound)
                    }
                    _ => Err(EngineError::Refused(text)),
                }
            }
            other => other,
        }
    }

    /// Kills and removes a container by id or name. Idempotent.
    pub(super) async fn remove(&self, id: &str) -> Done<()> {
        let options = RemoveContainerOptions { force: true, v: true, link: false };
        match self.docker.remove_container(id, Some(options)).await.map_err(EngineError::from) {
            Ok(()) | Err(EngineError::NotFound) => Ok(()),
            // Another removal is under way.
            Err(EngineError::Conflict(_)) => self.until_gone(id).await,
            Err(other) => Err(other),
        }
    }

    async fn until_gone(&self, id: &str) -> Done<()> {
        let gone = async {
            while self.inspect(id).await?.is_some() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        };
        let late = |_| EngineError::Refused(format!("container {id} is not removed in time"));
        tokio::time::timeout(ANSWER_WITHIN, gone).await.map_err(late)?
    }

    pub(super) async fn resize(&self, id: &str, memory_bytes: u64) -> Done<()> {
        let memory = i64::try_from(memory_bytes).unwrap_or(i64::MAX);
        // Both at once: either alone is refused, for memory never exceeds memory with swap.
        let update = ContainerUpdateBody {
            memory: Some(memory),
            memory_swap: Some(memory),
            ..ContainerUpdateBody::default()
        };
        Ok(self.docker.update_container(id, update).await?)
    }

    pub(super) async fn memory_bytes(&self, id: &str) -> Done<Option<u64>> {
        let options = StatsOptions { stream: false, one_shot: true };
        match Box::pin(self.docker.stats(id, Some(options))).next().await {
            Some(stats) => Ok(stats?.memory_stats.and_then(|memory| memory.usage)),
            None => Ok(None),
        }
    }

    /// The process of a container that runs.
    pub(super) async fn pid(&self, id: &str) -> Done<Option<i64>> {
        let found = self.docker.inspect_container(id, None::<InspectContainerOptions>).await?;
        Ok(found.state.and_then(|state| state.pid).filter(|pid| *pid > 0))
    }

    /// Ids of containers with this label as they are killed by request and as they die, from
    /// `since_s` (seconds since 1970) on. Ends when the daemon does.
    pub(super) fn deaths(
        &self,
        label: &str,
        since_s: u64,
    ) -> impl Stream<Item = Done<(String, Event)>> + Send + use<> {
        let filters = HashMap::from([
            ("label".to_owned(), vec![label.to_owned()]),
            ("type".to_owned(), vec!["container".to_owned()]),
            ("event".to_owned(), vec!["die".to_owned(), "kill".to_owned()]),
        ]);
        let options = EventsOptions {
            since: Some(since_s.to_string()),
            filters: Some(filters),
            ..EventsOptions::default()
        };
        let told = |event: EventMessage| {
            let what = if event.action? == "kill" { Event::Kill } else { Event::Die };
            Some((event.actor?.id?, what))
        };
        let docker = self.docker.clone();
        docker.events(Some(options)).filter_map(move |event| async move {
            match event {
                Ok(event) => told(event).map(Ok),
                Err(e) => Some(Err(EngineError::from(e))),
            }
        })
    }
}

/// What happens to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// Somebody asked the daemon to send it a signal.
    Kill,
    /// It ended.
    Die,
}

fn summarised(found: ContainerSummary) -> Option<Seen> {
    let state = match found.state? {
        ContainerSummaryStateEnum::CREATED => SeenState::Created,
        ContainerSummaryStateEnum::PAUSED => SeenState::Paused,
        ContainerSummaryStateEnum::RUNNING | ContainerSummaryStateEnum::RESTARTING => {
            SeenState::Running
        }
        _ => SeenState::Ended(ExitKind::Gone),
    };
    let networks = found.network_settings.and_then(|settings| settings.networks);
    Some(Seen {
        id: found.id?,
        labels: found.labels.unwrap_or_default(),
        state,
        address: networks.unwrap_or_default().into_values().find_map(|n| address(n.ip_address)),
        network: found.host_config.and_then(|host| host.network_mode).unwrap_or_default(),
        command: found.command.unwrap_or_default(),
    })
}

fn inspected(found: ContainerInspectResponse) -> Option<Seen> {
    let state = found.state?;
    let exit = match (state.oom_killed, state.exit_code) {
        (Some(true), _) => ExitKind::OutOfMemory,
        (_, Some(0)) => ExitKind::Clean,
        (_, Some(code)) => ExitKind::Crashed(code),
        (_, None) => ExitKind::Gone,
    };
    let state = match state.status? {
        ContainerStateStatusEnum::CREATED => SeenState::Created,
        ContainerStateStatusEnum::PAUSED => SeenState::Paused,
        ContainerStateStatusEnum::RUNNING | ContainerStateStatusEnum::RESTARTING => {
            SeenState::Running
        }
        _ => SeenState::Ended(exit),
    };
    let networks = found.network_settings.and_then(|settings| settings.networks);
    Some(Seen {
        id: found.id?,
        labels: found.config.and_then(|config| config.labels).unwrap_or_default(),
        state,
        address: networks.unwrap_or_default().into_values().find_map(|n| address(n.ip_address)),
        network: found.host_config.and_then(|host| host.network_mode).unwrap_or_default(),
        command: found.args.unwrap_or_default().join(" "),
    })
}

fn address(text: Option<String>) -> Option<IpAddr> {
    text?.parse().ok()
}
