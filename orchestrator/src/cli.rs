//! The commands of `orchestrator`.
//!
//! `serve` runs the daemon. All other commands ask a running one over its admin HTTP API and print
//! what it responds: a table for people, JSON or CSV for programs.

mod audit;
pub(crate) mod client;
mod snapshots;
mod status;
mod table;
mod usage;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use protocol::TenantId;
use tracing::warn;

use crate::api::{SleepReport, Status};
use crate::app;
use crate::config::Config;
use crate::host;
use audit::AuditArgs;
use client::{AdminClient, ClientError};
use snapshots::SnapshotsCommand;
use usage::UsageArgs;

/// Exit code of an invalid configuration or socket path (`EX_USAGE` of sysexits.h).
const INVALID: u8 = 64;
/// Exit code when no orchestrator responds or it is not ready (`EX_UNAVAILABLE`).
const UNAVAILABLE: u8 = 69;

/// The admin socket of a default configuration.
const DEFAULT_ADMIN: &str = "/run/sq-gateway/admin.sock";

const EXAMPLES: &str = "\
Examples:
  orchestrator serve --config /etc/sq-gateway/orchestrator.toml
  orchestrator status
  orchestrator usage --month 2026-11

Exit codes:
   0  success
   1  failure; the message says what to do
   2  invalid arguments
  64  invalid configuration file or socket path
  69  no orchestrator responds, or it is not ready";

const SERVE_EXAMPLES: &str = "\
Examples:
  orchestrator serve --config /etc/sq-gateway/orchestrator.toml
  RUST_LOG=debug orchestrator serve --config orchestrator.toml";

const STATUS_EXAMPLES: &str = "\
Examples:
  orchestrator status
  orchestrator status --format json --admin /run/sq-gateway/admin.sock";

const SLEEP_EXAMPLES: &str = "\
Examples:
  orchestrator sleep alice
  orchestrator sleep alice --force";

const REPAIRED_EXAMPLES: &str = "\
Example:
  orchestrator repaired alice";

/// Starts, watches and stops tenants' SQ databases, and publishes them to Envoy.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the orchestrator until SIGTERM or SIGINT.
    #[command(after_help = SERVE_EXAMPLES)]
    Serve {
        /// Configuration file; orchestrator.example.toml documents every key.
        #[arg(long)]
        config: PathBuf,
    },
    /// Show the tenants and the host.
    #[command(after_help = STATUS_EXAMPLES)]
    Status {
        #[command(flatten)]
        admin: AdminSocket,
        /// Output format of the status.
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Put a tenant to sleep as soon as no lease is live.
    #[command(after_help = SLEEP_EXAMPLES)]
    Sleep {
        /// Tenant to put to sleep.
        tenant: TenantId,
        /// Stop it now: requests in flight fail, and a tenant in use is started again at once.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        admin: AdminSocket,
    },
    /// List, restore or export point-in-time copies of a tenant's phexts.
    #[command(after_help = snapshots::EXAMPLES)]
    Snapshots {
        #[command(subcommand)]
        command: SnapshotsCommand,
        #[command(flatten)]
        admin: AdminSocket,
    },
    /// Show usage and revenue of a month; compare the ledger with Envoy; repair it; back it up.
    #[command(after_help = usage::EXAMPLES)]
    Usage(UsageArgs),
    /// Show which operator did what, or check that the log of it is whole.
    #[command(after_help = audit::EXAMPLES)]
    Audit(AuditArgs),
    /// Let a damaged or failing tenant be started again at its next request.
    #[command(after_help = REPAIRED_EXAMPLES)]
    Repaired {
        /// Tenant whose files were repaired.
        tenant: TenantId,
        #[command(flatten)]
        admin: AdminSocket,
    },
}

/// The admin socket of a running orchestrator.
#[derive(Debug, Args)]
struct AdminSocket {
    /// Admin socket of the orchestrator.
    #[arg(
        long = "admin",
        value_name = "PATH",
        env = "SQ_ADMIN",
        default_value = DEFAULT_ADMIN,
        global = true
    )]
    path: PathBuf,
}

impl AdminSocket {
    fn client(&self) -> Result<AdminClient, ClientError> {
        // An empty variable counts as unset, as shells have it.
        let is_empty = self.path.as_os_str().is_empty();
        AdminClient::orchestrator(if is_empty { Path::new(DEFAULT_ADMIN) } else { &self.path })
    }
}

/// Output format of `status`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A table for people.
    #[default]
    Table,
    /// JSON for programs.
    Json,
}

impl Cli {
    /// Runs the command. An error is printed to standard error and becomes the exit code.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send + 'static) -> ExitCode {
        let result = match self.command {
            Command::Serve { config } => serve(&config, shutdown).await.map(|()| String::new()),
            Command::Status { admin, format } => show_status(&admin, format).await,
            Command::Sleep { tenant, force, admin } => sleep(&admin, &tenant, force).await,
            Command::Snapshots { command, admin } => snapshots::run(&admin, command).await,
            Command::Usage(args) => usage::run(args).await,
            Command::Audit(args) => audit::run(args).await,
            Command::Repaired { tenant, admin } => repaired(&admin, &tenant).await,
        };
        match result {
            Ok(output) => {
                print!("{output}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("orchestrator: {error:#}");
                exit_code(&error)
            }
        }
    }
}

fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error.is::<settings::Faults>() {
        return ExitCode::from(INVALID);
    }
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::InvalidPath { .. }) => ExitCode::from(INVALID),
        Some(ClientError::Unreachable { .. } | ClientError::Refused { status: 503, .. }) => {
            ExitCode::from(UNAVAILABLE)
        }
        _ => ExitCode::FAILURE,
    }
}

async fn serve(
    config: &Path,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let config = Config::load(config)?;
    for warning in config.warnings() {
        warn!("{warning}");
    }
    host::keep_private();
    host::raise_open_files();
    app::serve(config, shutdown).await
}

async fn show_status(admin: &AdminSocket, format: Format) -> anyhow::Result<String> {
    let status: Status = admin.client()?.get("/v1/tenants").await?;
    Ok(match format {
        Format::Json => serde_json::to_string(&status)? + "\n",
        Format::Table => status::render(&status),
    })
}

async fn sleep(admin: &AdminSocket, tenant: &TenantId, force: bool) -> anyhow::Result<String> {
    let query = if force { "?force=true" } else { "" };
    let path = format!("/v1/tenants/{tenant}/sleep{query}");
    let report: SleepReport = admin.client()?.post(&path).await?;
    Ok(match (report.state.as_str(), report.earliest_ms) {
        ("awake", 1..) => format!(
            "{tenant} is awake and goes to sleep once its leases have ended, in {} ms at the \
             earliest\n",
            report.earliest_ms
        ),
        (state, _) => format!("{tenant} is {state}\n"),
    })
}

async fn repaired(admin: &AdminSocket, tenant: &TenantId) -> anyhow::Result<String> {
    let path = format!("/v1/tenants/{tenant}/repaired");
    let report: SleepReport = admin.client()?.post(&path).await?;
    Ok(format!("{tenant} is {}\n", report.state))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_command_has_help_with_examples() {
        let mut cli = Cli::command();
        cli.build();
        cli.clone().debug_assert();
        let mut commands = vec![cli];
        while let Some(command) = commands.pop() {
            let own = command.get_subcommands().filter(|command| command.get_name() != "help");
            commands.extend(own.cloned());
            let name = command.get_name().to_owned();
            assert!(command.get_about().is_some(), "{name}");
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.starts_with("Example"), "{name}");
        }
    }

    #[test]
    fn the_admin_socket_may_be_named_after_a_subcommand() {
        for words in [
            "snapshots --admin /a list alice",
            "snapshots list alice --admin /a",
            "usage reconcile --envoy-admin /e --admin /a",
            "usage repair list --admin /a",
        ] {
            let words = std::iter::once("orchestrator").chain(words.split(' '));
            let cli = Cli::try_parse_from(words).unwrap();
            let text = format!("{cli:?}");
            assert!(text.contains("\"/a\""), "{text}");
        }
    }

    #[test]
    fn exit_codes_tell_the_kinds_of_failure() {
        let invalid = ClientError::InvalidPath { path: "x".into(), option: "--admin" };
        assert_eq!(exit_code(&invalid.into()), ExitCode::from(INVALID));
        let refused = |status| ClientError::Refused { status, text: String::new() };
        assert_eq!(exit_code(&refused(503).into()), ExitCode::from(UNAVAILABLE));
        assert_eq!(exit_code(&refused(404).into()), ExitCode::FAILURE);
    }
}
