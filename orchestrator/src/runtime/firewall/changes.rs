//! Changes of any nftables rule on this host, as the kernel announces them.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Multicast group `NFNLGRP_NFTABLES` as a bit (linux/netfilter/nfnetlink.h).
const NFTABLES_GROUP: u32 = 1 << (7 - 1);

/// Size of the buffer that announcements are read into; their content is not used.
const BUFFER_BYTES: usize = 8 << 10;

/// A subscription to the kernel's announcements.
pub(super) struct Changes(AsyncFd<OwnedFd>);

impl Changes {
    /// Subscribes. Needs `CAP_NET_ADMIN`, as changing rules does.
    // Deprecated for types that may close their descriptor on their own, which `OwnedFd` can't.
    #[allow(deprecated)]
    pub(super) fn subscribe() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(NETFILTER))?;
        bind(&socket, &SocketAddrNetlink::new(0, NFTABLES_GROUP))?;
        Ok(Self(AsyncFd::with_interest(socket, Interest::READABLE)?))
    }

    /// Waits for a change, and discards its description.
    pub(super) async fn next(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        let mut buffer = [0_u8; BUFFER_BYTES];
        loop {
            match recv(self.0.get_ref(), &mut buffer[..], RecvFlags::DONTWAIT) {
                // More announcements than the socket holds: what they were about is not read anyway.
                Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    ready.clear_ready();
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
