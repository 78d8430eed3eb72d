//! The settings of the orchestrator, `orchestrator.toml`.
//!
//! [`raw`] describes what may be written; [`Config`] is what the daemon works with. All faults of a
//! file are reported at once, and a faulty file is never used in part. `orchestrator.example.toml`
//! documents each key with its default; a test holds the two together.

use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use protocol::SqVersion;
use protocol::deadlines::{LEASE_TIMEOUT_MS, ROUTE_TIMEOUT_MS};
use protocol::time::SECOND_MS;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use settings::{Faults, Text, Tree};

pub use self::listen::Listen;
use self::raw::{RawConfig, RawLifecycle};
use crate::runtime::users::UserRange;
use crate::tenants::lifecycle::Settings;

mod listen;
mod raw;

/// Estimate of a start's duration until one has been measured: a container that joins a prepared
/// network namespace (docs/sq.md).
const START_MS: u64 = 400;
/// A shorter lease is for tests: each worker renews it after half of its time.
const LEASE_WARNING_MS: u64 = 5 * SECOND_MS;
/// Concurrent starts where the number of cores is unknown.
const STARTS_DEFAULT: usize = 2;

/// The orchestrator's settings, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Folder with one folder per tenant.
    pub data_root: PathBuf,
    /// Folder of the ledger, the copies of phexts and the lock.
    pub state_dir: PathBuf,
    /// Release of SQ for new starts.
    pub sq_version: SqVersion,
    /// Sockets and addresses of the servers.
    pub listen: Listen,
    /// The program that runs SQ: Docker or the orchestrator itself.
    pub runtime: RuntimeKind,
    /// Users, each with a group, that own the tenants' folders and run SQ.
    pub users: UserRange,
    /// Settings of the Docker runtime.
    pub docker: DockerConfig,
    /// Settings of the process runtime.
    pub process: ProcessConfig,
    /// Durations and bounds of the lifecycle.
    pub lifecycle: Settings,
    /// Available memory below which the least recently used tenants are stopped; 0 disables it.
    pub memory_floor_bytes: u64,
    /// Free disk space below which no tenant may write; 0 disables it.
    pub disk_floor_bytes: u64,
    /// Largest memory that a lease request may claim for a tenant.
    pub tenant_memory_max_bytes: u64,
    /// Tenants without a folder that are admitted in a minute.
    pub new_tenants_per_minute: usize,
    /// Monthly revenue target in US dollars.
    pub revenue_target_usd_month: u64,
}

/// Settings of the Docker runtime, `[docker]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerConfig {
    /// Image of SQ; `{version}` stands for `sq_version`.
    pub image: String,
    /// Name of the internal bridge network, which is created if it does not exist.
    pub network: String,
    /// Addresses of the network; if empty, the daemon chooses.
    pub subnet: String,
    /// Network namespaces prepared ahead of container starts; 0 disables the pool.
    pub network_pool: usize,
    /// Image of the process that keeps a prepared namespace.
    pub pause_image: String,
    /// Whether a start without firewall rules is refused.
    pub firewall: FirewallMode,
    /// System calls that a container may make.
    pub seccomp: SeccompProfile,
}

/// Choice of the seccomp profile of containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeccompProfile {
    /// The calls that SQ makes.
    BuiltIn,
    /// The daemon's own profile, which allows many more.
    Docker,
    /// A file in Docker's format.
    File(PathBuf),
}

impl SeccompProfile {
    fn from_raw(text: &str, faults: &mut Faults) -> Self {
        match text {
            "builtin" => Self::BuiltIn,
            "docker" => Self::Docker,
            path if path.starts_with('/') => Self::File(path.into()),
            other => {
                let expected = "is neither `builtin`, `docker` nor an absolute path";
                faults.push("docker.seccomp", format_args!("`{other}` {expected}"));
                Self::BuiltIn
            }
        }
    }
}

/// Handling of the firewall rules between tenants and this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FirewallMode {
    /// The orchestrator makes them, and refuses to start if it can't. Needs `CAP_NET_ADMIN` and the
    /// program `nft`.
    Required,
    /// There are none: every user of this host reaches tenants, and tenants reach this host's
    /// servers. For development.
    Off,
}

/// Settings of the process runtime, `[process]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessConfig {
    /// The `sq` binary; `{version}` stands for `sq_version`.
    pub sq: String,
}

/// Choice of the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeKind {
    /// Containers. If the tenants ran in containers before, the orchestrator waits for the daemon,
    /// as they may still be running. Instances of the process runtime are stopped first, even if
    /// they are in use.
    Docker,
    /// Plain child processes, for development: they isolate tenants less than containers do.
    /// Instances of the Docker runtime are stopped first, even if they are in use.
    Process,
}

impl Default for Config {
    fn default() -> Self {
        Self::from_raw(RawConfig::default(), &mut Faults::default())
    }
}

impl Default for Settings {
    fn default() -> Self {
        lifecycle_settings(&RawLifecycle::default())
    }
}

impl Config {
    /// Reads the settings file at `path`.
    pub fn load(path: &Path) -> Result<Self, Faults> {
        settings::toml_file::load(path)
            .and_then(|tree| Self::read(&tree))
            .map_err(|faults| faults.in_file(path.display()))
    }

    /// Reads settings from TOML.
    pub fn parse(text: &str) -> Result<Self, Faults> {
        Self::read(&settings::toml_file::parse(text)?)
    }

    fn read(tree: &Tree) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let raw = settings::read(tree, &mut faults);
        let config = Self::from_raw(raw, &mut faults);
        faults.or_config(config)
    }

    /// Converts the raw settings and reports the keys that contradict each other.
    fn from_raw(raw: RawConfig, faults: &mut Faults) -> Self {
        if Path::new(raw.state_dir.as_str()).starts_with(raw.data_root.as_str()) {
            let message = "is inside `data_root`, where each folder belongs to a tenant";
            faults.push("state_dir", format_args!("`{}` {message}", raw.state_dir.as_str()));
        }
        let RawLifecycle { backoff, backoff_max, .. } = raw.lifecycle;
        if backoff_max.as_ms() < backoff.as_ms() {
            let message = format_args!("`{backoff_max}` is shorter than `backoff`, `{backoff}`");
            faults.push("lifecycle.backoff_max", message);
        }
        let listen = Listen::from_raw(raw.listen, faults);
        let users = UserRange { first: raw.runtime.uid.as_u32(), count: raw.runtime.uids.as_u32() };
        check_users(users, &listen, faults);
        Self {
            data_root: raw.data_root.into_string().into(),
            state_dir: raw.state_dir.into_string().into(),
            sq_version: raw.sq_version,
            listen,
            runtime: raw.runtime.kind,
            users,
            docker: DockerConfig {
                image: raw.docker.image.into_string(),
                network: raw.docker.network.into_string(),
                subnet: raw.docker.subnet,
                network_pool: raw.docker.network_pool.as_usize(),
                pause_image: raw.docker.pause_image.into_string(),
                firewall: raw.docker.firewall,
                seccomp: SeccompProfile::from_raw(raw.docker.seccomp.as_str(), faults),
            },
            process: ProcessConfig { sq: Text::into_string(raw.process.sq) },
            lifecycle: lifecycle_settings(&raw.lifecycle),
            memory_floor_bytes: raw.host.memory_floor.as_bytes(),
            disk_floor_bytes: raw.host.disk_floor.as_bytes(),
            tenant_memory_max_bytes: raw.host.tenant_memory_max.as_bytes(),
            new_tenants_per_minute: raw.lifecycle.new_tenants_per_minute.as_usize(),
            revenue_target_usd_month: raw.revenue_target_usd_month.get(),
        }
    }

    /// Settings that are valid but risky, or contradict what Envoy and the filter do by default.
    pub fn warnings(&self) -> Vec<String> {
        let Settings { grace_ms, patience_ms, lease_ms, .. } = self.lifecycle;
        let mut warnings = Vec::new();
        if grace_ms < ROUTE_TIMEOUT_MS {
            warnings.push(format!(
                "lifecycle.grace: {grace_ms} ms is shorter than the {ROUTE_TIMEOUT_MS} ms that a \
                 request may take (time-out of Envoy's routes): longer requests are cut off when \
                 their tenant is stopped"
            ));
        }
        if lease_ms < LEASE_WARNING_MS {
            warnings.push(format!(
                "lifecycle.lease: {lease_ms} ms is short: each worker renews at half of it"
            ));
        }
        if !self.sq_version.reads_key_file() {
            warnings.push(format!(
                "sq_version: SQ {} takes the key of its instance on the command line, where every \
                 user of this host can read it: use 0.6.0 or later",
                self.sq_version
            ));
        }
        if patience_ms >= u64::from(LEASE_TIMEOUT_MS) {
            warnings.push(format!(
                "lifecycle.patience: the filter gives up before {patience_ms} ms unless its \
                 `lease_timeout` is longer (default {LEASE_TIMEOUT_MS} ms)"
            ));
        }
        warnings
    }
}

/// Users of tenants must be no one who may use a socket: that tenant could too.
fn check_users(users: UserRange, listen: &Listen, faults: &mut Faults) {
    if users.first.checked_add(users.count).is_none() {
        let message = format_args!("`{}` ids from `{}` on are too many", users.count, users.first);
        faults.push("runtime.uids", message);
    }
    let others = listen.envoy_uid.iter().chain(&listen.operator_uids).chain(&listen.group);
    for id in others.filter(|id| users.ids().contains(id)) {
        let (first, last) = users.ids().into_inner();
        let message = format_args!(
            "tenants have the ids `{first}` to `{last}`, and `listen` has `{id}`: choose others by \
             `uid` and `uids`"
        );
        faults.push("runtime.uid", message);
    }
}

fn lifecycle_settings(raw: &RawLifecycle) -> Settings {
    let cores = available_parallelism().map_or(STARTS_DEFAULT, std::num::NonZero::get);
    Settings {
        lease_ms: raw.lease.as_ms(),
        grace_ms: raw.grace.as_ms(),
        doze_after_ms: raw.doze_after.as_ms(),
        sleep_after_ms: raw.sleep_after.as_ms(),
        max_starts: raw.max_starts.map_or(cores, settings::Integer::as_usize),
        start_ms: START_MS,
        patience_ms: raw.patience.as_ms(),
        head_start_ms: raw.head_start.as_ms(),
        ack_timeout_ms: raw.ack_timeout.as_ms(),
        backoff_ms: raw.backoff.as_ms(),
        backoff_max_ms: raw.backoff_max.as_ms(),
        stable_ms: raw.stable_after.as_ms(),
    }
}

#[cfg(test)]
mod tests;
