//! What the process asks of the kernel: open files, privacy.

use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};
use tracing::warn;

/// Raises the soft limit of open files, usually 1,024, to the hard limit. Without a free descriptor
/// neither a connection nor the registry can be opened.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!(%error, ?limit, "limit of open files can't be raised");
    }
}

/// Keeps what this process writes, and its memory, from the other users of the host: files are private
/// unless they are opened up, and a crash leaves no core dump, which would contain private keys.
pub fn keep_private() {
    umask(Mode::RGRP | Mode::WGRP | Mode::ROTH | Mode::WOTH);
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, none) {
        warn!(%error, "core dumps can't be disabled: one would contain private keys");
    }
}
