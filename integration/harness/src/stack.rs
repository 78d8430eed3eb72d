//! The whole gateway: relay, orchestrator, Envoy and the tenants they start.
//!
//! ```text
//! Stack::builder() ─ start() ─► ready ─ drop ─► nothing left: no process, container or folder
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use protocol::containers;
use tempfile::TempDir;

use crate::Client;
use crate::Http;
use crate::host::certs::Certs;
use crate::host::docker;
use crate::host::ports;
use crate::host::processes;
use crate::host::tools;
use crate::parts::envoy::{Envoy, Host, Setup};
use crate::parts::orchestrator::{Orchestrator, Ports};
use crate::parts::relay::Relay;
use crate::registry::Registry;

/// What runs the tenants' SQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Runtime {
    /// Child processes of the orchestrator.
    Process,
    /// Containers.
    Docker,
}

impl Runtime {
    /// As `RUNTIME` and the orchestrator's config have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Docker => "docker",
        }
    }

    /// What `RUNTIME` asks for; `None`: nothing, or `auto`.
    pub fn asked() -> Result<Option<Self>> {
        match std::env::var("RUNTIME").unwrap_or_default().as_str() {
            "" | "auto" => Ok(None),
            "process" => Ok(Some(Self::Process)),
            "docker" => Ok(Some(Self::Docker)),
            other => bail!("RUNTIME={other}: it may be docker, process or auto"),
        }
    }

    /// `asked`, or Docker where its daemon answers. Asked for Docker, there must be one.
    pub fn found(asked: Option<Self>) -> Result<Self> {
        match asked {
            Some(Self::Process) => Ok(Self::Process),
            Some(Self::Docker) => {
                docker::daemon().context("RUNTIME=docker, but Docker can't be used")?;
                Ok(Self::Docker)
            }
            None => match docker::daemon() {
                Ok(_) => Ok(Self::Docker),
                Err(error) => {
                    eprintln!("tenants run as processes: {error:#}");
                    Ok(Self::Process)
                }
            },
        }
    }
}

/// When tenants doze and sleep; the orchestrator's defaults where nothing is said.
#[derive(Debug, Clone, Default)]
pub struct Lifecycle {
    settings: BTreeMap<&'static str, String>,
}

impl Lifecycle {
    /// Leases so short that a tenant sleeps within a second of being asked to; never by itself.
    pub fn hasty() -> Self {
        let never_ms = 3_600_000;
        let hasty = Self::default().duration_ms("lease", 200).duration_ms("grace", 500);
        hasty.duration_ms("doze_after", never_ms).duration_ms("sleep_after", never_ms)
    }

    /// Sets a number of the orchestrator's `[lifecycle]`.
    #[must_use]
    pub fn set(mut self, name: &'static str, value: u64) -> Self {
        self.settings.insert(name, value.to_string());
        self
    }

    /// Sets a duration of the orchestrator's `[lifecycle]`, in milliseconds.
    #[must_use]
    pub fn duration_ms(mut self, name: &'static str, ms: u64) -> Self {
        self.settings.insert(name, format!("\"{ms}ms\""));
        self
    }

    /// The settings as TOML of `orchestrator.toml`.
    pub fn to_toml(&self) -> String {
        let mut text = "[lifecycle]\n".to_owned();
        for (name, value) in &self.settings {
            let _ = writeln!(text, "{name} = {value}");
        }
        text
    }
}

/// What a stack is made of.
#[derive(Debug, Clone)]
pub struct Builder {
    runtime: Runtime,
    sq_version: String,
    workers: u32,
    tenants: Vec<(String, String)>,
    lifecycle: Lifecycle,
    host: Host,
    filter: Option<PathBuf>,
    filter_config: Vec<(&'static str, String)>,
    clusters: String,
    tiers: String,
    orchestrator: String,
    data: Option<PathBuf>,
    second: bool,
    hot_restart: bool,
}

impl Builder {
    /// What runs SQ. Default: process.
    #[must_use]
    pub fn runtime(mut self, runtime: Runtime) -> Self {
        self.runtime = runtime;
        self
    }

    /// Which SQ. Default: 0.6.0.
    #[must_use]
    pub fn sq(mut self, version: &str) -> Self {
        version.clone_into(&mut self.sq_version);
        self
    }

    /// Envoy's workers. Default: 2.
    #[must_use]
    pub fn workers(mut self, workers: u32) -> Self {
        self.workers = workers;
        self
    }

    /// Registers a tenant in a tier whose limits no test meets.
    #[must_use]
    pub fn tenant(self, name: &str) -> Self {
        self.tenant_of(name, UNLIMITED)
    }

    /// Registers a tenant in a tier of the registry's template.
    #[must_use]
    pub fn tenant_of(mut self, name: &str, tier: &str) -> Self {
        self.tenants.push((name.to_owned(), tier.to_owned()));
        self
    }

    /// Adds a tier; `limits` are lines as in the registry.
    #[must_use]
    pub fn tier(mut self, name: &str, limits: &str) -> Self {
        let _ = write!(self.tiers, "\ntier: {name}\n{limits}");
        self
    }

    /// Adds lines to the end of the orchestrator's config, such as a `[host]` section.
    #[must_use]
    pub fn orchestrator(mut self, toml: &str) -> Self {
        self.orchestrator.push_str(toml);
        self
    }

    /// A second Envoy at the same relay and orchestrator.
    #[must_use]
    pub fn second_envoy(mut self) -> Self {
        self.second = true;
        self
    }

    /// Tenants' folders on another file system.
    #[must_use]
    pub fn data(mut self, folder: &Path) -> Self {
        self.data = Some(folder.to_owned());
        self
    }

    /// When tenants doze and sleep.
    #[must_use]
    pub fn lifecycle(mut self, lifecycle: Lifecycle) -> Self {
        self.lifecycle = lifecycle;
        self
    }

    /// Where Envoy runs. Default: as a process, or as `ENVOY_HOST=container` says.
    #[must_use]
    pub fn envoy_host(mut self, host: Host) -> Self {
        self.host = host;
        self
    }

    /// Envoy can hand over to a successor.
    #[must_use]
    pub fn hot_restart(mut self) -> Self {
        self.hot_restart = true;
        self
    }

    /// Another build of the filter.
    #[must_use]
    pub fn filter(mut self, wasm: PathBuf) -> Self {
        self.filter = Some(wasm);
        self
    }

    /// Puts what listens on a port of the loopback in the place of a tenant's SQ: what the
    /// orchestrator sends can't change a cluster that stands in the bootstrap.
    #[must_use]
    pub fn in_place_of_sq(mut self, tenant: &str, port: u16) -> Self {
        let name = format!("sq/{tenant}");
        let address = format!("{{ address: 127.0.0.1, port_value: {port} }}");
        let _ = write!(
            self.clusters,
            "\n  - name: {name}\n    load_assignment:\n      cluster_name: {name}\n      endpoints:\n      \
             - lb_endpoints:\n        - endpoint: {{ address: {{ socket_address: {address} }} }}\n"
        );
        self
    }

    /// Adds a field to the plugin's JSON; `value` is JSON.
    #[must_use]
    pub fn filter_config(mut self, name: &'static str, value: &str) -> Self {
        self.filter_config.push((name, value.to_owned()));
        self
    }

    /// Starts it all in a temporary folder, on free ports.
    pub async fn start(self) -> Result<Stack> {
        let dir = tempfile::Builder::new().prefix("sq-gateway-").tempdir()?;
        let path = dir.path().canonicalize()?;
        // Tenants' SQs run as another uid and must reach their folders.
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let listen = Listen {
            https: ports::free()?,
            envoy_admin: ports::free()?,
            relay: ports::free()?,
            orchestrator: Ports {
                gate: ports::free()?,
                xds: ports::free()?,
                admin: ports::free()?,
            },
        };
        let registry = Registry::new(tools::own("relay")?, path.join("registry.phext"));
        std::fs::write(registry.file(), registry_text() + &self.tiers)?;
        let mut keys = BTreeMap::new();
        for (name, tier) in &self.tenants {
            keys.insert(name.clone(), registry.add(name, tier)?);
        }
        let mut stack = self.start_in(&path, listen, registry, keys).await?;
        stack.temporary = Some(dir);
        Ok(stack)
    }

    /// Starts it in a folder that stays, with a registry that is there already.
    pub async fn start_in(
        self,
        dir: &Path,
        listen: Listen,
        registry: Registry,
        keys: BTreeMap<String, String>,
    ) -> Result<Stack> {
        if let Some(data) = &self.data {
            std::os::unix::fs::symlink(data, dir.join("data"))?;
        }
        let certs = Certs::create(&dir.join("pki"))?;
        let relay = Relay::new(dir, listen.relay, &certs, &registry)?;
        // Stacks side by side must not share their bridge; one bridge per gate port.
        let network = format!("sq-gateway-{}", listen.orchestrator.gate);
        let orchestrator = Orchestrator::new(
            dir,
            listen.orchestrator,
            self.runtime,
            &self.sq_version,
            &self.lifecycle,
            &network,
        )?;
        let config = dir.join("orchestrator.toml");
        let mut text = std::fs::read_to_string(&config)?;
        text.push_str(&self.orchestrator);
        std::fs::write(config, text)?;
        let filter = self.filter.map_or_else(tools::filter, Ok)?;
        let mut filter_config = self.filter_config;
        // What answers before a tenant's first lease has told it.
        filter_config.push(("sq_version", format!("\"{}\"", self.sq_version)));
        let setup = Setup {
            dir,
            node: "gateway-1",
            certs: &certs,
            listen,
            workers: self.workers,
            filter: &filter,
            filter_config: &filter_config,
            clusters: &self.clusters,
            host: self.host,
            hot_restart: self.hot_restart,
        };
        let envoy = Envoy::new(&setup)?;
        let second = if self.second { Some(Second::new(dir, &setup)?) } else { None };
        let stack = Stack {
            dir: dir.to_owned(),
            runtime: self.runtime,
            listen,
            certs,
            registry,
            keys,
            relay,
            orchestrator,
            envoy,
            second,
            temporary: None,
        };
        // From here on a failure drops the stack, which ends what has started.
        stack.relay.start().await?;
        stack.orchestrator.start().await.map_err(|error| stack.explain(&error))?;
        stack.envoy.start().await.map_err(|error| stack.explain(&error))?;
        if let Some(second) = &stack.second {
            second.envoy.start().await.map_err(|error| stack.explain(&error))?;
        }
        Ok(stack)
    }
}

/// Ports of a stack.
#[derive(Debug, Clone, Copy)]
pub struct Listen {
    /// The gateway.
    pub https: u16,
    /// Envoy's admin.
    pub envoy_admin: u16,
    /// The relay.
    pub relay: u16,
    /// The orchestrator.
    pub orchestrator: Ports,
}

/// A running gateway.
pub struct Stack {
    /// Everything of it.
    pub dir: PathBuf,
    /// What runs SQ.
    pub runtime: Runtime,
    /// Where its parts listen.
    pub listen: Listen,
    /// Its certificates.
    pub certs: Certs,
    /// The ranch's registry.
    pub registry: Registry,
    /// Keys of the tenants that it was built with.
    pub keys: BTreeMap<String, String>,
    /// The ranch.
    pub relay: Relay,
    /// The gateway host.
    pub orchestrator: Orchestrator,
    /// The gateway.
    pub envoy: Envoy,
    second: Option<Second>,
    temporary: Option<TempDir>,
}

/// Another gateway beside the first.
struct Second {
    https: u16,
    envoy: Envoy,
}

impl Second {
    fn new(dir: &Path, first: &Setup<'_>) -> Result<Self> {
        let dir = dir.join("second");
        let (https, envoy_admin) = (ports::free()?, ports::free()?);
        let listen = Listen { https, envoy_admin, ..first.listen };
        let setup = Setup { dir: &dir, node: "gateway-2", listen, ..*first };
        Ok(Self { https, envoy: Envoy::new(&setup)? })
    }
}

/// The tier whose limits no test meets.
pub const UNLIMITED: &str = "test";

fn registry_text() -> String {
    format!(
        "tiers\n\ntier: free\n\ntier: {UNLIMITED}\n  storage: 500 MB\n  memory: 64 MiB\n  \
         phexts: 1000\n  requests-per-s: 1_000_000\n  burst: 1_000_000\n  \
         requests-per-day: unlimited\n  requests-per-month: unlimited\n  \
         writes-per-day: unlimited\n  wakes-per-hour: unlimited\n"
    )
}

impl Stack {
    /// A stack of the default parts, without tenants.
    pub fn builder() -> Builder {
        Builder {
            runtime: Runtime::Process,
            sq_version: tools::SQ_VERSION.to_owned(),
            workers: 2,
            tenants: Vec::new(),
            lifecycle: Lifecycle::default(),
            host: Host::asked(),
            filter: None,
            filter_config: Vec::new(),
            clusters: String::new(),
            tiers: String::new(),
            orchestrator: String::new(),
            data: None,
            second: false,
            hot_restart: false,
        }
    }

    /// `https://127.0.0.1:…`.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.listen.https)
    }

    /// A client without a key.
    pub fn client(&self, http: Http) -> Result<Client> {
        Client::new(&self.url(), &self.certs.ca(), http)
    }

    /// A client with a tenant's key, over HTTP/1.1.
    pub fn tenant(&self, name: &str) -> Result<Client> {
        Ok(self.client(Http::One)?.key(self.key(name)?))
    }

    /// A client with a tenant's key at the second Envoy.
    pub fn tenant_at_second(&self, name: &str, http: Http) -> Result<Client> {
        let second = self.second.as_ref().context("the stack has one Envoy only")?;
        let url = format!("https://127.0.0.1:{}", second.https);
        Ok(Client::new(&url, &self.certs.ca(), http)?.key(self.key(name)?))
    }

    /// A tenant's key.
    pub fn key(&self, name: &str) -> Result<&str> {
        self.keys.get(name).map(String::as_str).with_context(|| format!("no tenant {name}"))
    }

    /// The end of every part's log.
    pub fn tails(&self) -> String {
        [self.relay.service().tail(), self.orchestrator.service().tail(), self.envoy.tail()]
            .join("\n")
    }

    /// The labels that all tenants' containers carry.
    pub fn labels(&self) -> Vec<String> {
        let role = format!("{}={}", containers::ROLE, containers::ROLE_SQ);
        vec![installation(self.orchestrator.data()), role]
    }

    /// The labels of all its prepared network slots, used ones included.
    pub fn slot_labels(&self) -> Vec<String> {
        let role = format!("{}={}", containers::ROLE, containers::ROLE_NAMESPACE);
        vec![installation(self.orchestrator.data()), role]
    }

    /// The labels of one tenant's container.
    pub fn tenant_labels(&self, tenant: &str) -> Vec<String> {
        let label = format!("{}={tenant}", containers::TENANT);
        vec![installation(self.orchestrator.data()), label]
    }

    fn explain(&self, error: &anyhow::Error) -> anyhow::Error {
        anyhow::anyhow!("{error:#}\n{}", self.tails())
    }

    /// Process ids of its tenants' SQs, where they are processes.
    pub fn sq_pids(&self) -> Vec<i32> {
        processes::below(self.orchestrator.data(), &["sq"])
    }
}

/// The label of everything that an orchestrator with this data root makes.
pub fn installation(data: &Path) -> String {
    let id = containers::installation_id(data.as_os_str().as_encoded_bytes());
    format!("{}={id}", containers::INSTALLATION)
}

/// Ends every SQ on a folder below `data`, and with Docker what was made for them.
pub fn end_tenants(runtime: Runtime, data: &Path) {
    processes::end(&processes::below(data, &["sq"]));
    if runtime == Runtime::Docker
        && let Err(error) = docker::remove_labelled(&[installation(data)])
    {
        eprintln!("containers may be left: {error:#}");
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.envoy.kill();
        if let Some(second) = &self.second {
            second.envoy.kill();
        }
        self.orchestrator.service().kill();
        self.relay.service().kill();
        end_tenants(self.runtime, self.orchestrator.data());
    }
}
