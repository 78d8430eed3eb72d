//! The `relay registry` commands: what they do to the file and what they say.
//!
//! What a program may want (a key, a table, JSON) goes to stdout, words for people to stderr.

use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::process::ExitCode;

use protocol::{KeyHash, TenantId, TenantStatus};

use crate::cli::render;
use crate::cli::{Action, FAULT, Registry as Arguments};
use crate::edit::registry_file::{self as store, StoreError};
use crate::edit::{Document, EditError, NewTenant, new_key};
use crate::registry::Faults;
use crate::serve::reload::now_s;

/// What a command says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// For stdout.
    pub out: String,
    /// For stderr.
    pub err: String,
    /// `out` is the only copy of this tenant's new key.
    pub key_of: Option<TenantId>,
}

impl Said {
    /// Says it. A reader of stdout that is gone, as after `| head`, is no fault, unless it was to
    /// read a key.
    pub fn print(&self) -> ExitCode {
        let mut stdout = std::io::stdout();
        let printed = stdout.write_all(self.out.as_bytes()).and_then(|()| stdout.flush());
        let words = match (printed, &self.key_of) {
            (Err(e), Some(tenant)) => format!(
                "the new key of {tenant} could not be printed ({e}) and is lost; the registry has \
                 its digest. Make another: relay registry rotate {tenant}\n"
            ),
            (Err(e), None) if e.kind() != ErrorKind::BrokenPipe => format!("stdout: {e}\n"),
            _ => {
                let _ = std::io::stderr().write_all(self.err.as_bytes());
                return ExitCode::SUCCESS;
            }
        };
        let _ = std::io::stderr().write_all(words.as_bytes());
        ExitCode::from(FAULT)
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The file could not be read or changed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file is not valid.
    #[error("{}", located(.0, .1))]
    Invalid(std::path::PathBuf, Faults),
    /// No randomness for a key.
    #[error("no randomness: {0}")]
    Random(#[from] getrandom::Error),
    /// Not representable as JSON.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
}

fn located(path: &Path, faults: &Faults) -> String {
    let lines = faults.to_string();
    let lines = lines.lines().map(|line| format!("{}: {line}", path.display()));
    lines.collect::<Vec<_>>().join("\n")
}

/// Does what was asked for.
pub fn run(arguments: &Arguments) -> Result<Said, CommandError> {
    let file = arguments.file.as_path();
    act(file, arguments.allow_loss, &arguments.action).map_err(|e| match e {
        CommandError::Store(StoreError::Edit(EditError::Invalid(faults))) => {
            CommandError::Invalid(file.to_owned(), faults)
        }
        e => e,
    })
}

fn act(file: &Path, allow_loss: bool, action: &Action) -> Result<Said, CommandError> {
    match action {
        Action::Init => {
            store::create(file, crate::TEMPLATE)?;
            Ok(told(format!("{}: a registry with its tiers, and no tenants yet", file.display())))
        }
        Action::Check => Ok(checked(file, &store::load(file)?)),
        Action::List { format, target } => {
            let document = store::load(file)?;
            let out = render::list(document.registry(), now_s(), *format)?;
            let err = render::revenue(document.registry(), *target);
            Ok(Said { out, err, ..Said::default() })
        }
        Action::Show { tenant, format } => {
            let document = store::load(file)?;
            let found = document.registry().tenants.get(tenant);
            let found = found.ok_or_else(|| EditError::NoTenant(tenant.clone()));
            let out = render::one(tenant, found.map_err(StoreError::from)?, now_s(), *format)?;
            Ok(Said { out, ..Said::default() })
        }
        Action::Add { tenant, tier, lines, key_sha256 } => {
            let (key, hash) = key_or(*key_sha256)?;
            let (id, tier, lines) = (tenant.clone(), tier.clone(), lines.clone());
            let new = NewTenant { id, tier, key: hash, lines };
            store::change(file, allow_loss, |document| document.add(&new))?;
            let words = format!("tenant {tenant} is added, tier {}", new.tier);
            Ok(new_key_of(tenant, key, format!("{words}{}\n", once(&hash))))
        }
        Action::Set { tenant, lines } => {
            store::change(file, allow_loss, |document| document.set(tenant, lines))?;
            Ok(told(format!("tenant {tenant} is changed")))
        }
        Action::Rotate { tenant, overlap } => {
            let (key, hash) = key_or(None)?;
            let now = now_s();
            let end = now.saturating_add(*overlap);
            store::change(file, allow_loss, |document| document.rotate(tenant, hash, now, end))?;
            let end = protocol::calendar::rfc3339(end);
            let words = format!("tenant {tenant} has a new key; the old ones end {end}");
            Ok(new_key_of(tenant, key, format!("{words}{}\n", once(&hash))))
        }
        Action::Suspend { tenant } => {
            store::change(file, allow_loss, |d| d.status(tenant, TenantStatus::Suspended))?;
            Ok(told(format!("tenant {tenant} is suspended")))
        }
        Action::Resume { tenant } => {
            store::change(file, allow_loss, |d| d.status(tenant, TenantStatus::Active))?;
            Ok(told(format!("tenant {tenant} is active")))
        }
        Action::Remove { tenant } => {
            store::change(file, allow_loss, |document| document.remove(tenant))?;
            Ok(told(format!("tenant {tenant} is removed; its data stays on the gateway host")))
        }
    }
}

fn told(words: String) -> Said {
    Said { err: words + "\n", ..Said::default() }
}

fn new_key_of(tenant: &TenantId, key: Option<String>, err: String) -> Said {
    let key_of = key.is_some().then(|| tenant.clone());
    Said { out: key.unwrap_or_default(), err, key_of }
}

fn once(hash: &KeyHash) -> String {
    format!("\nThe key is shown this once; the registry has its SHA-256, {hash}")
}

/// A new key as a line for stdout, or none when the digest is given.
fn key_or(given: Option<KeyHash>) -> Result<(Option<String>, KeyHash), getrandom::Error> {
    if let Some(hash) = given {
        return Ok((None, hash));
    }
    let mut random = [0; 16];
    getrandom::fill(&mut random)?;
    let (key, hash) = new_key(random);
    Ok((Some(format!("{}\n", key.expose())), hash))
}

fn checked(file: &Path, document: &Document) -> Said {
    let registry = document.registry();
    let mut said = Said::default();
    for warning in registry.warnings() {
        let _ = writeln!(said.err, "{}: {warning}", file.display());
    }
    let (tenants, keys, tiers) = (registry.tenants.len(), registry.keys(), registry.tiers.len());
    said.out = format!("valid: {tenants} tenants, {keys} keys, {tiers} tiers\n");
    said
}
