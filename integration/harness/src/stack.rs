//! The whole gateway: relay, orchestrator, Envoy and the tenants that they start.
//!
//! ```text
//! Stack::builder() ── start() ──► ready ── drop ──► no process, container or folder is left
//! ```
//!
//! All state of a stack is below one folder and on its own ports, Docker network and labels, so
//! many stacks can run beside each other.

mod builder;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use protocol::containers;
use tempfile::TempDir;

use crate::client::{Client, Http};
use crate::host::certs::Certs;
use crate::host::docker::{self, installation_label};
use crate::host::firewall;
use crate::host::processes;
use crate::host::sockets::Sockets;
use crate::options::{Listen, Runtime};
use crate::parts::envoy::Envoy;
use crate::parts::orchestrator::Orchestrator;
use crate::parts::relay::Relay;
use crate::registry::Registry;

pub use builder::StackBuilder;

/// A running gateway. Dropping it ends all of its processes, containers and tenants.
pub struct Stack {
    /// Folder of all files of the stack.
    pub dir: PathBuf,
    /// Runtime of the tenants' SQ.
    pub runtime: Runtime,
    /// Ports of all parts.
    pub listen: Listen,
    /// Development certificates and keys.
    pub certs: Certs,
    /// Registry file of the ranch.
    pub registry: Registry,
    /// API keys by the tenants that the stack was built with.
    pub keys: BTreeMap<String, String>,
    /// The ranch's server.
    pub relay: Relay,
    /// The daemon of the gateway host.
    pub orchestrator: Orchestrator,
    /// The gateway, `gateway-1`.
    pub envoy: Envoy,
    second: Option<SecondEnvoy>,
    _sockets: Sockets,
    temporary: Option<TempDir>,
}

/// Another gateway, `gateway-2`, at the same relay and orchestrator.
struct SecondEnvoy {
    https: u16,
    envoy: Envoy,
}

impl Stack {
    /// Starts a builder with default options and without tenants.
    pub fn builder() -> StackBuilder {
        StackBuilder::default()
    }

    /// Base URL of the gateway, `https://127.0.0.1:…`.
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

    /// The API key of a tenant.
    pub fn key(&self, name: &str) -> Result<&str> {
        self.keys.get(name).map(String::as_str).with_context(|| format!("no tenant {name}"))
    }

    /// The last lines of every part's log.
    pub fn log_tails(&self) -> String {
        [self.relay.service().tail(), self.orchestrator.service().tail(), self.envoy.tail()]
            .join("\n")
    }

    /// Labels that all tenants' containers carry.
    pub fn labels(&self) -> Vec<String> {
        let role = format!("{}={}", containers::ROLE, containers::ROLE_SQ);
        vec![installation_label(self.orchestrator.data()), role]
    }

    /// Labels of all prepared networks, joined ones included.
    pub fn prepared_network_labels(&self) -> Vec<String> {
        let role = format!("{}={}", containers::ROLE, containers::ROLE_NAMESPACE);
        vec![installation_label(self.orchestrator.data()), role]
    }

    /// Labels of one tenant's container.
    pub fn tenant_labels(&self, tenant: &str) -> Vec<String> {
        let label = format!("{}={tenant}", containers::TENANT);
        vec![installation_label(self.orchestrator.data()), label]
    }

    /// Process ids of all tenants' SQ instances; empty with Docker.
    pub fn sq_pids(&self) -> Vec<i32> {
        processes::with_argument_below(self.orchestrator.data(), &["sq"])
    }

    /// Process or container ids of all tenants' SQ instances.
    pub fn sq_instances(&self) -> Result<Vec<String>> {
        match self.runtime {
            Runtime::Process => Ok(self.sq_pids().iter().map(ToString::to_string).collect()),
            Runtime::Docker => docker::containers(&self.labels()),
        }
    }

    /// Process or container id of a tenant's SQ instance; an error if none runs.
    pub fn sq_instance(&self, tenant: &str) -> Result<String> {
        let instances = self.sq_instances_of(tenant)?;
        instances.into_iter().next().with_context(|| format!("no SQ runs for {tenant}"))
    }

    fn sq_instances_of(&self, tenant: &str) -> Result<Vec<String>> {
        match self.runtime {
            Runtime::Process => {
                let folder = self.orchestrator.data().join(tenant);
                let pids = processes::with_argument(&folder, &["sq"]);
                Ok(pids.iter().map(ToString::to_string).collect())
            }
            Runtime::Docker => docker::containers(&self.tenant_labels(tenant)),
        }
    }

    /// Sends SIGKILL to an SQ instance. One that has ended already is no error.
    pub fn kill_sq_instance(&self, instance: &str) -> Result<()> {
        match self.runtime {
            Runtime::Process => processes::kill(instance.parse()?),
            Runtime::Docker => drop(docker::run(&["kill", instance])),
        }
        Ok(())
    }

    /// Sends SIGKILL to a tenant's SQ; does nothing if none runs.
    pub fn kill_sq(&self, tenant: &str) -> Result<()> {
        // Docker may still list a container that has ended beside the one that runs.
        self.sq_instances_of(tenant)?.iter().try_for_each(|id| self.kill_sq_instance(id))
    }

    fn with_logs(&self, error: &anyhow::Error) -> anyhow::Error {
        anyhow::anyhow!("{error:#}\n{}", self.log_tails())
    }
}

/// Kills every SQ on a folder below `data`; with Docker it also removes the containers and networks
/// that an orchestrator with this data root made, and its firewall rules.
pub fn kill_tenants(runtime: Runtime, data: &Path) {
    processes::kill_all(&processes::with_argument_below(data, &["sq"]));
    if runtime == Runtime::Docker
        && let Err(error) = docker::remove_labelled(&[installation_label(data)])
    {
        eprintln!("Containers may be left running: {error:#}");
    }
    firewall::remove(data);
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.envoy.kill();
        if let Some(second) = &self.second {
            second.envoy.kill();
        }
        self.orchestrator.service().kill();
        self.relay.service().kill();
        kill_tenants(self.runtime, self.orchestrator.data());
    }
}
