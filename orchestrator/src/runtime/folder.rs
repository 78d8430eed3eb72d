//! Prepares a tenant's data folder and proves that SQ will be able to write it.
//!
//! SQ 0.6.0 answers 200 and stores nothing when its folder is not writable, so every start proves
//! the folder first: owner and mode of everything in it are checked against the user that SQ will
//! have (and corrected where we have the rights), and then that user writes a file, which is removed
//! again. The proof does not go through SQ, because that would put a phext into the tenant's data.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{Gid, Mode, OFlags, Uid, fchown, open};
use rustix::io::Errno;

use crate::runtime::RuntimeError;

/// Mode of a tenant's folder: only its owner may enter.
const FOLDER_MODE: u32 = 0o700;

/// Mode of the files in it.
const FILE_MODE: u32 = 0o600;

/// Name of the file that the proof writes. It is not a phext's name, so that SQ never reads it
/// should a crash leave it behind.
const PROOF_FILE: &str = ".write-proof";

/// User and group that own a tenant's files and run its SQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// Numeric user id.
    pub uid: u32,
    /// Numeric group id.
    pub gid: u32,
}

/// Creates the tenant's folder if it does not exist: a single system call.
pub(super) fn create(folder: &Path) -> Result<(), RuntimeError> {
    match fs::DirBuilder::new().mode(FOLDER_MODE).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(fault(folder, error)),
        _ => Ok(()),
    }
}

/// Creates the tenant's folder if it does not exist and proves that `owner` can write it. With
/// `None`, SQ runs as we do and ownership is left as it is.
pub(super) fn prepare(folder: &Path, owner: Option<Owner>) -> Result<(), RuntimeError> {
    create(folder)?;
    take_ownership(folder, owner, FOLDER_MODE).map_err(|reason| fault(folder, reason))?;
    for entry in fs::read_dir(folder).map_err(|error| fault(folder, error))? {
        let entry = entry.map_err(|error| fault(folder, error))?;
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            let path = entry.path();
            take_ownership(&path, owner, FILE_MODE).map_err(|reason| fault(&path, reason))?;
        }
    }
    prove_write(folder, owner).map_err(|error| fault(folder, error))
}

/// True when any uid can reach `path`: every folder above it lets everyone pass.
pub(super) fn reachable_by_others(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else { return false };
    path.ancestors()
        .skip(1)
        .all(|folder| fs::metadata(folder).is_ok_and(|meta| meta.mode() & 0o001 != 0))
}

// By value, because that is what `map_err` passes.
#[allow(clippy::needless_pass_by_value)]
fn fault(path: &Path, reason: impl ToString) -> RuntimeError {
    RuntimeError::Unwritable { path: path.display().to_string(), reason: reason.to_string() }
}

/// Gives `path` to the owner, with at least the bits of `mode`. Works on an open descriptor: between
/// a check of a path and a change to it, a tenant could put a link to a file of the host there.
fn take_ownership(path: &Path, owner: Option<Owner>, mode: u32) -> Result<(), String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match open(path, flags, Mode::empty()) {
        Ok(file) => fs::File::from(file),
        Err(Errno::LOOP) => return Err("it is a symbolic link".to_owned()),
        Err(error) => return Err(error.to_string()),
    };
    let meta = file.metadata().map_err(|error| error.to_string())?;
    if let Some(Owner { uid, gid }) = owner
        && meta.uid() != uid
    {
        // A hard link may be a second name of a file outside the folder.
        if meta.is_file() && meta.nlink() > 1 {
            return Err("it has a second hard link, possibly outside the folder".to_owned());
        }
        fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(|error| {
            format!("it belongs to uid {} and can't be given to {uid}: {error}", meta.uid())
        })?;
    }
    if meta.mode() & mode != mode {
        let wanted = fs::Permissions::from_mode((meta.mode() & 0o777) | mode);
        file.set_permissions(wanted).map_err(|error| {
            format!("its mode is {:o} and can't be changed: {error}", meta.mode())
        })?;
    }
    Ok(())
}

/// Proves that the file system accepts a write by the owner: it is not full, not mounted read-only,
/// and the owner is within its quota.
fn prove_write(folder: &Path, owner: Option<Owner>) -> io::Result<()> {
    let path = folder.join(PROOF_FILE);
    // Created exclusively, so that a link in its place is never followed.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&path)?;
    let written = match owner {
        None => file.write_all(b"proof\n"),
        Some(owner) => write_as(owner, file),
    };
    fs::remove_file(&path)?;
    written
}

/// Writes to `file` as the owner. Root itself could still write where the owner can't: into the
/// blocks that a file system reserves for root, and beyond a quota. The file is opened by us because
/// the owner need not be able to reach its folder.
fn write_as(Owner { uid, gid }: Owner, file: fs::File) -> io::Result<()> {
    fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    let output = Command::new("/bin/sh")
        .args(["-c", "echo proof"])
        .uid(uid)
        .gid(gid)
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(Stdio::piped())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("uid {uid} can't write a file there: {}", stderr.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_is_private_to_its_owner() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("alice");
        prepare(&folder, None).unwrap();
        fs::write(folder.join("a.phext"), "x").unwrap();
        fs::set_permissions(folder.join("a.phext"), fs::Permissions::from_mode(0o400)).unwrap();
        prepare(&folder, None).unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(folder.join("a.phext")).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn links_never_expose_files_of_the_host() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("alice");
        let host = root.path().join("host");
        fs::create_dir(&folder).unwrap();
        fs::write(&host, "the host's").unwrap();
        let other = Owner { uid: 10_001, gid: 10_001 };
        let owner = rustix::process::geteuid().is_root().then_some(other);

        // A symbolic link in place of the proof file is not written through.
        std::os::unix::fs::symlink(&host, folder.join(PROOF_FILE)).unwrap();
        prepare(&folder, owner).unwrap();
        assert_eq!(fs::read_to_string(&host).unwrap(), "the host's");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);

        // A hard link to a file of the host is not given to the tenant.
        let host_uid = fs::metadata(&host).unwrap().uid();
        fs::hard_link(&host, folder.join("a.phext")).unwrap();
        let prepared = prepare(&folder, owner);
        assert_eq!(prepared.is_err(), owner.is_some(), "{prepared:?}");
        assert_eq!(fs::metadata(&host).unwrap().uid(), host_uid);
    }

    #[test]
    fn unwritable_folder_is_named_in_the_error() {
        let fault = prepare(Path::new("/proc/alice"), None).unwrap_err().to_string();
        assert!(fault.starts_with("/proc/alice can't be written by the tenant: "), "{fault}");
    }
}
