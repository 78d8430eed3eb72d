//! `orchestrator snapshots …`.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Subcommand;
use protocol::calendar::rfc3339;

use crate::api::snapshots::{RestoreReport, SnapshotFolder};
use crate::cli::client;
use crate::storage::vault::snapshots::{Snapshot, export};

/// What to do with a tenant's point-in-time copies.
#[derive(Debug, Subcommand)]
pub enum SnapshotsCommand {
    /// List them.
    List {
        /// Whose.
        tenant: String,
    },
    /// Put the tenant's phexts back to a snapshot; what stands there becomes a snapshot itself.
    Restore {
        /// Whose.
        tenant: String,
        /// Which: the number in the list.
        snapshot: u64,
        /// Put the tenant to sleep first, as soon as no lease is live.
        #[arg(long)]
        sleep: bool,
    },
    /// Write the phexts of a snapshot, or the last good copies, into a new folder.
    Export {
        /// Whose.
        tenant: String,
        /// Which: the number in the list; without it the last good copies.
        #[arg(long)]
        snapshot: Option<u64>,
        /// The folder; it must not be there yet. Run it on the orchestrator's host, as its user.
        #[arg(long)]
        to: PathBuf,
    },
}

/// Does it and prints what came of it.
pub async fn run(admin: &str, command: SnapshotsCommand) -> anyhow::Result<()> {
    match command {
        SnapshotsCommand::List { tenant } => {
            let body = client::get(admin, &format!("/v1/tenants/{tenant}/snapshots")).await?;
            print!("{}", table(&serde_json::from_slice::<Vec<Snapshot>>(&body)?));
        }
        SnapshotsCommand::Restore { tenant, snapshot, sleep } => {
            let sleep = if sleep { "?sleep=true" } else { "" };
            let path = format!("/v1/tenants/{tenant}/snapshots/{snapshot}/restore{sleep}");
            let report: RestoreReport = serde_json::from_slice(&client::post(admin, &path).await?)?;
            println!("{tenant} is as it was at {}", rfc3339(snapshot));
            println!("what stood there before is snapshot {}", report.before_s);
        }
        SnapshotsCommand::Export { tenant, snapshot, to } => {
            let taken = snapshot.map_or(String::new(), |taken_s| format!("?taken_s={taken_s}"));
            let path = format!("/v1/tenants/{tenant}/snapshots/folder{taken}");
            let from: SnapshotFolder = serde_json::from_slice(&client::get(admin, &path).await?)?;
            let from = from.folder;
            let copied = format!("{} to {}", from.display(), to.display());
            let phexts = export(&from, &to).with_context(|| copied)?;
            println!("{phexts} phexts in {}", to.display());
        }
    }
    Ok(())
}

fn table(snapshots: &[Snapshot]) -> String {
    let mut text = format!("{:<12} {:<20} {:>7} {:>12}\n", "SNAPSHOT", "TAKEN", "PHEXTS", "BYTES");
    for s in snapshots {
        let (taken, at) = (s.taken_s, rfc3339(s.taken_s));
        // Writing into a String does not fail.
        let _ = writeln!(text, "{taken:<12} {at:<20} {:>7} {:>12}", s.phexts, s.bytes);
    }
    text
}
