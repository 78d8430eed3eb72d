//! One address opens as many TLS connections as it can and sends nothing on them.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;
use harness::Stack;
use harness::client::raw::Raw;
use harness::host::nftables::{ClientLimits, Firewall};
use harness::{Client, Http};
use tokio::time::timeout;

/// The address of the attacker.
pub const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// An address of someone else.
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
/// Failures in a row after which the attacker has as many connections as it can get.
const FAILURES: usize = 20;
/// Deadline for one connection.
const CONNECT: Duration = Duration::from_secs(2);

/// Opens connections from `address` until that fails repeatedly, at most `most`. Dropping the result
/// closes them.
pub async fn open(stack: &Stack, address: Ipv4Addr, most: usize) -> Vec<Raw> {
    let ca = stack.certs.ca();
    let mut open = Vec::new();
    let mut failures = 0;
    while open.len() < most && failures < FAILURES {
        let connection = Raw::connect_from(address, stack.listen.https, &ca, b"h2");
        match timeout(CONNECT, connection).await {
            Ok(Ok(raw)) => {
                failures = 0;
                open.push(raw);
            }
            _ => failures += 1,
        }
    }
    open
}

/// A client with a tenant's key that connects from another address of the loopback.
pub fn other_client(stack: &Stack, tenant: &str) -> Result<Client> {
    let client = Client::from_address(&stack.url(), &stack.certs.ca(), Http::Two, OTHER.into())?;
    Ok(client.key(stack.key(tenant)?))
}

/// Loads the operators' firewall rules for the stack's port.
pub fn firewall(stack: &Stack) -> Result<(Firewall, ClientLimits)> {
    Firewall::load(stack.listen.https)
}
