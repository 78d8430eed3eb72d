//! `orchestrator snapshots`: list, restore and export point-in-time copies.

use std::path::PathBuf;

use anyhow::Context;
use clap::Subcommand;
use protocol::TenantId;
use protocol::calendar::rfc3339;

use super::{AdminSocket, table};
use crate::api::{RestoreReport, SnapshotFolder};
use crate::storage::vault::snapshots::{Snapshot, export};

pub(super) const EXAMPLES: &str = "\
Examples:
  orchestrator snapshots list alice
  orchestrator snapshots restore alice 1795960800 --sleep
  orchestrator snapshots export alice --to /tmp/alice";

const LIST_EXAMPLES: &str = "\
Example:
  orchestrator snapshots list alice";

const RESTORE_EXAMPLES: &str = "\
Examples:
  orchestrator snapshots restore alice 1795960800
  orchestrator snapshots restore alice 1795960800 --sleep";

const EXPORT_EXAMPLES: &str = "\
Examples:
  orchestrator snapshots export alice --to /tmp/alice
  orchestrator snapshots export alice --snapshot 1795960800 --to /tmp/alice";

/// Actions on a tenant's snapshots.
#[derive(Debug, Subcommand)]
pub(super) enum SnapshotsCommand {
    /// List a tenant's snapshots, oldest first.
    #[command(after_help = LIST_EXAMPLES)]
    List {
        /// Tenant whose snapshots to list.
        tenant: TenantId,
    },
    /// Restore a tenant's phexts from a snapshot; the present ones become a snapshot themselves.
    #[command(after_help = RESTORE_EXAMPLES)]
    Restore {
        /// Tenant to restore.
        tenant: TenantId,
        /// Number of the snapshot, from the list.
        snapshot: u64,
        /// Put the tenant to sleep first, as soon as no lease is live.
        #[arg(long)]
        sleep: bool,
    },
    /// Write the phexts of a snapshot, or the latest good copies, into a new folder. Runs on the
    /// orchestrator's host, as its user.
    #[command(after_help = EXPORT_EXAMPLES)]
    Export {
        /// Tenant whose phexts to export.
        tenant: TenantId,
        /// Number of the snapshot, from the list; without it, the latest good copies.
        #[arg(long)]
        snapshot: Option<u64>,
        /// Folder to create.
        #[arg(long)]
        to: PathBuf,
    },
}

/// Runs a subcommand and returns its output.
pub(super) async fn run(admin: &AdminSocket, command: SnapshotsCommand) -> anyhow::Result<String> {
    let client = admin.client()?;
    match command {
        SnapshotsCommand::List { tenant } => {
            let snapshots: Vec<Snapshot> =
                client.get(&format!("/v1/tenants/{tenant}/snapshots")).await?;
            Ok(render(&snapshots))
        }
        SnapshotsCommand::Restore { tenant, snapshot, sleep } => {
            let query = if sleep { "?sleep=true" } else { "" };
            let path = format!("/v1/tenants/{tenant}/snapshots/{snapshot}/restore{query}");
            let report: RestoreReport = client.post(&path).await?;
            Ok(format!(
                "restored {tenant} to {}; its previous phexts are snapshot {}\n",
                rfc3339(snapshot),
                report.before_s
            ))
        }
        SnapshotsCommand::Export { tenant, snapshot, to } => {
            let query = snapshot.map_or(String::new(), |taken_s| format!("?taken_s={taken_s}"));
            let path = format!("/v1/tenants/{tenant}/snapshots/folder{query}");
            let SnapshotFolder { folder } = client.get(&path).await?;
            let phexts = export(&folder, &to)
                .with_context(|| format!("export {} to {}", folder.display(), to.display()))?;
            Ok(format!("exported {} to {}\n", table::count(phexts, "phext"), to.display()))
        }
    }
}

fn render(snapshots: &[Snapshot]) -> String {
    let mut table = table::new(&["SNAPSHOT", "TAKEN", "PHEXTS", "SIZE"], 2);
    for snapshot in snapshots {
        table.add_row([
            snapshot.taken_s.to_string(),
            rfc3339(snapshot.taken_s),
            snapshot.phexts.to_string(),
            table::bytes(snapshot.bytes),
        ]);
    }
    table::render(&table)
}
