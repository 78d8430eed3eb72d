//! Users and processes at the other end of a socket.

use std::collections::BTreeSet;

use rustix::process::geteuid;
use tokio::net::unix::UCred;

/// The superuser, who could read and write this process's memory anyway.
const ROOT: u32 = 0;

/// The process that connected, as the kernel reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Peer {
    /// Its effective user id.
    pub uid: u32,
    /// Its process id; `None` if it runs in a PID namespace that this one does not contain.
    pub pid: Option<i32>,
}

/// Users whose processes may connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedUsers(BTreeSet<u32>);

impl From<UCred> for Peer {
    fn from(credentials: UCred) -> Self {
        let pid = credentials.pid().filter(|pid| *pid > 0);
        Self { uid: credentials.uid(), pid }
    }
}

impl AllowedUsers {
    /// Allows this process's own user, root, and `others`.
    pub fn own_and(others: impl IntoIterator<Item = u32>) -> Self {
        let mut users = BTreeSet::from([ROOT, geteuid().as_raw()]);
        users.extend(others);
        Self(users)
    }

    pub(super) fn contains(&self, peer: Peer) -> bool {
        self.0.contains(&peer.uid)
    }

    /// Allows these users and no others, not even root.
    #[cfg(test)]
    pub(super) fn only(users: impl IntoIterator<Item = u32>) -> Self {
        Self(users.into_iter().collect())
    }
}
