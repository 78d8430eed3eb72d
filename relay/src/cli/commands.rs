//! The `relay registry` commands.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use protocol::{ApiKey, KeyHash, TenantId, TenantStatus, TierName, calendar};

use super::output::{Output, counted};
use super::{Format, RegistryArgs, RegistryCommand};
use super::{audit, render};
use crate::clock::now_s;
use crate::edit::registry_file::{self, RegistryFileError};
use crate::edit::{Document, EditError, NewTenant};
use crate::registry::Faults;

/// Reasons why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The file could not be read or changed.
    #[error(transparent)]
    File(#[from] RegistryFileError),
    /// The file is not a valid registry.
    #[error("{}", faults_of_file(.0, .1))]
    Invalid(PathBuf, Faults),
    /// The operating system has no randomness for a key.
    #[error("no randomness for a key: {0}")]
    Random(#[from] getrandom::Error),
    /// The change could not be written down, and was not made.
    #[error("nothing was changed: {0}")]
    Unwritten(#[from] ::audit::AuditError),
    /// The log of changes is not whole.
    #[error("the audit log is not whole: keep it, and find out who changed it: {0}")]
    Broken(#[from] ::audit::Broken),
    /// The output can't be written as JSON.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
}

/// One line per fault, each beginning with the path, as compilers do.
fn faults_of_file(path: &Path, faults: &Faults) -> String {
    let lines = faults.to_string();
    let lines = lines.lines().map(|line| format!("{}: {line}", path.display()));
    lines.collect::<Vec<_>>().join("\n")
}

/// Runs a command.
pub fn run(args: &RegistryArgs) -> Result<Output, CommandError> {
    let file = RegistryFile { path: &args.file, allow_loss: args.allow_loss };
    audit::written_down(&args.file, &args.command, || {
        file.run(&args.command).map_err(|error| match error {
            CommandError::File(RegistryFileError::Edit(EditError::Invalid(faults))) => {
                CommandError::Invalid(args.file.clone(), faults)
            }
            error => error,
        })
    })
}

struct RegistryFile<'a> {
    path: &'a Path,
    allow_loss: bool,
}

impl RegistryFile<'_> {
    fn run(&self, command: &RegistryCommand) -> Result<Output, CommandError> {
        match command {
            RegistryCommand::Init => self.init(),
            RegistryCommand::Check => self.check(),
            RegistryCommand::List { target, format } => self.list(*target, *format),
            RegistryCommand::Show { tenant, format } => self.show(tenant, *format),
            RegistryCommand::Add { tenant, tier, lines, key_sha256 } => {
                self.add(tenant, tier, lines, *key_sha256)
            }
            RegistryCommand::Set { tenant, lines } => {
                self.change(|document| document.set(tenant, lines))?;
                Ok(Output::message(&format!("tenant {tenant} is changed")))
            }
            RegistryCommand::Rotate { tenant, overlap } => self.rotate(tenant, *overlap),
            RegistryCommand::Suspend { tenant } => {
                self.change(|document| document.set_status(tenant, TenantStatus::Suspended))?;
                Ok(Output::message(&format!("tenant {tenant} is suspended")))
            }
            RegistryCommand::Resume { tenant } => {
                self.change(|document| document.set_status(tenant, TenantStatus::Active))?;
                Ok(Output::message(&format!("tenant {tenant} is active")))
            }
            RegistryCommand::Remove { tenant } => {
                self.change(|document| document.remove(tenant))?;
                let text =
                    format!("tenant {tenant} is removed; its data stays on the gateway host");
                Ok(Output::message(&text))
            }
            RegistryCommand::Audit { last, verify, expect, format } => {
                self.audit(*last, *verify, expect.as_deref(), *format)
            }
        }
    }

    fn audit(
        &self,
        last: usize,
        verify: bool,
        expected: Option<&str>,
        format: Format,
    ) -> Result<Output, CommandError> {
        let verified = audit::log_beside(self.path).verify(expected)?;
        let stdout = if verify {
            let lines = counted(verified.entries.len(), "line");
            format!("whole: {lines}; last hash {}\n", verified.head)
        } else {
            audit::render(&verified.entries, last, format)?
        };
        Ok(Output { stdout, ..Output::default() })
    }

    fn init(&self) -> Result<Output, CommandError> {
        registry_file::create(self.path, crate::TEMPLATE)?;
        let path = self.path.display();
        Ok(Output::message(&format!("{path}: created a registry with four tiers and no tenants")))
    }

    fn check(&self) -> Result<Output, CommandError> {
        let document = registry_file::load(self.path)?;
        let registry = document.registry();
        let mut output = Output::default();
        for warning in registry.warnings() {
            let _ = writeln!(output.stderr, "{}: warning: {warning}", self.path.display());
        }
        output.stdout = format!(
            "valid: {}, {}, {}\n",
            counted(registry.tenants.len(), "tenant"),
            counted(registry.keys().count(), "key"),
            counted(registry.tiers.len(), "tier"),
        );
        Ok(output)
    }

    fn list(&self, target_usd: u32, format: Format) -> Result<Output, CommandError> {
        let document = registry_file::load(self.path)?;
        let stdout = render::list(document.registry(), now_s(), format)?;
        let stderr = render::revenue(document.registry(), target_usd);
        Ok(Output { stdout, stderr, new_key_of: None })
    }

    fn show(&self, id: &TenantId, format: Format) -> Result<Output, CommandError> {
        let document = registry_file::load(self.path)?;
        let tenant = document.registry().tenants.get(id);
        let tenant = tenant
            .ok_or_else(|| EditError::NoTenant(id.clone()))
            .map_err(RegistryFileError::from)?;
        let stdout = render::tenant(id, tenant, now_s(), format)?;
        Ok(Output { stdout, ..Output::default() })
    }

    fn add(
        &self,
        tenant: &TenantId,
        tier: &TierName,
        lines: &[(String, String)],
        given: Option<KeyHash>,
    ) -> Result<Output, CommandError> {
        let id = tenant.clone();
        let tier = tier.clone();
        let lines = lines.to_vec();
        let added = format!("tenant {tenant} is added, tier {tier}");
        if let Some(key) = given {
            let new = NewTenant { id, tier, key, lines };
            self.change(|document| document.add(&new))?;
            return Ok(Output::message(&added));
        }
        let key = generate_key()?;
        let new = NewTenant { id, tier, key: key.hash(), lines };
        self.change(|document| document.add(&new))?;
        Ok(new_key_output(tenant, &key, &added))
    }

    fn rotate(&self, tenant: &TenantId, overlap_s: u64) -> Result<Output, CommandError> {
        let key = generate_key()?;
        let now_s = now_s();
        let old_end_s = now_s.saturating_add(overlap_s);
        self.change(|document| document.rotate(tenant, key.hash(), now_s, old_end_s))?;
        let end = calendar::rfc3339(old_end_s);
        let rotated = format!("tenant {tenant} has a new key; its old keys end at {end}");
        Ok(new_key_output(tenant, &key, &rotated))
    }

    fn change(
        &self,
        edit: impl Fn(&Document) -> Result<Document, EditError>,
    ) -> Result<(), RegistryFileError> {
        registry_file::change(self.path, self.allow_loss, edit)
    }
}

fn generate_key() -> Result<ApiKey, getrandom::Error> {
    let mut random = [0; 16];
    getrandom::fill(&mut random)?;
    Ok(ApiKey::from_random(random))
}

fn new_key_output(tenant: &TenantId, key: &ApiKey, message: &str) -> Output {
    let hash = key.hash();
    Output {
        stdout: format!("{}\n", key.expose()),
        stderr: format!(
            "{message}\nThe key is printed only this once; the registry has its SHA-256, {hash}\n"
        ),
        new_key_of: Some(tenant.clone()),
    }
}
