//! A lease on a file (fcntl(2), `F_SETLEASE`): while it is held, whoever opens the file for writing
//! waits in `open`, before the file is emptied; so what is read is whole, and no writer is disturbed
//! more than by a slow disk. It ends with the process that holds it.
//!
//! The only unsafe code of the workspace: neither `std` nor rustix or nix can ask for a lease.
#![expect(unsafe_code, reason = "fcntl(2) with an integer, on a file that is borrowed")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Which signal tells the holder that somebody waits (fcntl.h; libc does not name it).
const F_SETSIG: libc::c_int = 10;

/// A lease on an open file, until it is dropped.
pub(super) struct Lease<'a>(&'a File);

impl Lease<'_> {
    /// On a file that was opened for reading. `None`: somebody has it open for writing just now. An
    /// error: this file system knows no leases, or this user may have none on files of others.
    pub(super) fn take(file: &File) -> io::Result<Option<Lease<'_>>> {
        // What would be sent, SIGIO, ends a process; this one is of no consequence.
        fcntl(file, F_SETSIG, libc::SIGURG)?;
        match fcntl(file, libc::F_SETLEASE, libc::F_RDLCK) {
            Ok(()) => Ok(Some(Lease(file))),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        // Closing the file ends it as well, unless a child that is being started has it too.
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
    fn a_file_that_is_open_for_writing_has_no_lease_and_any_other_has() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.phext");
        let writer = File::create(&path).unwrap();
        let reader = File::open(&path).unwrap();
        assert!(Lease::take(&reader).unwrap().is_none());
        drop(writer);
        let lease = Lease::take(&reader).unwrap();
        assert!(lease.is_some());
        assert_eq!(fs::read(&path).unwrap(), b"", "readers don't wait");
    }

    #[test]
    fn whoever_opens_a_leased_file_for_writing_waits_and_has_not_emptied_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.phext");
        fs::write(&path, "old").unwrap();
        let reader = File::open(&path).unwrap();
        let lease = Lease::take(&reader).unwrap().unwrap();
        let (begun, written) = (AtomicBool::new(false), AtomicBool::new(false));
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
