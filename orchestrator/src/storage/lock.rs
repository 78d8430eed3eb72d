//! One orchestrator per data root. The kernel gives the lock back when its holder dies, however it
//! dies, so nothing has to be cleared away by hand.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// Name of the file in the data root; no tenant can have it.
const FILE: &str = ".orchestrator.lock";

/// Held as long as it lives.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Why the lock could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another orchestrator serves the data root.
    #[error(
        "another orchestrator (pid {pid}) serves {data_root}: stop it first, or give this one \
         another data_root"
    )]
    Held {
        /// Whose.
        data_root: String,
        /// As the holder has written it.
        pid: String,
    },
    /// The folder can't be used.
    #[error("data_root {data_root} can't be used: {source}")]
    Unusable {
        /// Which.
        data_root: String,
        /// Why.
        source: io::Error,
    },
}

impl Lock {
    /// Takes the lock of a data root, which is made when it is not there.
    pub fn take(data_root: &Path) -> Result<Self, LockError> {
        let shown = || data_root.display().to_string();
        let unusable = |source| LockError::Unusable { data_root: shown(), source };
        fs::create_dir_all(data_root).map_err(unusable)?;
        let path = data_root.join(FILE);
        let mut options = File::options();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(unusable)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut pid = String::new();
            file.read_to_string(&mut pid).map_err(unusable)?;
            return Err(LockError::Held { data_root: shown(), pid: pid.trim().to_owned() });
        }
        file.set_len(0).and_then(|()| file.rewind()).map_err(unusable)?;
        writeln!(file, "{}", std::process::id()).map_err(unusable)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_orchestrator_on_a_data_root_is_refused_until_the_first_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let first = Lock::take(folder.path()).unwrap();
        let refusal = Lock::take(folder.path()).unwrap_err().to_string();
        assert!(refusal.contains(&format!("pid {}", std::process::id())), "{refusal}");
        drop(first);
        assert!(Lock::take(folder.path()).is_ok());
    }
}
