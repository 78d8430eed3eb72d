//! Free ports of this machine.
//!
//! They are not taken from the kernel's ephemeral range: any outgoing connection could occupy such
//! a port between its choice here and its use by a part. A port that was handed out stays bound,
//! but not listening, until this process ends: other processes that choose ports skip it, while
//! the part that it is meant for binds it too, with `SO_REUSEADDR` as servers do.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::RangeInclusive;

use anyhow::{Context, Result};
use parking_lot::Mutex;
use tokio::net::TcpSocket;

/// Lowest port that is handed out, above those of usual services.
const LOWEST: u16 = 10_000;

/// Sockets of all ports that this process has handed out, some hundreds in a suite.
static RESERVED: Mutex<Vec<TcpSocket>> = Mutex::new(Vec::new());

/// Reserves a free port until this process ends.
pub fn free() -> Result<u16> {
    let ephemeral = ephemeral_range();
    let is_ephemeral = |port: &u16| ephemeral.as_ref().is_some_and(|range| range.contains(port));
    let outside: Vec<u16> = (LOWEST..=u16::MAX).filter(|port| !is_ephemeral(port)).collect();
    // On a machine whose ephemeral range covers all ports it has to do.
    let ports = if outside.is_empty() { (LOWEST..=u16::MAX).collect() } else { outside };
    // Processes start at different places, so that their searches rarely meet.
    let start = fastrand::usize(..ports.len());
    let candidates = ports[start..].iter().chain(&ports[..start]);
    let (port, socket) = candidates
        .copied()
        .find_map(|port| Some((port, bind(port).ok()?)))
        .context("no free port")?;
    RESERVED.lock().push(socket);
    Ok(port)
}

/// Binds a port; fails if another process has it, listening or not.
fn bind(port: u16) -> Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::UNSPECIFIED, port).into())?;
    // Set after binding: before it, the port could have been shared with its owner.
    socket.set_reuseaddr(true)?;
    Ok(socket)
}

/// Ports that the kernel gives to outgoing connections.
fn ephemeral_range() -> Option<RangeInclusive<u16>> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut ends = text.split_whitespace().map(str::parse);
    Some(ends.next()?.ok()?..=ends.next()?.ok()?)
}

/// Fails with the port and the `name` of its purpose if another process has it.
pub fn check(port: u16, name: &str) -> Result<()> {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        .map(drop)
        .with_context(|| format!("port {port} ({name}) can't be used"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_is_handed_out_once_and_accepts_a_listener() {
        let one = free().unwrap();
        let two = free().unwrap();
        assert_ne!(one, two);
        assert!(bind(one).is_err(), "another process would be given {one} as well");
        for address in [Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED] {
            let listener = TcpListener::bind((address, one)).unwrap();
            drop(listener);
        }
    }

    #[test]
    fn ports_are_outside_the_ephemeral_range() {
        let port = free().unwrap();
        assert!(!ephemeral_range().unwrap().contains(&port), "{port}");
    }
}
