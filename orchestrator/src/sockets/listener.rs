//! A listening Unix socket that accepts allowed peers only.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use futures_util::{Stream, stream};
use prometheus_client::metrics::counter::Counter;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, sleep, timeout};
use tracing::{error, warn};

use super::{AllowedUsers, Peer, folder};

/// Pause after a failed accept, such as one for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// Interval of log lines about refused peers: one that tries all the time must not fill the log.
const LOG_INTERVAL: Duration = Duration::from_mins(1);
/// Deadline for connecting to a socket that exists already. A running server accepts at once.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Who may connect to a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Users whose processes are accepted.
    pub users: AllowedUsers,
    /// Group of the socket and of its folder; `None` leaves them as they are made.
    pub group: Option<u32>,
    /// Mode of the socket.
    pub mode: u32,
}

/// A bound socket.
#[derive(Debug)]
pub struct PeerListener {
    name: &'static str,
    listener: UnixListener,
    users: AllowedUsers,
    refused: Counter,
    log: RefusalLog,
}

/// Counts refusals between two log lines.
#[derive(Debug, Default)]
struct RefusalLog {
    logged_at: Option<Instant>,
    unlogged: u64,
}

impl PeerListener {
    /// Binds the socket at `path`, whose folder is made if it does not exist. A socket that a dead
    /// process left is replaced. Refused connections are counted in `refused`.
    pub async fn bind(
        name: &'static str,
        path: &Path,
        access: Access,
        refused: Counter,
    ) -> anyhow::Result<Self> {
        let folder = path.parent().context("it has no folder")?;
        folder::prepare(folder, access.group)
            .with_context(|| format!("the folder {} can't be used", folder.display()))?;
        remove_stale(path).await?;
        let listener = UnixListener::bind(path)?;
        if let Some(group) = access.group {
            chown(path, None, Some(group)).with_context(|| format!("no group {group} for it"))?;
        }
        fs::set_permissions(path, Permissions::from_mode(access.mode))?;
        Ok(Self { name, listener, users: access.users, refused, log: RefusalLog::default() })
    }

    /// Waits for the next connection of an allowed user. Others are closed.
    pub async fn accept_peer(&mut self) -> (UnixStream, Peer) {
        loop {
            let accepted = self.listener.accept().await;
            let credentials = accepted.and_then(|(stream, _)| Ok((stream.peer_cred()?, stream)));
            match credentials {
                Ok((credentials, stream)) => {
                    let peer = Peer::from(credentials);
                    if self.users.contains(peer) {
                        return (stream, peer);
                    }
                    self.on_refused(peer);
                }
                // The client has left already.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    error!(socket = self.name, %error, "connection can't be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// The connections of allowed users, without end.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<UnixStream>> {
        stream::unfold(self, |mut listener| async {
            let (connection, _) = listener.accept_peer().await;
            Some((Ok(connection), listener))
        })
    }

    fn on_refused(&mut self, peer: Peer) {
        self.refused.inc();
        if let Some(count) = self.log.count(Instant::now()) {
            let Peer { uid, pid } = peer;
            warn!(socket = self.name, uid, pid, count, "connection of another user refused");
        }
    }
}

impl RefusalLog {
    /// Counts a refusal; returns the number since the last line if a line is due.
    fn count(&mut self, now: Instant) -> Option<u64> {
        self.unlogged += 1;
        if self.logged_at.is_some_and(|at| now < at + LOG_INTERVAL) {
            return None;
        }
        self.logged_at = Some(now);
        Some(std::mem::take(&mut self.unlogged))
    }
}

impl Listener for PeerListener {
    type Io = UnixStream;
    type Addr = Peer;

    async fn accept(&mut self) -> (UnixStream, Peer) {
        self.accept_peer().await
    }

    fn local_addr(&self) -> io::Result<Peer> {
        Err(ErrorKind::Unsupported.into())
    }
}

impl Connected<IncomingStream<'_, PeerListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, PeerListener>) -> Self {
        *stream.remote_addr()
    }
}

/// Removes the socket of a process that has ended. Fails if another process listens on it, or if it
/// is not a socket.
async fn remove_stale(path: &Path) -> anyhow::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
        Ok(metadata) => ensure!(metadata.file_type().is_socket(), "it is a file and not a socket"),
    }
    match timeout(PROBE_TIMEOUT, UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
            Ok(fs::remove_file(path)?)
        }
        Ok(Err(error)) => Err(error).context("it exists and can't be replaced"),
        Ok(Ok(_)) | Err(_) => bail!("another process listens on it"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::path::PathBuf;

    use tokio::io::AsyncReadExt;

    use super::*;

    const NO_USER: u32 = 12_345;

    fn access(users: AllowedUsers) -> Access {
        Access { users, group: None, mode: 0o660 }
    }

    fn socket() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sockets/gate.sock");
        (dir, path)
    }

    async fn bind(path: &Path, users: AllowedUsers) -> anyhow::Result<PeerListener> {
        PeerListener::bind("gate", path, access(users), Counter::default()).await
    }

    #[tokio::test]
    async fn own_user_is_accepted_with_its_process() {
        let (_dir, path) = socket();
        let mut listener = bind(&path, AllowedUsers::own_and([])).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        let _client = UnixStream::connect(&path).await.unwrap();
        let (_, peer) = listener.accept_peer().await;
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!((peer.uid, peer.pid), (rustix::process::geteuid().as_raw(), Some(own)));
        assert_eq!(listener.refused.get(), 0);
    }

    #[tokio::test]
    async fn other_user_is_closed_and_counted() {
        let (_dir, path) = socket();
        // The kernel reports this process's user, who is not allowed here.
        let mut listener = bind(&path, AllowedUsers::only([NO_USER])).await.unwrap();
        let refused = listener.refused.clone();
        let mut client = UnixStream::connect(&path).await.unwrap();
        let mut response = Vec::new();
        tokio::select! {
            _ = listener.accept_peer() => unreachable!("the user is not allowed"),
            read = client.read_to_end(&mut response) => assert_eq!(read.unwrap(), 0),
        }
        assert_eq!(refused.get(), 1);
    }

    #[tokio::test]
    async fn stale_socket_is_replaced_and_live_one_kept() {
        let (_dir, path) = socket();
        let listener = bind(&path, AllowedUsers::own_and([])).await.unwrap();
        let error = bind(&path, AllowedUsers::own_and([])).await.unwrap_err();
        assert!(error.to_string().contains("another process listens"), "{error}");
        drop(listener);
        assert!(path.exists());
        bind(&path, AllowedUsers::own_and([])).await.unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        let error = bind(&path, AllowedUsers::own_and([])).await.unwrap_err();
        assert!(error.to_string().contains("not a socket"), "{error}");
    }

    #[tokio::test]
    async fn refusals_are_logged_once_a_minute() {
        let mut log = RefusalLog::default();
        let start = Instant::now();
        let seconds = |s| start + Duration::from_secs(s);
        assert_eq!(log.count(start), Some(1));
        assert_eq!(log.count(seconds(1)), None);
        assert_eq!(log.count(seconds(59)), None);
        assert_eq!(log.count(seconds(60)), Some(3));
    }
}
