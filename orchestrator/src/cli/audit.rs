//! `orchestrator audit`: shows the log of operators' actions, or checks it.

use std::path::PathBuf;

use ::audit::{ActionReport, AuditLog, reports};
use anyhow::Context;
use clap::Args;

use super::{AdminSocket, Format, table};
use crate::api::AuditFile;

pub(super) const EXAMPLES: &str = "\
Examples:
  orchestrator audit
  orchestrator audit --last 1000 --format json
  orchestrator audit --verify
  orchestrator audit --verify --expect 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08

--verify prints the hash of the last line. Note it elsewhere: with --expect it shows later that the
log still has that line.";

/// Arguments of `orchestrator audit`. It reads files, so it runs on the orchestrator's host, as its
/// user or as root.
#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    /// The log; without it, the running orchestrator names its own.
    #[arg(long)]
    file: Option<PathBuf>,
    /// Number of actions to show, the latest ones.
    #[arg(long, value_name = "N", default_value_t = 50)]
    last: usize,
    /// Check every line of all files instead of showing actions.
    #[arg(long)]
    verify: bool,
    /// Hash that some line must have, as noted earlier.
    #[arg(long, value_name = "HASH", requires = "verify")]
    expect: Option<String>,
    /// Output format of the actions.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    admin: AdminSocket,
}

/// Runs the command and returns its output.
pub(super) async fn run(args: AuditArgs) -> anyhow::Result<String> {
    let path = match args.file {
        Some(path) => path,
        None => args.admin.client()?.get::<AuditFile>("/v1/audit").await?.path,
    };
    let verified = AuditLog::new(&path)
        .verify(args.expect.as_deref())
        .context("the audit log is not whole: keep it, and find out who changed it")?;
    let entries = table::count(verified.entries.len() as u64, "line");
    if args.verify {
        let from = verified.entries.first().map_or(1, |entry| entry.n);
        return Ok(format!(
            "whole: {entries} from number {from} on; last hash {}\n",
            verified.head
        ));
    }
    let mut shown = reports(&verified.entries);
    shown.drain(..shown.len().saturating_sub(args.last));
    Ok(match args.format {
        Format::Json => serde_json::to_string_pretty(&shown)? + "\n",
        Format::Table => render(&shown),
    })
}

fn render(reports: &[ActionReport]) -> String {
    let mut table = table::new(&["N", "TIME", "WHO", "ACTION", "TENANT", "OUTCOME", "DETAIL"], 7);
    for report in reports {
        let outcome = report.outcome.map_or("unfinished".to_owned(), |outcome| outcome.to_string());
        table.add_row([
            report.n.to_string(),
            report.at.clone(),
            report.actor.to_string(),
            report.action.clone(),
            report.tenant.clone().unwrap_or_default(),
            outcome,
            report.detail.clone(),
        ]);
    }
    table::render(&table)
}

#[cfg(test)]
mod tests {
    use ::audit::{Action, Actor, Outcome};
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct TestCli {
        #[command(flatten)]
        audit: AuditArgs,
    }

    async fn audit(words: &[&str]) -> anyhow::Result<String> {
        run(TestCli::try_parse_from(["audit"].iter().chain(words))?.audit).await
    }

    #[tokio::test]
    async fn table_shows_actions_and_verify_finds_tampering() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let log = AuditLog::new(&path);
        let action = Action {
            actor: Actor { uid: Some(0), pid: None, sudo_uid: None },
            name: "sleep".to_owned(),
            tenant: Some("alice".to_owned()),
            detail: String::new(),
        };
        let begin = log.begin(&action, 1_800_000_000).unwrap();
        log.end(begin, Outcome::Done, "202", 1_800_000_001).unwrap();
        log.begin(&action, 1_800_000_002).unwrap();
        let file = path.to_str().unwrap();
        let text = audit(&["--file", file]).await.unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[1].contains("alice") && lines[1].contains("done"), "{text}");
        assert!(lines[2].contains("unfinished"), "{text}");
        let whole = audit(&["--file", file, "--verify"]).await.unwrap();
        assert!(whole.starts_with("whole: 3 lines from number 1 on; last hash "), "{whole}");
        let tampered = std::fs::read_to_string(&path).unwrap().replace("alice", "bob");
        std::fs::write(&path, tampered).unwrap();
        let fault = format!("{:#}", audit(&["--file", file, "--verify"]).await.unwrap_err());
        assert!(fault.contains("not whole") && fault.contains("audit.jsonl:1:"), "{fault}");
    }
}
