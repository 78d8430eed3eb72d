//! Choices that stack, parts and experiments share: the runtime, the ports, the lifecycle settings
//! and where Envoy runs.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Result, bail};

use crate::host::docker;
use crate::host::ports;

/// The runtime that runs the tenants' SQ instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Runtime {
    /// Child processes of the orchestrator.
    Process,
    /// Containers of the Docker daemon.
    Docker,
}

impl Runtime {
    /// The name as `RUNTIME` and the orchestrator's config spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Docker => "docker",
        }
    }

    /// Reads `RUNTIME`; `None` if it is unset.
    pub fn from_env() -> Result<Option<Self>> {
        match std::env::var("RUNTIME").unwrap_or_default().as_str() {
            "" => Ok(None),
            "process" => Ok(Some(Self::Process)),
            "docker" => Ok(Some(Self::Docker)),
            other => bail!("invalid RUNTIME={other}: use docker or process"),
        }
    }

    /// Resolves an unset `RUNTIME` to Docker. Docker without a usable daemon is an error, never a
    /// silent change to processes, which isolate tenants less.
    pub fn resolve(requested: Option<Self>) -> Result<Self> {
        if requested == Some(Self::Process) {
            return Ok(Self::Process);
        }
        match docker::daemon() {
            Ok(_) => Ok(Self::Docker),
            Err(error) => bail!(
                "RUNTIME=docker (the default), but Docker can't be used: {error:#}; \
                 `RUNTIME=process make run` runs tenants as plain processes, for development"
            ),
        }
    }

    /// The runtime for a test that runs with either: the one that `RUNTIME` names, else Docker if a
    /// usable daemon responds, else processes.
    pub fn for_tests() -> Result<Self> {
        let requested = Self::from_env()?;
        Ok(requested.unwrap_or_else(|| docker::daemon().map_or(Self::Process, |_| Self::Docker)))
    }
}

/// The host of Envoy: a process or a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnvoyHost {
    /// A process of `.tools/envoy`.
    Process,
    /// A container with the host's network.
    Container,
}

impl EnvoyHost {
    /// Reads `ENVOY_HOST`; a process unless it says `container`.
    pub fn from_env() -> Self {
        match std::env::var("ENVOY_HOST").as_deref() {
            Ok("container") => Self::Container,
            _ => Self::Process,
        }
    }
}

/// The ports of a stack, all on this machine.
#[derive(Debug, Clone, Copy)]
pub struct Listen {
    /// HTTPS port of the gateway.
    pub https: u16,
    /// Port of Envoy's metrics.
    pub envoy_metrics: u16,
    /// Port of the relay.
    pub relay: u16,
    /// Port of the orchestrator's metrics.
    pub orchestrator_metrics: u16,
}

impl Listen {
    /// Picks a free port for each listener.
    pub fn free() -> Result<Self> {
        Ok(Self {
            https: ports::free()?,
            envoy_metrics: ports::free()?,
            relay: ports::free()?,
            orchestrator_metrics: ports::free()?,
        })
    }
}

/// Name of the bound on new tenants.
const NEW_TENANTS: &str = "new_tenants_per_minute";

/// Settings of the orchestrator's `[lifecycle]` section; its defaults hold for the others.
#[derive(Debug, Clone, Default)]
pub struct Lifecycle {
    settings: BTreeMap<&'static str, String>,
}

impl Lifecycle {
    /// Leases so short that a tenant sleeps within a second of an explicit request. Tenants do not
    /// doze or sleep because they are idle.
    pub fn short_leases() -> Self {
        const NEVER_MS: u64 = 3_600_000;
        Self::default()
            .duration_ms("lease", 200)
            .duration_ms("grace", 500)
            .duration_ms("doze_after", NEVER_MS)
            .duration_ms("sleep_after", NEVER_MS)
    }

    /// Sets a number of the section, such as `max_starts`.
    #[must_use]
    pub fn set(mut self, name: &'static str, value: u64) -> Self {
        self.settings.insert(name, value.to_string());
        self
    }

    /// Sets a duration of the section, in milliseconds.
    #[must_use]
    pub fn duration_ms(mut self, name: &'static str, ms: u64) -> Self {
        self.settings.insert(name, format!("\"{ms}ms\""));
        self
    }

    /// The section as TOML of `orchestrator.toml`. Stacks may have many new tenants.
    pub(crate) fn to_toml(&self) -> String {
        let mut text = "[lifecycle]\n".to_owned();
        if !self.settings.contains_key(NEW_TENANTS) {
            let _ = writeln!(text, "{NEW_TENANTS} = 1_000_000");
        }
        for (name, value) in &self.settings {
            // Writing into a String does not fail.
            let _ = writeln!(text, "{name} = {value}");
        }
        text
    }
}
