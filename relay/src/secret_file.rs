//! Permissions of files with secrets.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tracing::warn;

/// Permission bits of users that are neither the owner nor in the group of a file.
const OTHERS: u32 = 0o007;

/// Logs a warning if the file is open to every user of the host. The group may have access: a key is
/// often shared with the services of one group.
pub(crate) fn warn_if_open_to_others(path: &Path) {
    let Ok(metadata) = std::fs::metadata(path) else { return };
    if metadata.mode() & OTHERS != 0 {
        let file = path.display();
        let mode = format!("{:03o}", metadata.mode() & 0o777);
        warn!(%file, mode, "secret is open to every user of this host; run `chmod o= {file}`");
    }
}
