//! Options of a stack, and its start: registry, certificates, configs, then the processes in the
//! order of their dependencies.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{SecondEnvoy, Stack};
use crate::host::certs::Certs;
use crate::host::ports;
use crate::host::sockets::Sockets;
use crate::host::tools;
use crate::options::{EnvoyHost, Lifecycle, Listen, Runtime};
use crate::parts::envoy::{Envoy, EnvoySetup};
use crate::parts::orchestrator::{Orchestrator, OrchestratorSetup};
use crate::parts::relay::Relay;
use crate::registry::{Registry, RegistryBuilder, Tier};

/// Options of a stack.
#[derive(Debug, Clone)]
pub struct StackBuilder {
    runtime: Runtime,
    sq_version: String,
    workers: u32,
    registry: RegistryBuilder,
    lifecycle: Lifecycle,
    envoy_host: EnvoyHost,
    filter: Option<PathBuf>,
    filter_config: Vec<(&'static str, String)>,
    clusters: String,
    envoy_changes: Vec<(&'static str, &'static str)>,
    orchestrator: String,
    data: Option<PathBuf>,
    second_envoy: bool,
    hot_restart: bool,
}

impl Default for StackBuilder {
    fn default() -> Self {
        Self {
            runtime: Runtime::Process,
            sq_version: tools::SQ_VERSION.to_owned(),
            workers: 2,
            registry: Registry::builder(),
            lifecycle: Lifecycle::default(),
            envoy_host: EnvoyHost::from_env(),
            filter: None,
            filter_config: Vec::new(),
            clusters: String::new(),
            envoy_changes: Vec::new(),
            orchestrator: String::new(),
            data: None,
            second_envoy: false,
            hot_restart: false,
        }
    }
}

impl StackBuilder {
    /// Sets the runtime of SQ. Default: processes.
    #[must_use]
    pub fn runtime(mut self, runtime: Runtime) -> Self {
        self.runtime = runtime;
        self
    }

    /// Sets the version of SQ. Default: [`tools::SQ_VERSION`].
    #[must_use]
    pub fn sq(mut self, version: &str) -> Self {
        version.clone_into(&mut self.sq_version);
        self
    }

    /// Sets the number of Envoy's workers. Default: 2.
    #[must_use]
    pub fn workers(mut self, workers: u32) -> Self {
        self.workers = workers;
        self
    }

    /// Registers a tenant in the unlimited tier.
    #[must_use]
    pub fn tenant(self, name: &str) -> Self {
        self.tenant_in_tier(name, Tier::UNLIMITED)
    }

    /// Registers a tenant in `free` or in a tier added by [`StackBuilder::tier`].
    #[must_use]
    pub fn tenant_in_tier(mut self, name: &str, tier: &str) -> Self {
        self.registry = self.registry.tenant(name, tier);
        self
    }

    /// Adds a tier to the registry.
    #[must_use]
    pub fn tier(mut self, tier: Tier) -> Self {
        self.registry = self.registry.tier(tier);
        self
    }

    /// Appends to the orchestrator's config, such as a `[host]` section.
    #[must_use]
    pub fn orchestrator(mut self, toml: &str) -> Self {
        self.orchestrator.push_str(toml);
        self
    }

    /// Adds a second Envoy at the same relay and orchestrator.
    #[must_use]
    pub fn second_envoy(mut self) -> Self {
        self.second_envoy = true;
        self
    }

    /// Puts the tenants' folders into `folder`, which may be on another file system.
    #[must_use]
    pub fn data(mut self, folder: &Path) -> Self {
        self.data = Some(folder.to_owned());
        self
    }

    /// Sets the orchestrator's `[lifecycle]` section.
    #[must_use]
    pub fn lifecycle(mut self, lifecycle: Lifecycle) -> Self {
        self.lifecycle = lifecycle;
        self
    }

    /// Sets the host of Envoy. Default: [`EnvoyHost::from_env`].
    #[must_use]
    pub fn envoy_host(mut self, host: EnvoyHost) -> Self {
        self.envoy_host = host;
        self
    }

    /// Starts Envoy so that [`Envoy::hot_restart`] works.
    #[must_use]
    pub fn hot_restart(mut self) -> Self {
        self.hot_restart = true;
        self
    }

    /// Uses another build of the filter.
    #[must_use]
    pub fn filter(mut self, wasm: PathBuf) -> Self {
        self.filter = Some(wasm);
        self
    }

    /// Routes a tenant to a listener on a port of the loopback in place of its SQ. The cluster is
    /// static, and xDS can't change static clusters.
    #[must_use]
    pub fn replace_sq(mut self, tenant: &str, port: u16) -> Self {
        let name = format!("sq/{tenant}");
        let address = format!("{{ address: 127.0.0.1, port_value: {port} }}");
        // Writing into a String does not fail.
        let _ = write!(
            self.clusters,
            "\n  - name: {name}\n    load_assignment:\n      cluster_name: {name}\n      \
             endpoints:\n      - lb_endpoints:\n        - endpoint: \
             {{ address: {{ socket_address: {address} }} }}\n"
        );
        self
    }

    /// Replaces a text of Envoy's bootstrap, which must be there.
    #[must_use]
    pub fn envoy_change(mut self, from: &'static str, to: &'static str) -> Self {
        self.envoy_changes.push((from, to));
        self
    }

    /// Logs refused requests too, of which Envoy otherwise logs one in a hundred.
    #[must_use]
    pub fn log_every_request(self) -> Self {
        self.envoy_change(
            "{ numerator: 1, denominator: HUNDRED }",
            "{ numerator: 100, denominator: HUNDRED }",
        )
    }

    /// Adds a field to the filter's JSON config; `value` is JSON.
    #[must_use]
    pub fn filter_config(mut self, name: &'static str, value: &str) -> Self {
        self.filter_config.push((name, value.to_owned()));
        self
    }

    /// Starts the stack in a temporary folder, on free ports.
    pub async fn start(mut self) -> Result<Stack> {
        let temporary = tempfile::Builder::new().prefix("sq-gateway-").tempdir()?;
        let dir = temporary.path().canonicalize()?;
        // Tenants' SQ instances run as another uid and must reach their folders.
        fs::set_permissions(&dir, Permissions::from_mode(0o755))?;
        let registry = std::mem::replace(&mut self.registry, Registry::builder());
        let relay = tools::workspace_binary("relay")?;
        let (registry, keys) = registry.create(relay, dir.join("registry.phext"))?;
        let mut stack = self.start_in(&dir, Listen::free()?, registry, keys).await?;
        stack.temporary = Some(temporary);
        Ok(stack)
    }

    /// Starts the stack in a lasting folder, with an existing registry. Tiers and tenants of the
    /// builder are ignored.
    pub async fn start_in(
        self,
        dir: &Path,
        listen: Listen,
        registry: Registry,
        keys: BTreeMap<String, String>,
    ) -> Result<Stack> {
        let stack = self.build(dir, listen, registry, keys)?;
        // A failure from here on drops the stack, which ends the parts that run.
        stack.relay.start().await?;
        stack.orchestrator.start().await.map_err(|error| stack.with_logs(&error))?;
        stack.envoy.start().await.map_err(|error| stack.with_logs(&error))?;
        if let Some(second) = &stack.second {
            second.envoy.start().await.map_err(|error| stack.with_logs(&error))?;
        }
        Ok(stack)
    }

    /// Writes certificates and configs; nothing runs yet.
    fn build(
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
        let sockets = Sockets::create(dir)?;
        let orchestrator = Orchestrator::new(&OrchestratorSetup {
            dir,
            sockets: sockets.folder(),
            metrics: listen.orchestrator_metrics,
            runtime: self.runtime,
            sq_version: &self.sq_version,
            lifecycle: &self.lifecycle,
            // Stacks side by side must not share their bridge: one bridge per port.
            network: &format!("sq-gateway-{}", listen.orchestrator_metrics),
            further: &self.orchestrator,
        })?;
        let filter = self.filter.map_or_else(tools::filter, Ok)?;
        let mut filter_config = self.filter_config;
        // The gate needs the version before a tenant's first lease has reported it.
        filter_config.push(("sq_version", format!("\"{}\"", self.sq_version)));
        let setup = EnvoySetup {
            dir,
            node: "gateway-1",
            certs: &certs,
            listen,
            sockets: sockets.folder(),
            workers: self.workers,
            filter: &filter,
            filter_config: &filter_config,
            clusters: &self.clusters,
            changes: &self.envoy_changes,
            host: self.envoy_host,
            hot_restart: self.hot_restart,
        };
        let envoy = Envoy::new(&setup)?;
        let second = if self.second_envoy { Some(second_envoy(&setup)?) } else { None };
        Ok(Stack {
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
            _sockets: sockets,
            temporary: None,
        })
    }
}

fn second_envoy(first: &EnvoySetup<'_>) -> Result<SecondEnvoy> {
    let dir = first.dir.join("second");
    let https = ports::free()?;
    let listen = Listen { https, envoy_metrics: ports::free()?, ..first.listen };
    let setup = EnvoySetup { dir: &dir, node: "gateway-2", listen, ..*first };
    Ok(SecondEnvoy { https, envoy: Envoy::new(&setup)? })
}
