//! `orchestrator usage`: usage and revenue of a month, reconciliation with Envoy, repair, backup.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use protocol::TenantId;
use protocol::calendar::Month;

use super::AdminSocket;
use super::client::AdminClient;
use super::table;
use crate::api::{LedgerFile, MonthUsage};
use crate::usage::store::Store;
use repair::RepairCommand;

mod month;
mod reconcile;
mod repair;
#[cfg(test)]
mod tests;

pub(super) const EXAMPLES: &str = "\
Examples:
  orchestrator usage
  orchestrator usage --month 2026-11 --format csv > november.csv
  orchestrator usage --tenant alice
  orchestrator usage reconcile --envoy-admin /run/sq-envoy/admin.sock
  orchestrator usage repair
  orchestrator usage backup /backup/ledger-2026-11-23.sqlite";

const RECONCILE_EXAMPLES: &str = "\
Example:
  orchestrator usage reconcile --envoy-admin /run/sq-envoy/admin.sock";

const BACKUP_EXAMPLES: &str = "\
Examples:
  orchestrator usage backup /backup/ledger-2026-11-23.sqlite
  orchestrator usage backup copy.sqlite --ledger /var/lib/sq-gateway/state/ledger.sqlite";

/// Arguments of `orchestrator usage`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct UsageArgs {
    #[command(subcommand)]
    command: Option<UsageCommand>,
    /// Show only this tenant, with its refusals by reason.
    #[arg(long)]
    tenant: Option<TenantId>,
    /// Month to show, in UTC; the default is the present one.
    #[arg(long, value_name = "YYYY-MM", value_parser = parse_month)]
    month: Option<Month>,
    /// Output format of the month.
    #[arg(long, value_enum, default_value_t)]
    format: UsageFormat,
    #[command(flatten)]
    admin: AdminSocket,
}

#[derive(Debug, Subcommand)]
enum UsageCommand {
    /// Compare the ledger with an Envoy's own counters since its start, under load or not. Fails if
    /// the ledger has more requests than Envoy, or fewer than the filter has put into reports.
    #[command(after_help = RECONCILE_EXAMPLES)]
    Reconcile {
        /// Envoy's admin socket.
        #[arg(long, value_name = "PATH")]
        envoy_admin: PathBuf,
        /// The `stat_prefix` of the listener's HTTP connection manager.
        #[arg(long, default_value = "https")]
        stat_prefix: String,
        #[command(flatten)]
        admin: AdminSocket,
    },
    /// Show the rows that the ledger does not believe, and repair wrong ones.
    #[command(after_help = repair::EXAMPLES)]
    Repair {
        #[command(subcommand)]
        command: Option<RepairCommand>,
        #[command(flatten)]
        admin: AdminSocket,
    },
    /// Copy the ledger into a new file, also while the orchestrator runs. Runs on its host.
    #[command(after_help = BACKUP_EXAMPLES)]
    Backup {
        /// File to create.
        file: PathBuf,
        /// The ledger; without it, the running orchestrator names its own.
        #[arg(long)]
        ledger: Option<PathBuf>,
        #[command(flatten)]
        admin: AdminSocket,
    },
}

/// Output format of a month.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum UsageFormat {
    /// A table for people.
    #[default]
    Table,
    /// Comma-separated values for spreadsheets.
    Csv,
    /// JSON for programs.
    Json,
}

/// Runs the command and returns its output.
pub(super) async fn run(args: UsageArgs) -> anyhow::Result<String> {
    match args.command {
        None => {
            let client = args.admin.client()?;
            let usage = fetch_month(&client, args.month, args.tenant.as_ref()).await?;
            if let Some(tenant) = &args.tenant
                && usage.tenants.is_empty()
            {
                bail!("{tenant} has no usage in {}: check the name and the month", usage.month);
            }
            Ok(match args.format {
                UsageFormat::Json => serde_json::to_string_pretty(&usage)? + "\n",
                UsageFormat::Csv => month::csv(&usage.tenants),
                UsageFormat::Table => month::table(&usage),
            })
        }
        Some(UsageCommand::Reconcile { envoy_admin, stat_prefix, admin }) => {
            let client = admin.client()?;
            let envoy = AdminClient::envoy(&envoy_admin)?;
            reconcile::run(&client, &envoy, &stat_prefix, reconcile::REPORTED).await
        }
        Some(UsageCommand::Repair { command, admin }) => repair::run(&admin, command).await,
        Some(UsageCommand::Backup { file, ledger, admin }) => {
            let ledger = match ledger {
                Some(ledger) => ledger,
                None => admin.client()?.get::<LedgerFile>("/v1/usage/ledger").await?.path,
            };
            backup(&ledger, &file)
        }
    }
}

fn parse_month(text: &str) -> Result<Month, String> {
    Month::parse(text).ok_or_else(|| "must be YYYY-MM, such as 2026-11".to_owned())
}

async fn fetch_month(
    client: &AdminClient,
    month: Option<Month>,
    tenant: Option<&TenantId>,
) -> anyhow::Result<MonthUsage> {
    let mut query = Vec::new();
    if let Some(month) = month {
        query.push(format!("month={month}"));
    }
    if let Some(tenant) = tenant {
        query.push(format!("tenant={tenant}"));
    }
    Ok(client.get(&format!("/v1/usage?{}", query.join("&"))).await?)
}

/// Copies the ledger to a temporary name and checks the copy before it gets its own name: so a file
/// of that name is a good one.
fn backup(ledger: &Path, file: &Path) -> anyhow::Result<String> {
    if file.exists() {
        bail!("{} exists already: name a new file", file.display());
    }
    let partial = file.with_added_extension("partial");
    let source = Store::open_read_only(ledger)
        .with_context(|| format!("{} can't be read", ledger.display()))?;
    // An interrupted backup may have left this file behind.
    let _ = std::fs::remove_file(&partial);
    source.backup(&partial)?;
    Store::finish_backup(&partial)?;
    std::fs::File::open(&partial)?.sync_all()?;
    std::fs::rename(&partial, file)?;
    let bytes = std::fs::metadata(file)?.len();
    Ok(format!("{} has {} and is checked\n", file.display(), table::bytes(bytes)))
}
