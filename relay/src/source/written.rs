//! The digest of the text that a command wrote last, in a file beside the registry.
//!
//! A command replaces the registry as a whole, after it has checked that the old one is complete. The
//! text that it wrote is therefore complete too, however many keys it has lost: neither the relay nor
//! the next command holds it for truncated. Every other text is compared with the last good copy.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::file::read_bounded;

/// Path of the digest: beside the registry, or beside the target of a symbolic link, with `.written`
/// appended to its name.
pub(crate) fn path_of(registry: &Path) -> PathBuf {
    let target = registry.canonicalize().unwrap_or_else(|_| registry.to_owned());
    let mut path = target.into_os_string();
    path.push(".written");
    path.into()
}

/// Contents of the file for a text that is about to become the registry.
pub(crate) fn record_of(text: &[u8]) -> String {
    format!("{}\n", hex::encode(Sha256::digest(text)))
}

/// Returns true if a command wrote this text last.
pub(crate) fn is_last(registry: &Path, text: &[u8]) -> bool {
    let recorded = read_bounded(&path_of(registry));
    recorded.is_ok_and(|recorded| recorded == record_of(text).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_and_its_target_share_the_record() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        let link = dir.path().join("link");
        std::fs::write(&target, "").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(!is_last(&link, b"one"), "nothing was recorded");
        std::fs::write(path_of(&target), record_of(b"one")).unwrap();
        assert!(is_last(&link, b"one"));
        assert!(!is_last(&link, b"on"));
    }
}
