//! Loads the rules of `envoy/nftables.conf` into a separate table for one port.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::tools;

/// The name of the table in the operators' file.
const TABLE: &str = "sq_gateway";

/// A loaded table of rules. Dropping it removes the table.
#[derive(Debug)]
pub struct Firewall {
    table: String,
}

/// The bounds of one address in the operators' file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientLimits {
    /// Connections at once.
    pub open: usize,
}

impl Firewall {
    /// Loads the rules for a port. Needs root.
    pub fn load(port: u16) -> Result<(Self, ClientLimits)> {
        let text = fs::read_to_string(tools::root().join("envoy/nftables.conf"))?;
        ensure!(text.contains("dport != 8443"), "the port is no longer in nftables.conf");
        let open = text
            .split_once("ct count over ")
            .and_then(|(_, after)| after.split_once(' ')?.0.parse().ok())
            .context("no `ct count over` in nftables.conf")?;
        let table = format!("{TABLE}_test_{port}");
        let text = text.replace(TABLE, &table).replace("8443", &port.to_string());
        let firewall = Self { table };
        nft(&["-f", "-"], &text)?;
        Ok((firewall, ClientLimits { open }))
    }
}

impl Drop for Firewall {
    fn drop(&mut self) {
        if let Err(error) = nft(&["delete", "table", "inet", &self.table], "") {
            eprintln!("the firewall's table is left: {error:#}");
        }
    }
}

fn nft(args: &[&str], input: &str) -> Result<()> {
    let mut command = Command::new("nft");
    let command = command.args(args).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("nft is missing (Debian: nftables)")?;
    child.stdin.take().context("nft has no input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
