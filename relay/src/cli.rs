//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use protocol::{KeyHash, TenantId, TierName};

use crate::registry::limit_field::parse_seconds;

pub mod commands;
pub mod render;

/// Exit code: a fault in the registry, or something went wrong.
pub const FAULT: u8 = 1;
/// Exit code: a fault in the configuration. `EX_USAGE` of sysexits.h, which supervisors can take
/// for "starting it again does not help".
pub const CONFIG: u8 = 64;

const EXAMPLES: &str = "\
Examples:
  relay registry init --file registry.phext
  relay registry add alice --tier free --file registry.phext
  relay registry check --file registry.phext
  relay serve --config relay.toml

Exit codes: 0 done; 1 a fault in the registry, or it could not be changed; 2 wrong usage;
64 a fault in the configuration.";

const REGISTRY_EXAMPLES: &str = "\
Examples:
  relay registry add alice --tier pro --set storage='750 MB' --set x-email=alice@example.com
  relay registry rotate alice --overlap 24h      # the old key works for another day
  relay registry set alice tier=team storage=    # another tier; its own storage limit taken out
  relay registry list --format json

A command keeps comments and everything else in the file as it is, and refuses a file that is not
valid or looks cut. The relay takes a change over within 100 ms.";

/// The ranch side of the SQ cloud gateway: answers which key is good.
#[derive(Debug, Parser)]
#[command(name = "relay", version, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answer gateways (mutual TLS only), until SIGTERM or Ctrl-C
    Serve {
        /// The configuration, such as relay.example.toml
        #[arg(long, default_value = "relay.toml")]
        config: PathBuf,
    },
    /// Look at the registry's file or change it
    #[command(after_help = REGISTRY_EXAMPLES)]
    Registry(Registry),
}

/// A command on the registry's file.
#[derive(Debug, Args)]
pub struct Registry {
    /// What to do
    #[command(subcommand)]
    pub action: Action,
    /// The registry
    #[arg(long, global = true, default_value = "registry.phext")]
    pub file: PathBuf,
    /// Change it though it looks cut beside what the relay last answered
    #[arg(long, global = true)]
    pub allow_loss: bool,
}

/// What to do with the registry's file.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Make a registry with documented tiers and no tenants
    Init,
    /// Tell every fault with its coordinate and line
    Check,
    /// Show all tenants, and on stderr what the active ones pay a month
    List {
        /// What they should pay together, US dollars a month
        #[arg(long, value_name = "USD", default_value_t = 380)]
        target: u32,
        /// How
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Show one tenant with its limits and keys (digests)
    Show {
        /// Who
        tenant: TenantId,
        /// How
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Add a tenant; its new key is printed once and stored only as a digest
    Add {
        /// Its name: 1 to 40 of a-z, 0-9 and '-'
        tenant: TenantId,
        /// The tier it pays for
        #[arg(long)]
        tier: TierName,
        /// Further lines: a limit of its own, or x-… for notes; may be repeated
        #[arg(long = "set", value_name = "NAME=VALUE", value_parser = assignment)]
        lines: Vec<(String, String)>,
        /// Use the key with this SHA-256 instead of a new one
        #[arg(long, value_name = "DIGEST")]
        key_sha256: Option<KeyHash>,
    },
    /// Change lines of a tenant: tier, status, a limit, x-…; an empty value takes the line out
    Set {
        /// Who
        tenant: TenantId,
        /// What
        #[arg(required = true, value_name = "NAME=VALUE", value_parser = assignment)]
        lines: Vec<(String, String)>,
    },
    /// Give a tenant a new key, printed once; the old ones end after the overlap
    Rotate {
        /// Who
        tenant: TenantId,
        /// How long the old keys go on, such as 24h, 30min or 0
        #[arg(long, default_value = "24h", value_parser = seconds)]
        overlap: u64,
    },
    /// Answer a tenant's requests with 403
    Suspend {
        /// Who
        tenant: TenantId,
    },
    /// Serve a suspended tenant again
    Resume {
        /// Who
        tenant: TenantId,
    },
    /// Take a tenant and its keys out; its data stays on the gateway host
    Remove {
        /// Who
        tenant: TenantId,
    },
}

/// How to show something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

fn assignment(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

fn seconds(text: &str) -> Result<u64, String> {
    parse_seconds(text).ok_or_else(|| "write a time such as 24h, 30min or 90s".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
