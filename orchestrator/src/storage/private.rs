//! Files and folders that only the orchestrator's user may read: usage, copies of tenants' texts and
//! instance keys. They are created so, and those of an earlier release are closed at the start.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Mode of a private file.
pub(crate) const PRIVATE_FILE: u32 = 0o600;

/// Mode of a private folder.
pub(crate) const PRIVATE_FOLDER: u32 = 0o700;

/// Mode of a private folder that other users may pass through, but not list.
const PASSABLE_FOLDER: u32 = 0o711;

/// Creates the state folder, or closes an existing one to other users. If the tenants' folders are
/// below it, SQ's user must still reach them.
pub(crate) fn open_state_folder(state_dir: &Path, data_root: &Path) -> io::Result<()> {
    let passable = data_root.starts_with(state_dir);
    let mode = if passable { PASSABLE_FOLDER } else { PRIVATE_FOLDER };
    DirBuilder::new().recursive(true).mode(mode).create(state_dir)?;
    restrict(state_dir, mode)
}

/// Creates a private folder, with those above it, unless it exists.
pub(crate) fn create_private_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(PRIVATE_FOLDER).create(path)
}

/// Creates an empty private file, or closes an existing one to other users.
pub(crate) fn create_private_file(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(PRIVATE_FILE).open(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => restrict(path, PRIVATE_FILE),
        Err(error) => Err(error),
        Ok(_) => Ok(()),
    }
}

/// Takes all permission bits beyond `mode` from a file or folder.
pub(crate) fn restrict(path: &Path, mode: u32) -> io::Result<()> {
    let present = fs::metadata(path)?.permissions().mode() & 0o7777;
    if present & !mode == 0 {
        return Ok(());
    }
    fs::set_permissions(path, Permissions::from_mode(present & mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn open_up(path: &Path) {
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn state_folder_is_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("state");
        open_state_folder(&state_dir, &dir.path().join("tenants")).unwrap();
        assert_eq!(mode(&state_dir), 0o700);
        open_up(&state_dir);
        open_state_folder(&state_dir, &dir.path().join("tenants")).unwrap();
        assert_eq!(mode(&state_dir), 0o700, "one of an earlier release");
    }

    #[test]
    fn tenants_below_the_state_folder_stay_reachable() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("state");
        let data_root = state_dir.join("tenants");
        open_state_folder(&state_dir, &data_root).unwrap();
        assert_eq!(mode(&state_dir), 0o711);
        open_up(&state_dir);
        open_state_folder(&state_dir, &data_root).unwrap();
        assert_eq!(mode(&state_dir), 0o711);
    }

    #[test]
    fn private_file_keeps_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        create_private_file(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        fs::write(&path, "content").unwrap();
        open_up(&path);
        create_private_file(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(fs::read_to_string(&path).unwrap(), "content");
    }

    #[test]
    fn restriction_grants_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("folder");
        create_private_folder(&folder).unwrap();
        fs::set_permissions(&folder, Permissions::from_mode(0o555)).unwrap();
        restrict(&folder, PRIVATE_FOLDER).unwrap();
        assert_eq!(mode(&folder), 0o500);
    }
}
