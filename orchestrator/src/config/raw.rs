//! What may be written in `orchestrator.toml`: keys, bounds and defaults.
//!
//! `orchestrator/orchestrator.schema.json` is generated from these types, with their comments.

use protocol::SqVersion;
use protocol::deadlines::LEASE_MAX_MS;
use protocol::limits::MEMORY_BYTES;
use protocol::time::{DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS, YEAR_MS};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use settings::{Duration, Integer, Size, Text};

use super::listen::RawListen;
use super::{FirewallMode, RuntimeKind};

/// Upper bound of the floors: a pebibyte, more than any host has.
const FLOOR_MAX_BYTES: u64 = 1 << 50;
const MEMORY_MIN_BYTES: u64 = *MEMORY_BYTES.start();
const MEMORY_MAX_BYTES: u64 = *MEMORY_BYTES.end();

/// The largest user id; the next number means none.
const UID_MAX: u64 = u32::MAX as u64 - 1;

/// Settings of the gateway's orchestrator. Every key may be left out.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawConfig {
    /// Folder with one folder per tenant. One orchestrator per data root.
    pub(super) data_root: Text,
    /// Folder of the usage ledger, the good copies of phexts and the snapshots. Not inside
    /// `data_root`.
    pub(super) state_dir: Text,
    /// Release of SQ for new starts.
    #[schemars(with = "String")]
    pub(super) sq_version: SqVersion,
    /// Monthly revenue target in US dollars; `orchestrator usage` compares the tiers' prices with it.
    pub(super) revenue_target_usd_month: Integer<0, { 1 << 40 }>,
    pub(super) listen: RawListen,
    pub(super) runtime: RawRuntime,
    pub(super) docker: RawDocker,
    pub(super) process: RawProcess,
    pub(super) lifecycle: RawLifecycle,
    pub(super) host: RawHost,
}

/// Choice of the runtime, and its user.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawRuntime {
    pub(super) kind: RuntimeKind,
    /// First of the user and group ids that own the tenants' folders and run SQ, if the
    /// orchestrator is root. It belongs to no tenant unless it is the only one.
    pub(super) uid: Integer<1, UID_MAX>,
    /// Number of these ids: one more than there are tenants, or 1 for a single one that all tenants
    /// share. No user of the host may have one of them.
    pub(super) uids: Integer<1, UID_MAX>,
}

/// The Docker runtime.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawDocker {
    /// Image of SQ; `{version}` stands for `sq_version`.
    pub(super) image: Text,
    /// Name of the internal bridge network, which is created if it does not exist. Tenants on it
    /// cannot reach each other.
    pub(super) network: Text,
    /// Addresses of the network, such as `10.200.0.0/16`. If empty, the daemon chooses.
    pub(super) subnet: String,
    /// Network namespaces prepared ahead of container starts, which makes a start several times
    /// faster. 0 disables the pool.
    pub(super) network_pool: Integer<0, 64>,
    /// Image of the process that keeps a prepared namespace. Without this image there is no pool.
    pub(super) pause_image: Text,
    /// Firewall rules that let only Envoy and the orchestrator reach tenants, and tenants reach
    /// nothing.
    pub(super) firewall: FirewallMode,
    /// System calls that a container may make: `builtin` allows those of SQ, `docker` those of the
    /// daemon's own profile, and an absolute path those of a file in Docker's format.
    pub(super) seccomp: Text,
}

/// The process runtime.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawProcess {
    /// The `sq` binary; `{version}` stands for `sq_version`.
    pub(super) sq: Text,
}

/// Times and bounds of starting, pausing and stopping tenants.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawLifecycle {
    /// Time for which the filter may route to a tenant without asking again.
    pub(super) lease: Duration<50, LEASE_MAX_MS>,
    /// Time after its last lease in which a tenant is still left running: longer than the longest
    /// request with its retries.
    pub(super) grace: Duration<50, HOUR_MS>,
    /// Idle time until a tenant is paused, from which a wake takes about 15 ms. Unused if it is not
    /// shorter than `sleep_after`. A tier may set another time.
    pub(super) doze_after: Duration<0, YEAR_MS>,
    /// Idle time until a tenant is stopped, from which a wake takes about 0.3 s. A tier may set
    /// another time.
    pub(super) sleep_after: Duration<0, YEAR_MS>,
    /// Concurrent starts; by default the number of cores. At most half of them go to tenants whose
    /// last start failed, so that starts that hang do not block the others.
    pub(super) max_starts: Option<Integer<1, 1_024>>,
    /// Tenants without a folder that are started in a minute. Bounds what a faulty gateway can create.
    pub(super) new_tenants_per_minute: Integer<1, 1_000_000>,
    /// Longest wait of a lease request for a wake. A fifth below the filter's `lease_timeout`, so
    /// that the reason of a refusal reaches the client.
    pub(super) patience: Duration<50, { 2 * MINUTE_MS }>,
    /// A waiting tenant is started before tenants whose priority is lower by one if they have asked
    /// up to this much earlier.
    pub(super) head_start: Duration<0, DAY_MS>,
    /// Time within which an Envoy must acknowledge a change, or its connection is closed.
    pub(super) ack_timeout: Duration<100, { 10 * MINUTE_MS }>,
    /// Pause after a failed start or a repeated crash. It doubles with each further one up to
    /// `backoff_max`, except after a panic of SQ (exit code 101), which a single request causes.
    pub(super) backoff: Duration<10, DAY_MS>,
    /// Longest pause between two starts of a failing tenant.
    pub(super) backoff_max: Duration<10, DAY_MS>,
    /// Time after which the crashes of a running tenant no longer count.
    pub(super) stable_after: Duration<0, DAY_MS>,
}

/// Reserves of the host.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawHost {
    /// With less available memory (`MemAvailable`), the least recently used tenants are stopped.
    /// `0B` disables it.
    pub(super) memory_floor: Size<0, FLOOR_MAX_BYTES>,
    /// With less free disk space, no tenant may write. `0B` disables it.
    pub(super) disk_floor: Size<0, FLOOR_MAX_BYTES>,
    /// Largest memory of one tenant. A lease request that claims more is refused.
    pub(super) tenant_memory_max: Size<MEMORY_MIN_BYTES, MEMORY_MAX_BYTES>,
}

impl Default for RawConfig {
    fn default() -> Self {
        Self {
            data_root: "/var/lib/sq-gateway/tenants".into(),
            state_dir: "/var/lib/sq-gateway/state".into(),
            sq_version: SqVersion::default(),
            revenue_target_usd_month: Integer::new(380),
            listen: RawListen::default(),
            runtime: RawRuntime::default(),
            docker: RawDocker::default(),
            process: RawProcess::default(),
            lifecycle: RawLifecycle::default(),
            host: RawHost::default(),
        }
    }
}

impl Default for RawRuntime {
    fn default() -> Self {
        Self { kind: RuntimeKind::Docker, uid: Integer::new(10_001), uids: Integer::new(50_000) }
    }
}

impl Default for RawDocker {
    fn default() -> Self {
        Self {
            image: "wbic16/sq:{version}".into(),
            network: "sq-tenants".into(),
            subnet: String::new(),
            network_pool: Integer::new(4),
            pause_image: "sq-gateway/pause:1".into(),
            firewall: FirewallMode::Required,
            seccomp: "builtin".into(),
        }
    }
}

impl Default for RawProcess {
    fn default() -> Self {
        Self { sq: ".tools/sq-{version}/bin/sq".into() }
    }
}

impl Default for RawLifecycle {
    fn default() -> Self {
        Self {
            lease: Duration::from_ms(30 * SECOND_MS),
            grace: Duration::from_ms(35 * SECOND_MS),
            doze_after: Duration::from_ms(2 * MINUTE_MS),
            sleep_after: Duration::from_ms(30 * MINUTE_MS),
            max_starts: None,
            new_tenants_per_minute: Integer::new(120),
            patience: Duration::from_ms(8 * SECOND_MS),
            head_start: Duration::from_ms(2 * SECOND_MS),
            ack_timeout: Duration::from_ms(10 * SECOND_MS),
            backoff: Duration::from_ms(SECOND_MS),
            backoff_max: Duration::from_ms(5 * MINUTE_MS),
            stable_after: Duration::from_ms(MINUTE_MS),
        }
    }
}

impl Default for RawHost {
    fn default() -> Self {
        Self {
            memory_floor: Size::from_bytes(256 << 20),
            disk_floor: Size::from_bytes(512 << 20),
            tenant_memory_max: Size::from_bytes(4 << 30),
        }
    }
}
