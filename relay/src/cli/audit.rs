//! The audit log beside the registry: what each `relay registry` command was about to change, who ran
//! it, and how it ended. Neither keys nor their digests are in it, nor the values of notes.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use ::audit::{Action, ActionReport, Actor, AuditLog, Outcome, reports};

use super::commands::CommandError;
use super::render::table;
use super::{Format, RegistryCommand};
use crate::atomic_file::folder_of;
use crate::clock::now_s;
use crate::registry::limit_field::LimitField;

/// Name of the log in the registry's folder.
const FILE: &str = "audit.jsonl";

/// Runs a change of the registry between the two lines of the log. A change whose first line can't be
/// written is not made.
pub(super) fn written_down<T>(
    registry: &Path,
    command: &RegistryCommand,
    change: impl FnOnce() -> Result<T, CommandError>,
) -> Result<T, CommandError> {
    let is_init = matches!(command, RegistryCommand::Init);
    let Some(action) = action(registry, command).filter(|_| is_init || registry.exists()) else {
        return change();
    };
    let log = log_beside(registry);
    let begin = log.begin(&action, now_s())?;
    let changed = change();
    let ended = match &changed {
        Ok(_) => log.end(begin, Outcome::Done, "", now_s()),
        Err(fault) => log.end(begin, Outcome::Refused, &fault.to_string(), now_s()),
    };
    if let Err(fault) = ended {
        // The change is made, and a new key must still be printed.
        eprintln!("the outcome is not in the audit log: {fault}");
    }
    changed
}

/// The log in the folder of the registry, or of the file that a symbolic link names.
pub(super) fn log_beside(registry: &Path) -> AuditLog {
    let target: PathBuf = registry.canonicalize().unwrap_or_else(|_| registry.to_owned());
    AuditLog::new(&folder_of(&target).join(FILE))
}

/// Describes a command; `None` for one that only reads.
fn action(registry: &Path, command: &RegistryCommand) -> Option<Action> {
    let (name, tenant, parameters) = match command {
        RegistryCommand::Init => ("init", None, String::new()),
        RegistryCommand::Add { tenant, tier, lines, key_sha256 } => {
            let key = if key_sha256.is_some() { " with a given key" } else { "" };
            ("add", Some(tenant), format!(" tier={tier}{}{key}", assignments(lines)))
        }
        RegistryCommand::Set { tenant, lines } => ("set", Some(tenant), assignments(lines)),
        RegistryCommand::Rotate { tenant, overlap } => {
            ("rotate", Some(tenant), format!(" overlap={overlap} s"))
        }
        RegistryCommand::Suspend { tenant } => ("suspend", Some(tenant), String::new()),
        RegistryCommand::Resume { tenant } => ("resume", Some(tenant), String::new()),
        RegistryCommand::Remove { tenant } => ("remove", Some(tenant), String::new()),
        RegistryCommand::Check
        | RegistryCommand::List { .. }
        | RegistryCommand::Show { .. }
        | RegistryCommand::Audit { .. } => return None,
    };
    let file = registry.file_name().unwrap_or_default().display();
    Some(Action {
        actor: caller(),
        name: name.to_owned(),
        tenant: tenant.map(ToString::to_string),
        detail: format!("{file}:{parameters}"),
    })
}

/// Formats lines to set. Notes may have an address or a name, and a misspelt name may stand before a
/// key: only tier, status and limits show their values.
fn assignments(lines: &[(String, String)]) -> String {
    let mut text = String::new();
    for (name, value) in lines {
        let is_plain =
            ["tier", "status"].contains(&name.as_str()) || LimitField::named(name).is_some();
        let value = if is_plain { value.as_str() } else { "…" };
        let _ = write!(text, " {name}={value}");
    }
    text
}

fn caller() -> Actor {
    let sudo_uid = std::env::var("SUDO_UID").ok().and_then(|uid| uid.parse().ok());
    Actor {
        uid: Some(rustix::process::getuid().as_raw()),
        pid: i32::try_from(std::process::id()).ok(),
        sudo_uid,
    }
}

/// Renders actions.
pub(super) fn render(
    entries: &[::audit::Entry],
    last: usize,
    format: Format,
) -> Result<String, serde_json::Error> {
    let mut shown = reports(entries);
    shown.drain(..shown.len().saturating_sub(last));
    if format == Format::Json {
        return Ok(serde_json::to_string_pretty(&shown)? + "\n");
    }
    let header = ["N", "TIME", "WHO", "ACTION", "TENANT", "OUTCOME", "DETAIL"];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(shown.into_iter().map(cells));
    Ok(table(rows))
}

fn cells(report: ActionReport) -> [String; 7] {
    [
        report.n.to_string(),
        report.at,
        report.actor.to_string(),
        report.action,
        report.tenant.unwrap_or_default(),
        report.outcome.map_or("unfinished".to_owned(), |outcome| outcome.to_string()),
        report.detail,
    ]
}
