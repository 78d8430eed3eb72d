//! Whether a tenant's SQ has a file open, by `/proc/<pid>/fd`: of one that is held still and has not,
//! the last write of that file is finished.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use protocol::TenantId;

/// The access mode in the flags of `open` (fcntl.h); 0 is reading.
const ACCESS: u32 = 0o3;

/// A tenant's SQ. It is known not to be another process of that number: with a daemon elsewhere, or
/// in another namespace of pids, numbers mean something else here.
#[derive(Debug, Clone)]
pub struct Process {
    proc: PathBuf,
}

impl Process {
    /// The process, if it is an SQ that was started on a folder of this tenant's name.
    pub fn of(pid: i32, tenant: &TenantId) -> Option<Self> {
        let process = Self::any(pid);
        let line = fs::read(process.proc.join("cmdline")).ok()?;
        let mut args = line.split(|b| *b == 0).skip_while(|arg| *arg != b"--data-dir");
        let folder = std::str::from_utf8(args.nth(1)?).ok()?;
        (folder.rsplit('/').next() == Some(tenant.as_str())).then_some(process)
    }

    /// A process whoever it is.
    pub(crate) fn any(pid: i32) -> Self {
        Self { proc: PathBuf::from(format!("/proc/{pid}")) }
    }

    /// Whether it has the file open for writing; `None`: we may not know, or it has ended.
    pub fn writes(&self, file: &File) -> Option<bool> {
        let wanted = file.metadata().ok()?;
        for entry in self.open()? {
            let entry = entry.ok()?;
            // Through the link, whatever it is called in the process's own view of the disks.
            let open = match fs::metadata(entry.path()) {
                Ok(open) => open,
                // Closed since the listing; the one that is looked for can't be, of a frozen process.
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(_) => return None,
            };
            let same = (open.dev(), open.ino()) == (wanted.dev(), wanted.ino());
            if same && self.flags(&entry.file_name())? & ACCESS != 0 {
                return Some(true);
            }
        }
        // One that is killed loses all of its files at once, those it was writing too. It has a
        // socket at least: as long as something is open, nothing was missed above.
        self.open()?.next().map(|_| false)
    }

    fn open(&self) -> Option<fs::ReadDir> {
        fs::read_dir(self.proc.join("fd")).ok()
    }

    fn flags(&self, fd: &std::ffi::OsStr) -> Option<u32> {
        let info = fs::read_to_string(self.proc.join("fdinfo").join(fd)).ok()?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
        u32::from_str_radix(flags.trim(), 8).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_being_written_while_it_is_open_for_writing_and_no_longer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.phext");
        let own = Process::any(std::process::id().try_into().unwrap());
        let writer = File::create(&path).unwrap();
        let reader = File::open(&path).unwrap();
        assert_eq!(own.writes(&reader), Some(true));
        drop(writer);
        assert_eq!(own.writes(&reader), Some(false));
        assert_eq!(Process::any(i32::MAX).writes(&reader), None);
    }

    #[test]
    fn of_one_that_was_killed_nobody_knows_what_it_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.phext");
        let file = File::create(&path).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::any(child.id().try_into().unwrap());
        assert_eq!(process.writes(&file), Some(false));
        child.kill().unwrap();
        // Not waited for yet: it still has its number.
        while process.open().is_some_and(|mut open| open.next().is_some()) {
            std::thread::yield_now();
        }
        assert_eq!(process.writes(&file), None);
        child.wait().unwrap();
    }

    #[test]
    fn a_process_that_is_not_the_tenant_s_sq_is_not_taken_for_it() {
        let alice = TenantId::parse("alice").unwrap();
        for (folder, taken) in [("/data/alice", true), ("/data/alice-2", false)] {
            let mut child = std::process::Command::new("sh")
                .args(["-c", "read line", "sq", "--data-dir", folder])
                .stdin(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let pid = child.id().try_into().unwrap();
            // A process has its command line a moment after it exists.
            while fs::read(format!("/proc/{pid}/cmdline")).unwrap().is_empty() {
                std::thread::yield_now();
            }
            assert_eq!(Process::of(pid, &alice).is_some(), taken, "{folder}");
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
