//! Returns the memory of paused tenants to the host: `memory.reclaim` of cgroup v2 (Linux 5.19).
//!
//! A paused process does not use its memory until it is resumed, so its file pages are dropped at
//! once, and its own pages are swapped out if the host has swap. cgroup v1 has no equivalent
//! (`memory.force_empty` refuses while a process is in the group); there the status says that memory
//! is not reclaimed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use procfs::process::Process;

/// Mount point of cgroups.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Access to the kernel's `memory.reclaim`.
#[derive(Debug, Clone)]
pub(super) struct Reclaim {
    cgroups: PathBuf,
    proc: PathBuf,
}

impl Reclaim {
    /// Returns `None` where only cgroup v1 is available.
    pub(super) fn detect() -> Option<Self> {
        Self::detect_in(Path::new(CGROUPS), Path::new("/proc"))
    }

    fn detect_in(cgroups: &Path, proc: &Path) -> Option<Self> {
        // This file exists at the root of cgroup v2 only.
        if !cgroups.join("cgroup.controllers").exists() {
            return None;
        }
        Some(Self { cgroups: cgroups.to_owned(), proc: proc.to_owned() })
    }

    /// Text for the operator's status.
    pub(super) fn note(detected: Option<&Self>) -> &'static str {
        match detected {
            Some(_) => "memory of dozing tenants is returned to the host by memory.reclaim",
            None => "memory of dozing tenants is not returned to the host: needs cgroup v2",
        }
    }

    /// Asks the kernel to reclaim all memory of the cgroup of `pid`, and returns how many bytes that
    /// was. Blocks while pages are written to swap.
    pub(super) fn reclaim(&self, pid: i32) -> io::Result<u64> {
        let group = self.cgroup_of(pid)?;
        let before = current_bytes(&group)?;
        match fs::write(group.join("memory.reclaim"), before.to_string()) {
            // The kernel reclaimed less than requested, which is usual: some pages are in use.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => other?,
        }
        Ok(before.saturating_sub(current_bytes(&group)?))
    }

    /// Folder of the process's cgroup. The root group and paths that lead out of the hierarchy are
    /// refused: reclaiming there would hit the whole host.
    fn cgroup_of(&self, pid: i32) -> io::Result<PathBuf> {
        let process = Process::new_with_root(self.proc.join(pid.to_string()));
        let groups = process.and_then(|process| process.cgroups()).map_err(io::Error::other)?;
        // Hierarchy 0 is cgroup v2 (cgroups(7)).
        let group = groups.into_iter().find(|group| group.hierarchy == 0);
        let path = group.map(|group| group.pathname.trim_start_matches('/').to_owned());
        match path {
            Some(path) if !path.is_empty() && path.split('/').all(|part| part != "..") => {
                Ok(self.cgroups.join(path))
            }
            _ => Err(io::Error::other("the process has no cgroup of v2 below the root")),
        }
    }
}

fn current_bytes(group: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(group.join("memory.current"))?;
    text.trim().parse().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CGROUP_V2: bool = true;

    /// A host with process 7, which uses 5 MB, and `cgroup` as its `/proc/7/cgroup`.
    fn host(cgroup: &str, is_v2: bool) -> (tempfile::TempDir, Option<Reclaim>) {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("docker/abc");
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join("memory.current"), "5000000\n").unwrap();
        fs::create_dir_all(dir.path().join("proc/7")).unwrap();
        fs::write(dir.path().join("proc/7/cgroup"), cgroup).unwrap();
        if is_v2 {
            fs::write(dir.path().join("cgroup.controllers"), "memory").unwrap();
        }
        let reclaim = Reclaim::detect_in(dir.path(), &dir.path().join("proc"));
        (dir, reclaim)
    }

    #[test]
    fn cgroup_v1_cannot_reclaim() {
        let (_dir, reclaim) = host("0::/docker/abc\n", !CGROUP_V2);
        assert!(reclaim.is_none());
        assert!(Reclaim::note(None).contains("needs cgroup v2"));
    }

    #[test]
    fn all_memory_of_the_tenants_group_is_requested() {
        let (dir, reclaim) = host("12:cpu:/x\n0::/docker/abc\n", CGROUP_V2);
        assert_eq!(reclaim.unwrap().reclaim(7).unwrap(), 0, "no kernel reclaims here");
        let requested = fs::read_to_string(dir.path().join("docker/abc/memory.reclaim")).unwrap();
        assert_eq!(requested, "5000000");
    }

    #[test]
    fn memory_of_the_whole_host_is_never_requested() {
        for cgroup in ["0::/\n", "0::/../x\n", "3:memory:/docker/abc\n"] {
            let (_dir, reclaim) = host(cgroup, CGROUP_V2);
            assert!(reclaim.unwrap().reclaim(7).is_err(), "{cgroup:?}");
        }
    }
}
