//! The folder that contains the sockets. Who may write to it could put a socket in place of one of
//! ours, to which Envoy would send usage and from which it would take clusters.

use std::fs::{self, DirBuilder, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;

use anyhow::{Context, ensure};
use rustix::process::geteuid;

/// Mode of a folder that is made here.
const MODE: u32 = 0o750;
/// Permission of the group and of others to write.
const WRITABLE: u32 = 0o022;

/// Makes the folder if it does not exist, and fails unless only root or this process's user can
/// write to it.
pub(super) fn prepare(folder: &Path, group: Option<u32>) -> anyhow::Result<()> {
    let is_new = match fs::symlink_metadata(folder) {
        Ok(_) => false,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(MODE).create(folder)?;
            true
        }
        Err(error) => return Err(error.into()),
    };
    // A link could be pointed elsewhere later, so it does not count as a folder.
    let metadata = fs::symlink_metadata(folder)?;
    ensure!(metadata.is_dir(), "it is not a folder");
    let own = geteuid().as_raw();
    let owner = metadata.uid();
    ensure!(owner == own || owner == 0, "it belongs to user {owner}: it must be root's or {own}'s");
    let mode = metadata.mode() & 0o7777;
    ensure!(
        mode & WRITABLE == 0,
        "its mode is {mode:04o}, so that others can replace sockets in it: chmod go-w {}",
        folder.display()
    );
    if let Some(group) = group
        && owner == own
        && metadata.gid() != group
    {
        chown(folder, None, Some(group)).with_context(|| format!("no group {group} for it"))?;
    }
    if is_new {
        // The umask may have taken away what the group needs.
        fs::set_permissions(folder, Permissions::from_mode(MODE))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn missing_folder_is_made_for_its_group() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a/b");
        prepare(&folder, None).unwrap();
        assert_eq!(mode(&folder), 0o750);
        prepare(&folder, None).unwrap();
    }

    #[test]
    fn folder_that_others_can_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for writable in [0o770, 0o702, 0o1777] {
            fs::set_permissions(dir.path(), Permissions::from_mode(writable)).unwrap();
            let error = format!("{:#}", prepare(dir.path(), None).unwrap_err());
            assert!(error.contains("chmod go-w"), "{error}");
        }
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        prepare(dir.path(), None).unwrap();
    }

    #[test]
    fn link_and_file_are_no_folders() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        for path in [link, file] {
            assert!(prepare(&path, None).unwrap_err().to_string().contains("not a folder"));
        }
    }
}
