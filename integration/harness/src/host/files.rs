//! Files and folders with secrets, which only their owner may open.

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result};
use tempfile::NamedTempFile;

/// Writes a file of mode 0600, completely or not at all. An existing file is replaced, and with it
/// its mode.
pub fn write_private(path: &Path, contents: &[u8]) -> Result<()> {
    let folder = path.parent().context("a file without a folder")?;
    // Temporary files are made with mode 0600.
    let mut staged = NamedTempFile::new_in(folder)?;
    staged.write_all(contents)?;
    staged.persist(path).with_context(|| format!("can't write {}", path.display()))?;
    Ok(())
}

/// Creates a folder of mode 0700, or sets the mode of an existing one.
pub(crate) fn create_private_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("can't make {}", path.display()))?;
    fs::set_permissions(path, Permissions::from_mode(0o700))?;
    Ok(())
}

/// Takes all permissions of other users away from an existing file.
pub fn make_private(path: &Path) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(0o600))
        .with_context(|| format!("can't change the mode of {}", path.display()))
}

/// Permission bits of a file or folder.
#[cfg(test)]
pub(crate) fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaced_file_loses_its_open_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        write_private(&path, b"new").unwrap();
        assert_eq!((mode(&path), fs::read(&path).unwrap()), (0o600, b"new".to_vec()));
    }
}
