//! Memory of frozen tenants handed back to the kernel: `memory.reclaim` of cgroup v2 (Linux 5.19).
//!
//! A frozen process is never asked again until it wakes, so that what it holds is better used
//! elsewhere: file pages go at once, its own pages where the host has swap. cgroup v1 has nothing
//! like it (`memory.force_empty` refuses while a process is in the group): there it is not done, and
//! the status says so.

use std::io;
use std::path::{Path, PathBuf};

/// Where cgroups are.
const ROOT: &str = "/sys/fs/cgroup";

/// A way to hand memory back, where the kernel has one.
#[derive(Debug, Clone)]
pub(super) struct Reclaim {
    root: PathBuf,
    proc: PathBuf,
}

impl Reclaim {
    /// `None`: this kernel has cgroup v1 only.
    pub(super) fn found() -> Option<Self> {
        Self::below(Path::new(ROOT), Path::new("/proc"))
    }

    fn below(root: &Path, proc: &Path) -> Option<Self> {
        let there = root.join("cgroup.controllers").exists();
        there.then(|| Self { root: root.to_owned(), proc: proc.to_owned() })
    }

    /// What the operator is told.
    pub(super) fn note(found: Option<&Self>) -> &'static str {
        match found {
            Some(_) => "memory of dozing tenants is handed back by memory.reclaim",
            None => "memory of dozing tenants is not handed back: not available on cgroup v1",
        }
    }

    /// Has the kernel take back what the cgroup of `pid` holds; answers with how much that was.
    /// Blocks while pages are written to swap.
    pub(super) fn reclaim(&self, pid: i64) -> io::Result<u64> {
        let group = self.group(pid)?;
        let held = || -> io::Result<u64> {
            let text = std::fs::read_to_string(group.join("memory.current"))?;
            text.trim().parse().map_err(io::Error::other)
        };
        let before = held()?;
        match std::fs::write(group.join("memory.reclaim"), before.to_string()) {
            // Less than asked for could be taken: that is usual, and as much as there is.
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(e),
            _ => {}
        }
        Ok(before.saturating_sub(held()?))
    }

    /// The line `0::<path>` of cgroups(7).
    fn group(&self, pid: i64) -> io::Result<PathBuf> {
        let text = std::fs::read_to_string(self.proc.join(pid.to_string()).join("cgroup"))?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
        let path = path.filter(|p| !p.is_empty() && !p.split('/').any(|part| part == ".."));
        let path = path.ok_or_else(|| io::Error::other("it has no cgroup of its own"))?;
        Ok(self.root.join(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn host(cgroup: &str) -> (tempfile::TempDir, Option<Reclaim>) {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("docker/abc");
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join("memory.current"), "5000000\n").unwrap();
        fs::create_dir_all(dir.path().join("proc/7")).unwrap();
        fs::write(dir.path().join("proc/7/cgroup"), cgroup).unwrap();
        let found = Reclaim::below(dir.path(), &dir.path().join("proc"));
        (dir, found)
    }

    #[test]
    fn on_cgroup_v1_there_is_nothing_to_hand_back_with() {
        let (_dir, found) = host("0::/docker/abc\n");
        assert!(found.is_none());
        assert!(Reclaim::note(None).contains("not available"));
    }

    #[test]
    fn all_that_a_frozen_tenant_holds_is_asked_back_from_its_own_group() {
        let (dir, _) = host("12:cpu:/x\n0::/docker/abc\n");
        fs::write(dir.path().join("cgroup.controllers"), "memory").unwrap();
        let reclaim = Reclaim::below(dir.path(), &dir.path().join("proc")).unwrap();
        assert_eq!(reclaim.reclaim(7).unwrap(), 0, "nobody took anything here");
        let asked = fs::read_to_string(dir.path().join("docker/abc/memory.reclaim")).unwrap();
        assert_eq!(asked, "5000000");
    }

    #[test]
    fn nothing_is_asked_back_from_the_whole_host() {
        for cgroup in ["0::/\n", "0::/../x\n", "3:memory:/docker/abc\n"] {
            let (dir, _) = host(cgroup);
            fs::write(dir.path().join("cgroup.controllers"), "memory").unwrap();
            let reclaim = Reclaim::below(dir.path(), &dir.path().join("proc")).unwrap();
            assert!(reclaim.reclaim(7).is_err(), "{cgroup:?}");
        }
    }
}
