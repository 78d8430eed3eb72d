//! Versions of files, and the moment at which a file has stopped changing.
//!
//! ```text
//!             another version              the same version twice in a row
//! unchanged ──────────────────► changing ──────────────────────────────────► settled, then taken
//!                                   └── yet another version: still changing
//! ```

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The state of a file as `stat` shows it. Editors that rename change the inode; those that write in
/// place change the time or the length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileVersion {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileVersion {
    /// Looks up the version of a file, or of the target of a symbolic link.
    pub(crate) fn of(path: &Path) -> std::io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// Detects that a version differs from the one in use and has stopped changing.
#[derive(Debug, Clone)]
pub(crate) struct Settling<V = FileVersion> {
    taken: Option<V>,
    changing_to: Option<V>,
}

impl<V> Default for Settling<V> {
    fn default() -> Self {
        Self { taken: None, changing_to: None }
    }
}

impl<V: Copy + PartialEq> Settling<V> {
    /// Observes the current version. Returns true if it is not the taken one and was also the
    /// current one at the last observation.
    pub(crate) fn observe(&mut self, current: V) -> bool {
        if self.taken == Some(current) {
            self.changing_to = None;
            return false;
        }
        self.changing_to.replace(current) == Some(current)
    }

    /// Returns true if the last observed version was not the taken one.
    pub(crate) fn is_changing(&self) -> bool {
        self.changing_to.is_some()
    }

    /// Marks `version` as the one in use.
    pub(crate) fn take(&mut self, version: V) {
        self.taken = Some(version);
        self.changing_to = None;
    }

    /// Forgets all versions, so that the next one counts as new.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_settles_when_observed_twice() {
        let mut settling = Settling::default();
        assert!(!settling.observe(1));
        assert!(!settling.observe(2), "it changed again");
        assert!(settling.observe(2));
        settling.take(2);
        assert!(!settling.observe(2), "it is in use");
        assert!(!settling.observe(3));
        assert!(!settling.observe(2), "it went back to the version in use");
        assert!(!settling.observe(3), "it is new again");
    }
}
