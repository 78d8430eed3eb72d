//! The instance records of the process runtime, as the orchestrator writes them.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Value, json};

use super::population::{AWAKE_TIER, limits};
use harness::host::tools::SQ_VERSION;

/// The process that a record describes.
#[derive(Debug, Clone)]
pub(super) struct InstanceRecord {
    pid: u64,
    start_ticks: u64,
    boot: String,
    port: u64,
    key: String,
}

impl InstanceRecord {
    /// Creates the record of an instance that an earlier boot of the host ended.
    pub(super) fn of_earlier_boot() -> Self {
        Self {
            pid: 1,
            start_ticks: 1,
            boot: "another-boot".to_owned(),
            port: 1,
            key: "0".repeat(32),
        }
    }

    /// Reads a record that the orchestrator wrote; `None` if a field is missing.
    pub(super) fn from_json(record: &Value) -> Option<Self> {
        Some(Self {
            pid: record["pid"].as_u64()?,
            start_ticks: record["start_ticks"].as_u64()?,
            boot: record["boot"].as_str()?.to_owned(),
            port: record["port"].as_u64()?,
            key: record["key"].as_str()?.to_owned(),
        })
    }

    /// Writes the record as that of `tenant`.
    pub(super) fn write(&self, dir: &Path, tenant: &str) -> Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder(dir))?;
        let record = json!({
            "pid": self.pid,
            "start_ticks": self.start_ticks,
            "boot": self.boot,
            "port": self.port,
            "key": self.key,
            "tenant": tenant,
            "tier": AWAKE_TIER,
            "limits": serde_json::to_value(limits(AWAKE_TIER))?,
            "sq_version": SQ_VERSION,
        });
        Ok(fs::write(record_path(dir, tenant), serde_json::to_vec(&record)?)?)
    }
}

/// Returns the path of a tenant's record.
pub(super) fn record_path(dir: &Path, tenant: &str) -> PathBuf {
    folder(dir).join(format!("{tenant}.json"))
}

fn folder(dir: &Path) -> PathBuf {
    dir.join("state/process")
}
