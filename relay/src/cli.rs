//! The command line of `relay`.
//!
//! | file | contents |
//! |---|---|
//! | `audit.rs` | the log of what they change |
//! | `commands.rs` | the `relay registry` commands |
//! | `output.rs` | their output, and the care for a key that is printed once |
//! | `render.rs` | tenants as tables and as JSON |
//! | `serve.rs` | the `relay serve` command |

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use protocol::{KeyHash, TenantId, TierName};

use crate::registry::unit::parse_seconds;

mod audit;
pub mod commands;
mod output;
mod render;
pub mod serve;

/// Exit code of a faulty registry, or of an operation that failed.
pub const EXIT_FAULT: u8 = 1;
/// Exit code of a faulty configuration: `EX_USAGE` of sysexits.h, which supervisors can take to mean
/// that a restart does not help.
pub const EXIT_CONFIG: u8 = 64;

const EXAMPLES: &str = "\
Examples:
  relay registry init --file registry.phext
  relay registry add alice --tier free --file registry.phext
  relay registry check --file registry.phext
  relay serve --config relay.toml

Exit codes: 0 success; 1 the registry has a fault or could not be changed, or the relay failed;
2 wrong usage; 64 the configuration has a fault.";

const REGISTRY_EXAMPLES: &str = "\
Examples:
  relay registry add alice --tier pro --set storage='750 MB' --set x-email=alice@example.com
  relay registry rotate alice --overlap 24h      # the old key works for another day
  relay registry set alice tier=team storage=    # another tier; the tenant's storage line removed
  relay registry list --format json
  relay registry check && echo valid
  relay registry audit --verify

Each change is written down in audit.jsonl beside the file, before it is made. A command keeps comments and everything else in the file as it is. It refuses a file that is invalid
or looks truncated. A running relay loads a change within 100 ms.

Exit codes: 0 success; 1 the registry has a fault or could not be changed; 2 wrong usage.";

/// The relay of the SQ Cloud Gateway: verifies API keys against the registry.
#[derive(Debug, Parser)]
#[command(name = "relay", version, after_help = EXAMPLES)]
pub struct Cli {
    /// Command to run
    #[command(subcommand)]
    pub command: Command,
}

/// The commands of `relay`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve gateways over mutual TLS until SIGTERM or Ctrl-C
    Serve {
        /// Configuration file; relay.example.toml documents every setting
        #[arg(long, default_value = "relay.toml")]
        config: PathBuf,
    },
    /// Show or change the registry's file
    #[command(after_help = REGISTRY_EXAMPLES)]
    Registry(RegistryArgs),
}

/// Arguments of `relay registry`.
#[derive(Debug, Args)]
pub struct RegistryArgs {
    /// Command to run
    #[command(subcommand)]
    pub command: RegistryCommand,
    /// The registry's file
    #[arg(long, global = true, default_value = "registry.phext")]
    pub file: PathBuf,
    /// Change the file even if it looks truncated in comparison with the relay's last good copy
    #[arg(long, global = true)]
    pub allow_loss: bool,
}

/// The commands of `relay registry`.
#[derive(Debug, Subcommand)]
pub enum RegistryCommand {
    /// Create a registry with documented tiers and no tenants
    Init,
    /// Report every fault with its coordinate and line
    Check,
    /// List all tenants; print the monthly revenue of the active ones on stderr
    List {
        /// Monthly revenue target in US dollars
        #[arg(long, value_name = "USD", default_value_t = 380)]
        target: u32,
        /// Output as a table or as JSON
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Show one tenant with its limits and the digests of its keys
    Show {
        /// Tenant to show
        tenant: TenantId,
        /// Output as a table or as JSON
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Add a tenant; its new key is printed once and stored only as a digest
    Add {
        /// Name of the tenant: 1 to 40 of a-z, 0-9 and '-'
        tenant: TenantId,
        /// Tier that the tenant pays for
        #[arg(long)]
        tier: TierName,
        /// Further line: a limit, or x-… for a note; may be repeated
        #[arg(long = "set", value_name = "NAME=VALUE", value_parser = parse_assignment)]
        lines: Vec<(String, String)>,
        /// Use the key with this SHA-256 digest instead of a new one
        #[arg(long, value_name = "DIGEST")]
        key_sha256: Option<KeyHash>,
    },
    /// Set lines of a tenant: tier, status, a limit, x-…; an empty value removes the line
    Set {
        /// Tenant to change
        tenant: TenantId,
        /// Line to set; may be repeated
        #[arg(required = true, value_name = "NAME=VALUE", value_parser = parse_assignment)]
        lines: Vec<(String, String)>,
    },
    /// Give a tenant a new key, printed once; the old ones end after the overlap
    Rotate {
        /// Tenant to change
        tenant: TenantId,
        /// Time for which the old keys stay valid, such as 24h, 30min or 0
        #[arg(long, default_value = "24h", value_parser = parse_time)]
        overlap: u64,
    },
    /// Refuse a tenant's requests with 403
    Suspend {
        /// Tenant to suspend
        tenant: TenantId,
    },
    /// Serve a suspended tenant again
    Resume {
        /// Tenant to resume
        tenant: TenantId,
    },
    /// Remove a tenant and its keys; its data stays on the gateway host
    Remove {
        /// Tenant to remove
        tenant: TenantId,
    },
    /// Show who changed what, or check that the log of changes is whole
    Audit {
        /// Number of changes to show, the latest ones
        #[arg(long, value_name = "N", default_value_t = 50)]
        last: usize,
        /// Check every line instead; prints the hash of the last one, to be noted elsewhere
        #[arg(long)]
        verify: bool,
        /// Hash that some line must have, as noted earlier
        #[arg(long, value_name = "HASH", requires = "verify")]
        expect: Option<String>,
        /// Output as a table or as JSON
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
}

/// Output format of `list` and `show`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Table for people
    #[default]
    Table,
    /// JSON for programs
    Json,
}

fn parse_assignment(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE, such as burst=100")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

fn parse_time(text: &str) -> Result<u64, String> {
    parse_seconds(text).ok_or_else(|| "expected a time such as 24h, 30min or 90s".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
