//! Lock of a data root: one orchestrator serves it.
//!
//! The kernel releases the lock when its holder ends, also if it is killed, so that nothing has to be
//! cleared away by hand.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// Name of the file in the data root. It is not a valid tenant id.
const FILE: &str = ".orchestrator.lock";

/// The lock, held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Reason why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another orchestrator serves the data root.
    #[error(
        "another orchestrator (pid {pid}) serves {data_root}: stop it first, or give this one \
         another data_root"
    )]
    Held {
        /// The data root that both were given.
        data_root: String,
        /// Process id that the holder wrote into the file.
        pid: String,
    },
    /// The folder can't be used.
    #[error("data_root {data_root} can't be used: {source}")]
    Unusable {
        /// The data root in question.
        data_root: String,
        /// The failed system call.
        source: io::Error,
    },
}

impl Lock {
    /// Takes the lock of a data root, which is created if it does not exist.
    pub fn take(data_root: &Path) -> Result<Self, LockError> {
        let unusable =
            |source| LockError::Unusable { data_root: data_root.display().to_string(), source };
        fs::create_dir_all(data_root).map_err(unusable)?;
        // Not truncated before it is ours: it names the holder.
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(data_root.join(FILE))
            .map_err(unusable)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut pid = String::new();
            file.read_to_string(&mut pid).map_err(unusable)?;
            return Err(LockError::Held {
                data_root: data_root.display().to_string(),
                pid: pid.trim().to_owned(),
            });
        }
        file.set_len(0).map_err(unusable)?;
        file.rewind().map_err(unusable)?;
        writeln!(file, "{}", std::process::id()).map_err(unusable)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_orchestrator_waits_for_the_first_to_end() {
        let folder = tempfile::tempdir().unwrap();
        let first = Lock::take(folder.path()).unwrap();
        let refusal = Lock::take(folder.path()).unwrap_err().to_string();
        assert!(refusal.contains(&format!("pid {}", std::process::id())), "{refusal}");
        drop(first);
        assert!(Lock::take(folder.path()).is_ok());
    }
}
