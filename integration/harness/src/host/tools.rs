//! Where the programs are: Envoy and SQ under `.tools/` (made by `scripts/setup.sh`), our own
//! beside this one in cargo's target folder, `filter.wasm` under `target/`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// The SQ that tenants get where nobody asks for another.
pub const SQ_VERSION: &str = "0.6.0";

/// The SQ that is asked for by `SQ_VERSION`, where an empty value is none.
pub fn sq_version() -> String {
    env::var("SQ_VERSION").ok().filter(|said| !said.is_empty()).unwrap_or(SQ_VERSION.to_owned())
}

/// The repository.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

fn tools() -> PathBuf {
    env::var_os("TOOLS_DIR").map_or_else(|| root().join(".tools"), PathBuf::from)
}

fn existing(path: PathBuf, remedy: &str) -> Result<PathBuf> {
    if path.is_file() { Ok(path) } else { bail!("{} is missing: {remedy}", path.display()) }
}

/// Envoy: `ENVOY_BIN` or `.tools/envoy`.
pub fn envoy() -> Result<PathBuf> {
    let path = env::var_os("ENVOY_BIN").map_or_else(|| tools().join("envoy"), PathBuf::from);
    existing(path, "run 'scripts/setup.sh'")
}

/// Python's packages for tests: `.tools/python`.
pub fn python() -> PathBuf {
    tools().join("python")
}

/// SQ of a version: `.tools/sq-<version>/bin/sq`.
pub fn sq(version: &str) -> Result<PathBuf> {
    let remedy = format!("run 'SQ_VERSION={version} scripts/setup.sh sq'");
    existing(tools().join(format!("sq-{version}/bin/sq")), &remedy)
}

/// The filter: `FILTER_WASM` or `target/filter.wasm`.
pub fn filter() -> Result<PathBuf> {
    let path =
        env::var_os("FILTER_WASM").map_or_else(|| root().join("target/filter.wasm"), PathBuf::from);
    existing(path, "run 'make wasm'")
}

/// The build of the filter that panics when told to: beside the real one.
pub fn panicking_filter() -> Result<PathBuf> {
    let path = filter()?.with_file_name("filter-test-panic.wasm");
    existing(path, "run 'make wasm-test-panic'")
}

/// A build of the filter that neither limits nor counts, beside the real one; `told`: its answers
/// say that there is a limit all the same.
pub fn unlimited_filter(told: bool) -> Result<PathBuf> {
    let name = if told { "filter-unlimited-told.wasm" } else { "filter-unlimited.wasm" };
    let path = filter()?.with_file_name(name);
    existing(path, "run 'make wasm-bench'")
}

/// The filter that does nothing: beside the real one.
pub fn empty_filter() -> Result<PathBuf> {
    existing(filter()?.with_file_name("empty-filter.wasm"), "run 'make wasm-bench'")
}

/// A program of this workspace, built in the same profile as this one: `BIN_DIR` or cargo's folder.
pub fn workspace_binary(name: &str) -> Result<PathBuf> {
    existing(own_dir()?.join(name), &format!("run 'cargo build -p {name}'"))
}

fn own_dir() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("BIN_DIR") {
        return Ok(dir.into());
    }
    let me = env::current_exe()?;
    let dir = me.parent().context("no folder of this program")?;
    // A test binary lies one folder deeper.
    let up = if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir };
    Ok(up.to_owned())
}

/// Builds our own programs in this one's profile, so that a test never runs against old ones.
pub fn build() -> Result<()> {
    if env::var_os("BIN_DIR").is_some() {
        return Ok(());
    }
    let dir = own_dir()?;
    let target = dir.parent().context("no target folder")?;
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // The default members, as `cargo test` builds them: features are resolved once.
    command.args(["build", "--quiet", "--bins", "--target-dir"]).arg(target);
    command.current_dir(root());
    if dir.ends_with("release") {
        command.arg("--release");
    }
    ensure!(command.status()?.success(), "relay and orchestrator don't build");
    Ok(())
}
