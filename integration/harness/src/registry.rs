//! The ranch's registry file, changed by `relay registry` as its operator would.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use protocol::key::{KEY_BYTES, KEY_PREFIX};

/// A registry file.
#[derive(Debug, Clone)]
pub struct Registry {
    relay: PathBuf,
    file: PathBuf,
}

impl Registry {
    /// The registry in `file`, which need not exist yet.
    pub fn new(relay: PathBuf, file: PathBuf) -> Self {
        Self { relay, file }
    }

    /// Where it lies.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// `relay registry <command> --file <file> …`; its stdout.
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

    /// Adds a tenant and tells its key.
    pub fn add(&self, tenant: &str, tier: &str) -> Result<String> {
        key_in(&self.run("add", &[tenant, "--tier", tier])?)
    }

    /// Gives a tenant a new key, and tells it.
    pub fn rotate(&self, tenant: &str) -> Result<String> {
        key_in(&self.run("rotate", &[tenant])?)
    }

    /// Answers the tenant with 403 from now on.
    pub fn suspend(&self, tenant: &str) -> Result<()> {
        self.run("suspend", &[tenant]).map(drop)
    }

    /// Serves the tenant again.
    pub fn resume(&self, tenant: &str) -> Result<()> {
        self.run("resume", &[tenant]).map(drop)
    }

    /// Forgets the tenant and its keys.
    pub fn remove(&self, tenant: &str) -> Result<()> {
        self.run("remove", &[tenant]).map(drop)
    }

    /// Replaces a piece of its text, as an editor would.
    pub fn edit(&self, from: &str, to: &str) -> Result<()> {
        let text = fs::read_to_string(&self.file)?;
        ensure!(text.contains(from), "{from:?} is not in {}", self.file.display());
        Ok(fs::write(&self.file, text.replace(from, to))?)
    }
}

fn key_in(text: &str) -> Result<String> {
    let Some(start) = text.find(KEY_PREFIX) else { bail!("no key in {text:?}") };
    let key = text.get(start..start + KEY_BYTES).context("half a key")?;
    Ok(key.to_owned())
}
