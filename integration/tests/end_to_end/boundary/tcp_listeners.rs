//! TCP ports on which a process listens, read from `/proc`.

use std::collections::BTreeSet;
use std::fs;

use anyhow::Result;

/// State `LISTEN` in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// Returns the ports in order.
pub(super) fn of(pid: i32) -> Result<Vec<u16>> {
    let mut sockets = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let target = fs::read_link(entry?.path()).unwrap_or_default();
        let target = target.to_string_lossy();
        if let Some(inode) = target.strip_prefix("socket:[") {
            sockets.insert(inode.trim_end_matches(']').to_owned());
        }
    }
    let mut ports = BTreeSet::new();
    for table in ["tcp", "tcp6"] {
        let table = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        ports.extend(table.lines().filter_map(|line| listening_port(line, &sockets)));
    }
    Ok(ports.into_iter().collect())
}

/// The port of a line `slot: address:PORT remote STATE … inode …`, if one of `sockets` listens on it.
fn listening_port(line: &str, sockets: &BTreeSet<String>) -> Option<u16> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let is_listening = *fields.get(3)? == LISTEN && sockets.contains(*fields.get(9)?);
    let (_, port) = fields[1].rsplit_once(':')?;
    if is_listening { u16::from_str_radix(port, 16).ok() } else { None }
}
