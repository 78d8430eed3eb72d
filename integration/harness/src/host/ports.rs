//! Ports that nobody listens on.
//!
//! Not from the kernel's ephemeral range: any connection of this machine may take one of those
//! between its choice here and its use there, and so may any SQ. A port that was handed out stays
//! bound, not listening, for the life of this process: others like us pass it over, while the part
//! that it is meant for binds it beside us, with `SO_REUSEADDR` as servers do.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher as _, Hasher as _};
use std::net::{Ipv4Addr, TcpListener};
use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use tokio::net::TcpSocket;

/// Above what services are usually given.
const LOWEST: u16 = 10_000;

/// What this process has handed out. A suite hands out some hundreds.
static HELD: Mutex<Vec<TcpSocket>> = Mutex::new(Vec::new());

/// A port that nobody has, and that nobody gets from here while this process lives.
pub fn free() -> Result<u16> {
    let ephemeral = ephemeral();
    let theirs = |port: &u16| ephemeral.as_ref().is_some_and(|range| range.contains(port));
    let outside: Vec<u16> = (LOWEST..=u16::MAX).filter(|port| !theirs(port)).collect();
    // Where a machine leaves none, its own range must do.
    let ports = if outside.is_empty() { (LOWEST..=u16::MAX).collect() } else { outside };
    // Each process begins elsewhere, so that few meet.
    let chance = usize::try_from(RandomState::new().build_hasher().finish() >> 32)?;
    let start = chance % ports.len();
    let held = ports[start..].iter().chain(&ports[..start]).find_map(|port| hold(*port).ok());
    let (port, socket) = held.context("no free port")?;
    HELD.lock().unwrap_or_else(PoisonError::into_inner).push(socket);
    Ok(port)
}

/// Binds a port; fails when anyone else has it, listening or not.
fn hold(port: u16) -> Result<(u16, TcpSocket)> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::UNSPECIFIED, port).into())?;
    // Only now, or it would have been shared with whoever has it.
    socket.set_reuseaddr(true)?;
    Ok((port, socket))
}

/// What the kernel gives to connections.
fn ephemeral() -> Option<RangeInclusive<u16>> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut ends = text.split_whitespace().map(str::parse);
    Some(ends.next()?.ok()?..=ends.next()?.ok()?)
}

/// An error that names the port when somebody listens on it.
pub fn check(port: u16, what: &str) -> Result<()> {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        .map(drop)
        .with_context(|| format!("port {port} ({what}) can't be used"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_handed_out_once_and_can_be_listened_on() {
        let (one, two) = (free().unwrap(), free().unwrap());
        assert_ne!(one, two);
        assert!(hold(one).is_err(), "another process would be given {one} as well");
        for address in [Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED] {
            let listens = TcpListener::bind((address, one)).unwrap();
            drop(listens);
        }
    }

    #[test]
    fn no_connection_is_given_a_port_of_ours() {
        let port = free().unwrap();
        assert!(!ephemeral().unwrap().contains(&port), "{port}");
    }
}
