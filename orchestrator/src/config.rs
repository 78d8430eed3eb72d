//! `orchestrator.toml`: read whole, every fault reported at once, nothing half used.
//!
//! `orchestrator.example.toml` documents each key with its default; a test holds the two together.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use protocol::SqVersion;
use protocol::deadlines::{LEASE_MAX_MS, LEASE_TIMEOUT_MS, ROUTE_TIMEOUT_MS};
use protocol::time::{DAY_MS, SECOND_MS, YEAR_MS};
use toml::{Table, Value};

use crate::tenants::lifecycle::Settings;

/// The orchestrator's configuration, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// One folder per tenant.
    pub data_root: PathBuf,
    /// Ledger, copies of phexts, lock.
    pub state_dir: PathBuf,
    /// Which SQ tenants run.
    pub sq_version: SqVersion,
    /// Where it listens.
    pub listen: Listen,
    /// What runs the tenants.
    pub runtime: RuntimeKind,
    /// User and group that own the tenants' folders and run SQ.
    pub uid: u32,
    /// For the Docker runtime.
    pub docker: DockerConfig,
    /// For the process runtime.
    pub process: ProcessConfig,
    /// Durations and bounds of the lifecycle.
    pub lifecycle: Settings,
    /// Below this much available memory the least recently used tenants are stopped; 0: never.
    pub memory_floor_bytes: u64,
    /// Below this much free disk no tenant may write; 0: never.
    pub disk_floor_bytes: u64,
    /// What a month is hoped to earn, for `orchestrator usage`.
    pub revenue_target_usd_month: u64,
}

/// Addresses, all on loopback: nothing here is for the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// Leases and usage, for the filter.
    pub gate: SocketAddr,
    /// Clusters, for Envoy.
    pub xds: SocketAddr,
    /// Status and metrics, for the operator.
    pub admin: SocketAddr,
}

/// What runs the tenants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuntimeKind {
    /// Docker where its daemon answers, else processes.
    Auto,
    /// Containers.
    Docker,
    /// Child processes.
    Process,
}

/// `[docker]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerConfig {
    /// Image of SQ; `{version}` stands for `sq_version`.
    pub image: String,
    /// Name of the internal bridge network; made when it is not there.
    pub network: String,
    /// Its addresses; empty: the daemon chooses.
    pub subnet: String,
    /// Network namespaces prepared ahead of starts, which become several times faster; 0: none.
    pub network_pool: usize,
    /// Image of the process that holds a prepared network namespace.
    pub pause_image: String,
}

/// `[process]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessConfig {
    /// The `sq` binary; `{version}` stands for `sq_version`.
    pub sq: String,
}

/// Everything that is wrong, one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(pub Vec<String>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Faults {}

impl Default for Config {
    fn default() -> Self {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            data_root: "/var/lib/sq-gateway/tenants".into(),
            state_dir: "/var/lib/sq-gateway/state".into(),
            sq_version: SqVersion::default(),
            listen: Listen { gate: at(7100), xds: at(7101), admin: at(7102) },
            runtime: RuntimeKind::Auto,
            uid: 10_001,
            docker: DockerConfig {
                image: "wbic16/sq:{version}".to_owned(),
                network: "sq-tenants".to_owned(),
                subnet: String::new(),
                network_pool: 4,
                pause_image: "sq-gateway/pause:1".to_owned(),
            },
            process: ProcessConfig { sq: ".tools/sq-{version}/bin/sq".to_owned() },
            lifecycle: Settings::default(),
            memory_floor_bytes: 256 << 20,
            disk_floor_bytes: 512 << 20,
            revenue_target_usd_month: 380,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease_ms: 30_000,
            grace_ms: 35_000,
            doze_after_ms: 120_000,
            sleep_after_ms: 1_800_000,
            max_starts: std::thread::available_parallelism().map_or(2, std::num::NonZero::get),
            // Measured: a stopped container on an internal bridge (docs/sq.md).
            start_ms: 400,
            patience_ms: 8_000,
            head_start_ms: 2_000,
            ack_timeout_ms: 10_000,
            backoff_ms: 1_000,
            backoff_max_ms: 300_000,
            stable_ms: 60_000,
        }
    }
}

impl Config {
    /// Reads the file.
    pub fn load(path: &Path) -> Result<Self, Faults> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Faults(vec![format!("{} can't be read: {e}", path.display())]))?;
        Self::parse(&text).map_err(|Faults(f)| {
            Faults(f.iter().map(|f| format!("{}: {f}", path.display())).collect())
        })
    }

    /// Reads TOML; what is not said is the default.
    pub fn parse(text: &str) -> Result<Self, Faults> {
        let table: Table = text.parse().map_err(|e| Faults(vec![format!("{e}")]))?;
        let mut faults = Vec::new();
        let config = Self::read(table, &mut faults);
        config.cross_check(&mut faults);
        if faults.is_empty() { Ok(config) } else { Err(Faults(faults)) }
    }

    /// What each key allows and all together do not.
    fn cross_check(&self, faults: &mut Vec<String>) {
        if self.state_dir.starts_with(&self.data_root) {
            faults.push(
                "state_dir: must not be in data_root, where each folder is a tenant's".into(),
            );
        }
        if self.lifecycle.backoff_max_ms < self.lifecycle.backoff_ms {
            faults.push("lifecycle.backoff_max_ms: must not be less than backoff_ms".into());
        }
    }

    /// What works and is likely to be regretted.
    pub fn doubts(&self) -> Vec<String> {
        let Settings { grace_ms, patience_ms, lease_ms, .. } = self.lifecycle;
        let mut doubts = Vec::new();
        if grace_ms < ROUTE_TIMEOUT_MS {
            doubts.push(format!(
                "lifecycle.grace_ms = {grace_ms}: shorter than a request may last ({ROUTE_TIMEOUT_MS}, \
                 the timeout of Envoy's routes), which would be cut off when its tenant retires"
            ));
        }
        if lease_ms < LEASE_MS_LEAST {
            doubts.push(format!(
                "lifecycle.lease_ms = {lease_ms}: every worker asks anew twice in that time"
            ));
        }
        if patience_ms >= u64::from(LEASE_TIMEOUT_MS) {
            doubts.push(format!(
                "lifecycle.patience_ms = {patience_ms}: the filter gives up before, unless its \
                 lease_timeout_ms is more than {LEASE_TIMEOUT_MS}"
            ));
        }
        doubts
    }

    fn read(mut table: Table, faults: &mut Vec<String>) -> Self {
        let d = Self::default();
        let section = |name: &'static str, table: &mut Table, faults: &mut Vec<String>| match table
            .remove(name)
        {
            None => Section::new(name, Table::new()),
            Some(Value::Table(inner)) => Section::new(name, inner),
            Some(_) => {
                faults.push(format!("{name}: must be a section"));
                Section::new(name, Table::new())
            }
        };
        let mut listen = section("listen", &mut table, faults);
        let mut runtime = section("runtime", &mut table, faults);
        let mut docker = section("docker", &mut table, faults);
        let mut process = section("process", &mut table, faults);
        let mut lifecycle = section("lifecycle", &mut table, faults);
        let mut host = section("host", &mut table, faults);
        let mut top = Section::new("", table);
        let config = Self {
            data_root: top.text("data_root", &d.data_root.to_string_lossy()).into(),
            state_dir: top.text("state_dir", &d.state_dir.to_string_lossy()).into(),
            sq_version: top.version("sq_version", d.sq_version),
            listen: Listen {
                gate: listen.loopback("gate", d.listen.gate),
                xds: listen.loopback("xds", d.listen.xds),
                admin: listen.loopback("admin", d.listen.admin),
            },
            runtime: runtime.kind(),
            uid: u32::try_from(runtime.whole("uid", d.uid.into(), 1, u32::MAX.into()))
                .unwrap_or(d.uid),
            docker: DockerConfig {
                image: docker.text("image", &d.docker.image),
                network: docker.text("network", &d.docker.network),
                subnet: docker.text("subnet", &d.docker.subnet),
                network_pool: usize::try_from(docker.whole(
                    "network_pool",
                    d.docker.network_pool as u64,
                    0,
                    64,
                ))
                .unwrap_or(d.docker.network_pool),
                pause_image: docker.text("pause_image", &d.docker.pause_image),
            },
            process: ProcessConfig { sq: process.text("sq", &d.process.sq) },
            lifecycle: read_lifecycle(&mut lifecycle, &d.lifecycle),
            memory_floor_bytes: host.whole("memory_floor_bytes", d.memory_floor_bytes, 0, 1 << 50),
            disk_floor_bytes: host.whole("disk_floor_bytes", d.disk_floor_bytes, 0, 1 << 50),
            revenue_target_usd_month: top.whole(
                "revenue_target_usd_month",
                d.revenue_target_usd_month,
                0,
                1 << 40,
            ),
        };
        for section in [top, listen, runtime, docker, process, lifecycle, host] {
            section.finish(faults);
        }
        config
    }
}

/// Shorter leases are for drills.
const LEASE_MS_LEAST: u64 = 5_000;

fn read_lifecycle(s: &mut Section, d: &Settings) -> Settings {
    let most_starts = 1_024;
    Settings {
        lease_ms: s.whole("lease_ms", d.lease_ms, 50, LEASE_MAX_MS),
        grace_ms: s.whole("grace_ms", d.grace_ms, 50, 3_600_000),
        doze_after_ms: s.seconds("doze_after_s", d.doze_after_ms, YEAR_MS / SECOND_MS),
        sleep_after_ms: s.seconds("sleep_after_s", d.sleep_after_ms, YEAR_MS / SECOND_MS),
        max_starts: usize::try_from(s.whole("max_starts", d.max_starts as u64, 1, most_starts))
            .unwrap_or(d.max_starts),
        start_ms: d.start_ms,
        patience_ms: s.whole("patience_ms", d.patience_ms, 50, 120_000),
        head_start_ms: s.whole("head_start_ms", d.head_start_ms, 0, DAY_MS),
        ack_timeout_ms: s.whole("ack_timeout_ms", d.ack_timeout_ms, 100, 600_000),
        backoff_ms: s.whole("backoff_ms", d.backoff_ms, 10, DAY_MS),
        backoff_max_ms: s.whole("backoff_max_ms", d.backoff_max_ms, 10, DAY_MS),
        stable_ms: s.whole("stable_ms", d.stable_ms, 0, DAY_MS),
    }
}

/// A section while it is read: what is taken is gone, what is left is unknown.
struct Section {
    name: &'static str,
    table: Table,
    faults: Vec<String>,
}

impl Section {
    fn new(name: &'static str, table: Table) -> Self {
        Self { name, table, faults: Vec::new() }
    }

    fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    fn fault(&mut self, key: &str, what: impl fmt::Display) {
        let path = self.path(key);
        self.faults.push(format!("{path}: {what}"));
    }

    fn whole(&mut self, key: &str, default: u64, low: u64, high: u64) -> u64 {
        let value = match self.table.remove(key) {
            None => return default,
            Some(Value::Integer(value)) => u64::try_from(value).ok(),
            Some(_) => {
                self.fault(key, "must be a whole number");
                return default;
            }
        };
        match value {
            Some(value) if (low..=high).contains(&value) => value,
            _ => {
                self.fault(key, format!("must be within {low} and {high}"));
                default
            }
        }
    }

    /// Seconds, fractions allowed so that a drill need not wait.
    fn seconds(&mut self, key: &str, default_ms: u64, high_s: u64) -> u64 {
        if let Some(Value::Float(value)) = self.table.get(key) {
            let ms = std::time::Duration::try_from_secs_f64(*value).map(|d| d.as_millis());
            self.table.remove(key);
            return match ms.map(u64::try_from) {
                Ok(Ok(ms)) if ms <= high_s * 1_000 => ms,
                _ => {
                    self.fault(key, format!("must be within 0 and {high_s}"));
                    default_ms
                }
            };
        }
        if self.table.contains_key(key) {
            self.whole(key, 0, 0, high_s) * 1_000
        } else {
            default_ms
        }
    }

    fn text(&mut self, key: &str, default: &str) -> String {
        match self.table.remove(key) {
            None => default.to_owned(),
            Some(Value::String(text)) if !text.is_empty() || default.is_empty() => text,
            Some(_) => {
                self.fault(key, "must be a text that is not empty");
                default.to_owned()
            }
        }
    }

    fn version(&mut self, key: &str, default: SqVersion) -> SqVersion {
        let version = self.text(key, &default.to_string());
        version.parse().unwrap_or_else(|error| {
            self.fault(key, error);
            default
        })
    }

    fn loopback(&mut self, key: &str, default: SocketAddr) -> SocketAddr {
        let text = self.text(key, &default.to_string());
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => address,
            Ok(_) => {
                self.fault(key, "must be a loopback address: it is not for the network");
                default
            }
            Err(_) => {
                self.fault(key, "must be an address such as 127.0.0.1:7100");
                default
            }
        }
    }

    fn kind(&mut self) -> RuntimeKind {
        match self.text("kind", "auto").as_str() {
            "auto" => RuntimeKind::Auto,
            "docker" => RuntimeKind::Docker,
            "process" => RuntimeKind::Process,
            _ => {
                self.fault("kind", "must be auto, docker or process");
                RuntimeKind::Auto
            }
        }
    }

    fn finish(mut self, faults: &mut Vec<String>) {
        for key in self.table.keys().cloned().collect::<Vec<_>>() {
            self.fault(&key, "is not known");
        }
        faults.append(&mut self.faults);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_said_is_the_default() {
        assert_eq!(Config::parse(""), Ok(Config::default()));
    }

    #[test]
    fn the_example_shows_every_key_with_its_default() {
        let example = include_str!("../orchestrator.example.toml");
        // One default is the host's: the number of its cores.
        let shown = example.replace("#= ", "");
        let mut expected = Config::default();
        expected.lifecycle.max_starts = 2;
        assert_eq!(Config::parse(&shown), Ok(expected));
        let keys = shown.lines().filter(|l| l.contains(" = ") && !l.starts_with('#')).count();
        assert_eq!(keys, 28, "a key is missing in orchestrator.example.toml, or here");
    }

    #[test]
    fn every_fault_is_reported_at_once() {
        let text = "data_root = 3\nwhat = 1\nsq_version = \"six\"\n[listen]\ngate = \"0.0.0.0:1\"\n\
                    xds = \"here\"\n[runtime]\nkind = \"podman\"\n[lifecycle]\nlease_ms = 1\n\
                    sleep_after_s = -1.0\nleese = 2\n";
        let faults = Config::parse(text).unwrap_err().to_string();
        for name in [
            "data_root",
            "what",
            "sq_version",
            "listen.gate",
            "listen.xds",
            "runtime.kind",
            "lifecycle.lease_ms",
            "lifecycle.sleep_after_s",
            "lifecycle.leese",
        ] {
            assert!(faults.contains(&format!("{name}: ")), "{name} is missing in:\n{faults}");
        }
    }

    #[test]
    fn what_does_not_go_together_is_a_fault_and_what_is_doubtful_is_said() {
        let text = "data_root = \"/d\"\nstate_dir = \"/d/state\"\n[lifecycle]\nbackoff_ms = 2000\n\
                    backoff_max_ms = 1000\n";
        let faults = Config::parse(text).unwrap_err().to_string();
        assert!(faults.contains("state_dir: ") && faults.contains("backoff_max_ms: "), "{faults}");
        assert_eq!(Config::default().doubts(), [""; 0]);
        let text = "[lifecycle]\ngrace_ms = 29999\nlease_ms = 500\npatience_ms = 10000\n";
        assert_eq!(Config::parse(text).unwrap().doubts().len(), 3);
    }

    #[test]
    fn a_drill_may_sleep_after_a_fraction_of_a_second() {
        let config = Config::parse("[lifecycle]\nsleep_after_s = 0.25\ndoze_after_s = 0").unwrap();
        let lifecycle = config.lifecycle;
        assert_eq!((lifecycle.sleep_after_ms, lifecycle.doze_after_ms), (250, 0));
    }
}
