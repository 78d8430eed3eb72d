//! The ranch's registry file, written by a builder and changed by `relay registry` as its operator
//! would.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write as _};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use protocol::key::{KEY_BYTES, KEY_PREFIX};

use crate::host::files;

/// A tier of the registry. Fields that are not set have the registry's defaults.
#[derive(Debug, Clone)]
pub struct Tier {
    name: String,
    fields: Vec<(&'static str, String)>,
}

impl Tier {
    /// The name of the unlimited tier that every registry of the harness has.
    pub const UNLIMITED: &'static str = "test";

    /// A tier with default limits.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), fields: Vec::new() }
    }

    /// A tier whose limits no test reaches unless it sets one itself.
    pub fn unlimited(name: &str) -> Self {
        Self::new(name)
            .set("storage", "500 MB")
            .set("memory", "64 MiB")
            .set("phexts", 1000)
            .set("requests-per-s", "1_000_000")
            .set("burst", "1_000_000")
            .set("requests-per-day", "unlimited")
            .set("requests-per-month", "unlimited")
            .set("writes-per-day", "unlimited")
            .set("wakes-per-hour", "unlimited")
    }

    /// Sets a field as the registry spells it, such as `requests-per-s`.
    #[must_use]
    pub fn set(mut self, field: &'static str, value: impl Display) -> Self {
        self.fields.retain(|(name, _)| *name != field);
        self.fields.push((field, value.to_string()));
        self
    }
}

/// The tier's text in the registry.
impl Display for Tier {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "tier: {}", self.name)?;
        self.fields.iter().try_for_each(|(name, value)| writeln!(out, "  {name}: {value}"))
    }
}

/// A registry file.
#[derive(Debug, Clone)]
pub struct Registry {
    relay: PathBuf,
    file: PathBuf,
}

/// Contents of a new registry file.
#[derive(Debug, Clone)]
pub struct RegistryBuilder {
    tiers: Vec<Tier>,
    tenants: Vec<(String, String)>,
}

impl RegistryBuilder {
    /// Adds a tier.
    #[must_use]
    pub fn tier(mut self, tier: Tier) -> Self {
        self.tiers.push(tier);
        self
    }

    /// Adds a tenant in one of the tiers.
    #[must_use]
    pub fn tenant(mut self, name: &str, tier: &str) -> Self {
        self.tenants.push((name.to_owned(), tier.to_owned()));
        self
    }

    /// Writes the file and registers the tenants with the program `relay`. Returns the registry
    /// and the key of each tenant.
    pub fn create(
        self,
        relay: PathBuf,
        file: PathBuf,
    ) -> Result<(Registry, BTreeMap<String, String>)> {
        let mut text = "tiers\n".to_owned();
        for tier in &self.tiers {
            write!(text, "\n{tier}")?;
        }
        let registry = Registry::new(relay, file);
        files::write_private(&registry.file, text.as_bytes())?;
        let mut keys = BTreeMap::new();
        for (name, tier) in self.tenants {
            let key = registry.add(&name, &tier)?;
            keys.insert(name, key);
        }
        Ok((registry, keys))
    }
}

impl Registry {
    /// Starts a registry with the tiers `free` (default limits) and [`Tier::UNLIMITED`].
    pub fn builder() -> RegistryBuilder {
        let tiers = vec![Tier::new("free"), Tier::unlimited(Tier::UNLIMITED)];
        RegistryBuilder { tiers, tenants: Vec::new() }
    }

    /// The registry in `file`, which need not exist yet; `relay` is the program that edits it.
    pub fn new(relay: PathBuf, file: PathBuf) -> Self {
        Self { relay, file }
    }

    /// Path of the registry file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Runs `relay registry <command> --file <file> …` and returns its stdout.
    pub fn run(&self, command: &str, args: &[&str]) -> Result<String> {
        let output = Command::new(&self.relay)
            .args(["registry", command, "--file"])
            .arg(&self.file)
            .args(args)
            .output()
            .with_context(|| format!("can't run {}", self.relay.display()))?;
        ensure!(
            output.status.success(),
            "relay registry {command} {args:?}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Adds a tenant and returns its key.
    pub fn add(&self, tenant: &str, tier: &str) -> Result<String> {
        find_key(&self.run("add", &[tenant, "--tier", tier])?)
    }

    /// Replaces the tenant's key and returns the new one.
    pub fn rotate(&self, tenant: &str) -> Result<String> {
        find_key(&self.run("rotate", &[tenant])?)
    }

    /// Suspends the tenant: the gateway responds to it with 403.
    pub fn suspend(&self, tenant: &str) -> Result<()> {
        self.run("suspend", &[tenant]).map(drop)
    }

    /// Ends a suspension.
    pub fn resume(&self, tenant: &str) -> Result<()> {
        self.run("resume", &[tenant]).map(drop)
    }

    /// Removes the tenant with its keys.
    pub fn remove(&self, tenant: &str) -> Result<()> {
        self.run("remove", &[tenant]).map(drop)
    }

    /// Replaces `from` by `to` in the file's text, as an operator with an editor would.
    pub fn edit(&self, from: &str, to: &str) -> Result<()> {
        let text = fs::read_to_string(&self.file)?;
        ensure!(text.contains(from), "{from:?} is not in {}", self.file.display());
        Ok(fs::write(&self.file, text.replace(from, to))?)
    }
}

fn find_key(text: &str) -> Result<String> {
    let Some(start) = text.find(KEY_PREFIX) else { bail!("no key in {text:?}") };
    let key = text.get(start..start + KEY_BYTES).context("truncated key")?;
    Ok(key.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registry_file_is_closed_to_other_users() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("registry.phext");
        Registry::builder().create("relay".into(), file.clone()).unwrap();
        assert_eq!(files::mode(&file), 0o600);
    }

    #[test]
    fn field_set_twice_has_its_last_value() {
        let tier = Tier::new("large").set("memory", "64 MiB").set("memory", "256 MiB");
        assert_eq!(tier.to_string(), "tier: large\n  memory: 256 MiB\n");
    }
}
