//! What one life of the orchestrator leaves to the next, in `<state_dir>/life.json`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::host;
use crate::storage::atomic_file;

const FILE: &str = "life.json";

/// One life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// The kernel's boot that it is in; empty where that can't be told.
    boot: String,
    /// How long its leases hold.
    lease_ms: u64,
    /// What runs its tenants, as `runtime::Description` has it.
    pub runtime: String,
}

impl Life {
    /// The present one.
    pub fn new(lease_ms: u64, runtime: &str) -> Self {
        Self { boot: host::boot().unwrap_or_default(), lease_ms, runtime: runtime.to_owned() }
    }

    /// Where it stands.
    pub fn path(state_dir: &Path) -> PathBuf {
        state_dir.join(FILE)
    }

    /// The last one that was written; `None`: there was none. A file that can't be read is an error:
    /// what it says keeps two SQs from one folder.
    pub fn last(state_dir: &Path) -> io::Result<Option<Self>> {
        match fs::read(Self::path(state_dir)) {
            Ok(json) => Ok(Some(serde_json::from_slice(&json)?)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Leaves it to the next. On disk when this returns.
    pub fn write(&self, state_dir: &Path) -> io::Result<()> {
        atomic_file::write(&Self::path(state_dir), &serde_json::to_vec(self)?)
    }

    /// How long leases that earlier lives gave may hold from now on. Who holds one runs on this
    /// host: none survives a boot.
    pub fn leases_ms(&self, last: Option<&Self>) -> u64 {
        match last {
            Some(last) if last.boot != self.boot => 0,
            Some(last) => self.lease_ms.max(last.lease_ms),
            None => self.lease_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_of_the_last_life_hold_as_long_as_it_gave_them_and_none_survives_a_boot() {
        let dir = tempfile::tempdir().unwrap();
        let short = Life::new(1_000, "docker");
        assert_eq!(Life::last(dir.path()).unwrap(), None);
        assert_eq!(short.leases_ms(None), 1_000);
        Life::new(30_000, "docker").write(dir.path()).unwrap();
        let last = Life::last(dir.path()).unwrap().unwrap();
        assert_eq!((short.leases_ms(Some(&last)), last.leases_ms(Some(&short))), (30_000, 30_000));
        let other_boot = Life { boot: "another".to_owned(), ..last };
        assert_eq!(short.leases_ms(Some(&other_boot)), 0);
    }
}
