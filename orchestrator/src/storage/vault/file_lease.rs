//! Leases on files (fcntl(2), `F_SETLEASE`).
//!
//! While we hold a read lease, a process that opens the file for writing waits in `open`, before the
//! file is emptied. So what we read is whole, and a writer is disturbed no more than by a slow disk.
//! The kernel ends the lease when the process that holds it dies.
//!
//! This is the only unsafe code of the workspace: neither `std` nor rustix or nix can ask for a lease.
#![expect(unsafe_code, reason = "fcntl(2) with an integer, on a file that is borrowed")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Command that selects the signal for the holder when a writer waits (fcntl.h; libc lacks it).
const F_SETSIG: libc::c_int = 10;

/// A lease on an open file. It ends when it is dropped.
pub(super) struct FileLease<'a>(&'a File);

impl FileLease<'_> {
    /// Takes a lease on a file that was opened for reading. `None` means that a process has it open
    /// for writing at this moment; an error, that this file system has no leases, or that this user
    /// may have none on files of others.
    pub(super) fn take(file: &File) -> io::Result<Option<FileLease<'_>>> {
        // The default signal, SIGIO, would end this process; SIGURG is ignored.
        fcntl(file, F_SETSIG, libc::SIGURG)?;
        match fcntl(file, libc::F_SETLEASE, libc::F_RDLCK) {
            Ok(()) => Ok(Some(FileLease(file))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Drop for FileLease<'_> {
    fn drop(&mut self) {
        // Closing the file would end it as well, unless a child that is being started inherited it.
        let _ = fcntl(self.0, libc::F_SETLEASE, libc::F_UNLCK);
    }
}

fn fcntl(file: &File, command: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as `file` is borrowed, and both commands take an
    // integer: no memory is passed.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, value) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn file_open_for_writing_gets_no_lease() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.phext");
        let writer = File::create(&path).unwrap();
        let reader = File::open(&path).unwrap();
        assert!(FileLease::take(&reader).unwrap().is_none());
        drop(writer);
        let lease = FileLease::take(&reader).unwrap();
        assert!(lease.is_some());
        assert_eq!(fs::read(&path).unwrap(), b"", "readers don't wait");
    }

    #[test]
    fn writer_waits_for_the_lease_before_it_truncates() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.phext");
        fs::write(&path, "old").unwrap();
        let reader = File::open(&path).unwrap();
        let lease = FileLease::take(&reader).unwrap().unwrap();
        let begun = AtomicBool::new(false);
        let written = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                begun.store(true, Ordering::SeqCst);
                fs::write(&path, "new").unwrap();
                written.store(true, Ordering::SeqCst);
            });
            while !begun.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            for _ in 0..1_000 {
                assert_eq!(fs::read(&path).unwrap(), b"old");
            }
            assert!(!written.load(Ordering::SeqCst));
            drop(lease);
        });
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }
}
