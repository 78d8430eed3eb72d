//! Firewall rules as the orchestrator makes them, one nftables table per data root.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use protocol::containers;

/// Bit of the capability `CAP_NET_ADMIN` (linux/capability.h).
const NET_ADMIN: u32 = 12;

/// True if this process may make firewall rules.
pub fn is_permitted() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    bits.is_some_and(|bits| bits & (1 << NET_ADMIN) != 0)
}

/// Name of the table of an orchestrator with this data root.
pub fn table(data: &Path) -> String {
    let data = data.canonicalize().unwrap_or_else(|_| data.to_owned());
    format!("sq-gateway-{}", containers::installation_id(data.as_os_str().as_encoded_bytes()))
}

/// Removes the table of an orchestrator with this data root, if there is one.
pub(crate) fn remove(data: &Path) {
    if !is_permitted() {
        return;
    }
    let mut nft = Command::new("nft");
    nft.args(["delete", "table", "inet", &table(data)]).stderr(Stdio::null());
    // There is no table if the orchestrator never made one.
    let _ = nft.status();
}
