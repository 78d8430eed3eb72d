//! Whether SQ answers, and whether it can store what it is sent.
//!
//! SQ answers an unauthenticated GET with 401 before it touches any state: that is the probe. A
//! probe is always a whole request read to its end, because SQ 0.5.0 dies of a connection that is
//! opened and closed.
//!
//! SQ 0.6.0 answers 200 and stores nothing when its folder is not writable, so a start proves the
//! folder first: owner and mode of everything in it are checked (and set right, when we may) against
//! the uid SQ will have, and that uid writes a file, which is removed. Nothing is written through SQ:
//! that would put a phext into the tenant's data.

use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{Gid, Mode, OFlags, Uid, fchown, open};
use rustix::io::Errno;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::runtime::RuntimeError;
use crate::storage::vault::files;

/// A whole request that changes nothing.
const PROBE: &[u8] = b"GET /api/v2/version HTTP/1.1\r\nHost: sq\r\n\r\n";

/// What every SQ says to it.
const UNAUTHORIZED: &[u8] = b"HTTP/1.1 401";

/// SQ answers 1 ms after exec; a refused connection costs nothing.
const POLL: Duration = Duration::from_millis(3);

/// The answer is a few dozen bytes; whoever sends more is not SQ.
const ANSWER_MAX_BYTES: u64 = 4096;

/// Who SQ runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// Waits until SQ answers.
pub async fn answers(address: SocketAddr, within: Duration) -> Result<(), RuntimeError> {
    let deadline = Instant::now() + within;
    let waited_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
    loop {
        // The probe may take all the time there is: giving up on it could kill SQ 0.5.0.
        let left = deadline.saturating_duration_since(Instant::now());
        match timeout(left, probe(address)).await {
            Ok(Ok(head)) if head.starts_with(UNAUTHORIZED) => return Ok(()),
            Ok(Ok(head)) if !head.is_empty() => {
                return Err(RuntimeError::Failed(format!(
                    "{address} answers a request without a key with {:?} instead of 401",
                    String::from_utf8_lossy(&head[..head.len().min(20)])
                )));
            }
            Ok(_) if Instant::now() + POLL < deadline => sleep(POLL).await,
            _ => return Err(RuntimeError::NotReady { waited_ms }),
        }
    }
}

async fn probe(address: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(PROBE).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX_BYTES).read_to_end(&mut answer).await?;
    Ok(answer)
}

fn fault(path: &Path, reason: String) -> RuntimeError {
    RuntimeError::Unwritable { path: path.display().to_string(), reason }
}

/// Makes the tenant's folder if need be: one call of the kernel.
pub fn make_folder(folder: &Path) -> Result<(), RuntimeError> {
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(fault(folder, e.to_string())),
    }
}

/// Makes the tenant's folder if need be and proves that `owner` can write it; `None`: we run SQ
/// with our own uid.
pub fn prepare_folder(folder: &Path, owner: Option<Owner>) -> Result<(), RuntimeError> {
    make_folder(folder)?;
    own(folder, owner, 0o700).map_err(|reason| fault(folder, reason))?;
    let entries = fs::read_dir(folder).map_err(|e| fault(folder, e.to_string()))?;
    for entry in entries {
        let entry = entry.map_err(|e| fault(folder, e.to_string()))?;
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            own(&entry.path(), owner, 0o600).map_err(|reason| fault(&entry.path(), reason))?;
        }
    }
    prove_write(folder, owner).map_err(|e| fault(folder, e.to_string()))
}

/// Gives `path` to the owner, with at least the bits of `mode`. By its descriptor: between a look at
/// a path and a change to it, whoever can write the folder may put a link there.
fn own(path: &Path, owner: Option<Owner>, mode: u32) -> Result<(), String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let open = match open(path, flags, Mode::empty()) {
        Ok(file) => fs::File::from(file),
        Err(Errno::LOOP) => return Err("it is a symbolic link".to_owned()),
        Err(e) => return Err(e.to_string()),
    };
    let meta = open.metadata().map_err(|e| e.to_string())?;
    if let Some(Owner { uid, gid }) = owner
        && meta.uid() != uid
    {
        if meta.is_file() && meta.nlink() > 1 {
            return Err("it has another name elsewhere: whose it is can't be told".to_owned());
        }
        fchown(&open, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(|e| {
            format!("it belongs to uid {} and can't be given to {uid}: {e}", meta.uid())
        })?;
    }
    if meta.mode() & mode != mode {
        open.set_permissions(fs::Permissions::from_mode((meta.mode() & 0o777) | mode))
            .map_err(|e| format!("its mode is {:o} and can't be changed: {e}", meta.mode()))?;
    }
    Ok(())
}

/// The file system takes a write of the owner's: not full, not mounted read-only, within its quota.
fn prove_write(folder: &Path, owner: Option<Owner>) -> io::Result<()> {
    // Not a phext's name, so that SQ never reads it should it be left behind.
    let path = folder.join(".write-proof");
    let mut file = files::create(&path)?;
    let written = match owner {
        None => file.write_all(b"proof\n"),
        Some(owner) => write_as(owner, file),
    };
    fs::remove_file(&path)?;
    written
}

/// Root may write where the owner may not any more: in the blocks that a file system keeps for it,
/// and beyond a quota. The file is opened here, for the owner need not reach its folder.
fn write_as(Owner { uid, gid }: Owner, file: fs::File) -> io::Result<()> {
    fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    let mut writer = Command::new("/bin/sh");
    let done = writer.args(["-c", "echo proof"]).uid(uid).gid(gid).stdin(Stdio::null());
    let done = done.stdout(file).stderr(Stdio::piped()).output()?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr);
    Err(io::Error::other(format!("uid {uid} can't write a file there: {}", said.trim())))
}

/// Whether a stranger's uid can reach `path`: every folder above it lets everyone pass.
pub fn reachable_by_others(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else { return false };
    path.ancestors()
        .skip(1)
        .all(|folder| fs::metadata(folder).is_ok_and(|meta| meta.mode() & 0o001 != 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// A server that answers each connection with the next text.
    async fn server(answers: &'static [&'static str]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; PROBE.len()];
                stream.read_exact(&mut request).await.unwrap();
                assert_eq!(request, PROBE);
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        address
    }

    const SOON: Duration = Duration::from_millis(500);

    #[tokio::test]
    async fn sq_is_ready_when_it_refuses_a_request_without_a_key() {
        let address = server(&["", "HTTP/1.1 401 Unauthorized\r\n\r\n"]).await;
        assert_eq!(answers(address, SOON).await, Ok(()));
    }

    #[tokio::test]
    async fn whoever_answers_without_a_key_is_not_our_sq() {
        let address = server(&["HTTP/1.1 200 OK\r\n\r\n"]).await;
        assert!(matches!(answers(address, SOON).await, Err(RuntimeError::Failed(_))));
    }

    #[tokio::test]
    async fn nobody_there_is_not_ready_in_time() {
        let address = server(&[]).await;
        let late = answers(address, Duration::from_millis(20)).await;
        assert_eq!(late, Err(RuntimeError::NotReady { waited_ms: 20 }));
    }

    #[test]
    fn a_folder_is_made_for_its_owner_alone() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("alice");
        prepare_folder(&folder, None).unwrap();
        fs::write(folder.join("a.phext"), "x").unwrap();
        fs::set_permissions(folder.join("a.phext"), fs::Permissions::from_mode(0o400)).unwrap();
        prepare_folder(&folder, None).unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(folder.join("a.phext")).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn nothing_of_the_host_is_written_or_given_away_through_a_tenant_s_folder() {
        let root = tempfile::tempdir().unwrap();
        let (folder, host) = (root.path().join("alice"), root.path().join("host"));
        fs::create_dir(&folder).unwrap();
        fs::write(&host, "the host's").unwrap();
        std::os::unix::fs::symlink(&host, folder.join(".write-proof")).unwrap();
        let other = Owner { uid: 10_001, gid: 10_001 };
        let owner = rustix::process::geteuid().is_root().then_some(other);
        prepare_folder(&folder, owner).unwrap();
        assert_eq!(fs::read_to_string(&host).unwrap(), "the host's");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        let mine = fs::metadata(&host).unwrap().uid();
        fs::hard_link(&host, folder.join("a.phext")).unwrap();
        let given = prepare_folder(&folder, owner);
        assert_eq!(given.is_err(), owner.is_some(), "{given:?}");
        assert_eq!(fs::metadata(&host).unwrap().uid(), mine);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named_with_the_reason() {
        let fault = prepare_folder(Path::new("/proc/alice"), None).unwrap_err().to_string();
        assert!(fault.starts_with("/proc/alice can't be written by the tenant: "), "{fault}");
    }
}
