//! Unix sockets of a stack: those of its orchestrator and of its Envoys' admin interfaces.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::host::files;

/// Longest path of a Unix socket, in bytes.
const PATH_MAX_BYTES: usize = 107;

/// Name of the folder, or of a link to it, in the folder of a stack.
const FOLDER: &str = "sockets";

/// Prefix of the name of a folder outside of the stack's.
const PREFIX: &str = "sq-gateway-sockets-";

/// The longest name below the folder.
const LONGEST: &str = "gateway-1/admin.sock";

/// A private folder of sockets. Dropping it removes a folder outside of the stack's.
#[derive(Debug)]
pub struct Sockets {
    folder: PathBuf,
    _temporary: Option<TempDir>,
}

impl Sockets {
    /// Makes the folder below `dir`, or, if a socket's path would be too long there, a short one
    /// below `XDG_RUNTIME_DIR` or `/tmp`, with a link to it in `dir`.
    pub fn create(dir: &Path) -> Result<Self> {
        remove(dir)?;
        let inside = dir.join(FOLDER);
        if fits(&inside) {
            files::create_private_dir(&inside)?;
            return Ok(Self { folder: inside, _temporary: None });
        }
        let base = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let base = base.filter(|base| base.is_dir() && fits(&base.join(PREFIX).join("123456")));
        let base = base.unwrap_or_else(|| PathBuf::from("/tmp"));
        let private = fs::Permissions::from_mode(0o700);
        let temporary =
            tempfile::Builder::new().prefix(PREFIX).permissions(private).tempdir_in(base)?;
        let folder = temporary.path().to_owned();
        ensure!(fits(&folder), "no folder for sockets has a short path: {}", folder.display());
        symlink(&folder, &inside).with_context(|| format!("can't make {}", inside.display()))?;
        Ok(Self { folder, _temporary: Some(temporary) })
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// Path of the orchestrator's socket `name`, such as `gate`, in a folder of sockets.
pub(crate) fn orchestrator(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.sock"))
}

/// Folder of the admin socket of the Envoy with this `node.id`.
pub(crate) fn envoy(folder: &Path, node: &str) -> PathBuf {
    folder.join(node)
}

/// Removes the sockets that an earlier stack left in `dir` or below the link there.
pub fn remove(dir: &Path) -> Result<()> {
    let inside = dir.join(FOLDER);
    let Ok(metadata) = fs::symlink_metadata(&inside) else { return Ok(()) };
    if !metadata.is_symlink() {
        return Ok(fs::remove_dir_all(&inside)?);
    }
    let target = fs::read_link(&inside)?;
    let is_ours = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with(PREFIX);
    if target.file_name().is_some_and(is_ours) {
        // A stack that ended in order has removed it.
        let _ = fs::remove_dir_all(&target);
    }
    Ok(fs::remove_file(&inside)?)
}

fn fits(folder: &Path) -> bool {
    folder.join(LONGEST).as_os_str().len() <= PATH_MAX_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deep_folder_gets_its_sockets_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let near = Sockets::create(dir.path()).unwrap();
        assert!(near.folder().starts_with(dir.path()));
        let deep = dir.path().join("x".repeat(100));
        fs::create_dir(&deep).unwrap();
        let sockets = Sockets::create(&deep).unwrap();
        assert!(fits(sockets.folder()) && !sockets.folder().starts_with(&deep));
        assert_eq!(files::mode(sockets.folder()), 0o700);
        assert_eq!(fs::read_link(deep.join(FOLDER)).unwrap(), sockets.folder());
        // A killed stack leaves them; the next one in the folder removes them.
        let left = sockets.folder().to_owned();
        std::mem::forget(sockets);
        remove(&deep).unwrap();
        assert!(!left.exists() && fs::symlink_metadata(deep.join(FOLDER)).is_err());
    }
}
