//! Files that exist while a stack serves from a folder.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use harness::host::processes;

/// Addresses and keys for scripts.
const ENV: &str = "demo.env";
/// The text that a newcomer sees; written when the stack is ready.
const BANNER: &str = "screen.txt";
/// Pid of the serving process.
const PID: &str = "stack.pid";

/// The files of a serving stack, removed on drop.
pub(super) struct RunFiles(PathBuf);

impl RunFiles {
    /// Removes files of an earlier run and records this process's pid.
    pub(super) fn create(dir: &Path) -> Result<Self> {
        remove(dir);
        fs::write(dir.join(PID), std::process::id().to_string())?;
        Ok(Self(dir.to_owned()))
    }

    /// Path of the file of addresses and keys.
    pub(super) fn env(&self) -> PathBuf {
        self.0.join(ENV)
    }

    /// Path of the banner.
    pub(super) fn banner(&self) -> PathBuf {
        Self::banner_in(&self.0)
    }

    /// Path of the banner of a stack in `dir`.
    pub(super) fn banner_in(dir: &Path) -> PathBuf {
        dir.join(BANNER)
    }
}

impl Drop for RunFiles {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Removes the files of a stack that no longer serves from `dir`.
pub(super) fn remove(dir: &Path) {
    for name in [ENV, BANNER, PID] {
        // Not every file exists at every time.
        let _ = fs::remove_file(dir.join(name));
    }
}

/// Pid of the stack that serves from `dir`.
pub(super) fn running_pid(dir: &Path) -> Option<i32> {
    let pid = fs::read_to_string(dir.join(PID)).ok()?.trim().parse().ok()?;
    let own_pid = i32::try_from(std::process::id()).ok()?;
    // The pid may belong to another program by now.
    let program = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    let is_stack = program.trim() == "integration" && processes::is_alive(pid);
    (pid != own_pid && is_stack).then_some(pid)
}
