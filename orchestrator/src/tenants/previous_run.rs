//! The record that one run of the orchestrator leaves to the next, in `<state_dir>/run.json`.
//!
//! The next run reads two facts from it. For how long may leases of earlier runs still be live? And
//! which runtime may still have the tenants' instances? Another runtime would not see those and
//! could start a second SQ on the same folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::host;
use crate::storage::atomic_file;

const FILE: &str = "run.json";

/// Facts about one run of the orchestrator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunRecord {
    /// The host's boot id; empty where it can't be read.
    boot: String,
    /// Length of the run's leases.
    lease_ms: u64,
    /// Kind of the runtime, as in [`Description::kind`](crate::runtime::Description::kind).
    pub(crate) runtime: String,
}

impl RunRecord {
    /// Describes the present run.
    pub(crate) fn new(lease_ms: u64, runtime: &str) -> Self {
        Self { boot: host::boot().unwrap_or_default(), lease_ms, runtime: runtime.to_owned() }
    }

    /// Returns the path of the record.
    pub(crate) fn path(state_dir: &Path) -> PathBuf {
        state_dir.join(FILE)
    }

    /// Reads the record of the previous run; `None` at the first one. A record that can't be read
    /// is an error, because only the record keeps a second SQ away from a folder that is in use.
    pub(crate) fn read(state_dir: &Path) -> io::Result<Option<Self>> {
        match fs::read(Self::path(state_dir)) {
            Ok(json) => Ok(Some(serde_json::from_slice(&json)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the record for the next run. It is on disk when this returns.
    pub(crate) fn write(&self, state_dir: &Path) -> io::Result<()> {
        atomic_file::write(&Self::path(state_dir), &serde_json::to_vec(self)?)
    }

    /// Returns how long leases of earlier runs may still be live, from now on, in milliseconds. The
    /// gateways that hold leases run on this host, so no lease survives a boot.
    pub(crate) fn earlier_leases_ms(&self, previous: Option<&Self>) -> u64 {
        match previous {
            Some(previous) if previous.boot != self.boot => 0,
            Some(previous) => self.lease_ms.max(previous.lease_ms),
            None => self.lease_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_leases_live_their_full_length() {
        let dir = tempfile::tempdir().unwrap();
        let short = RunRecord::new(1_000, "docker");
        assert_eq!(RunRecord::read(dir.path()).unwrap(), None);
        assert_eq!(short.earlier_leases_ms(None), 1_000);
        RunRecord::new(30_000, "docker").write(dir.path()).unwrap();
        let long = RunRecord::read(dir.path()).unwrap().unwrap();
        assert_eq!(short.earlier_leases_ms(Some(&long)), 30_000);
        assert_eq!(long.earlier_leases_ms(Some(&short)), 30_000);
    }

    #[test]
    fn no_lease_survives_a_boot() {
        let present = RunRecord::new(1_000, "docker");
        let earlier = RunRecord { boot: "another".to_owned(), ..present.clone() };
        assert_eq!(present.earlier_leases_ms(Some(&earlier)), 0);
    }
}
