//! Paths of programs and modules: Envoy and SQ below `.tools/` (made by `scripts/setup.sh`), those
//! of this workspace in cargo's target folder, the filter below `target/`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// Default version of SQ.
pub const SQ_VERSION: &str = "0.6.0";

/// The version of SQ in the variable `SQ_VERSION`; the default if it is unset or empty.
pub fn sq_version() -> String {
    let version = env::var("SQ_VERSION").ok().filter(|version| !version.is_empty());
    version.unwrap_or_else(|| SQ_VERSION.to_owned())
}

/// The root folder of the repository.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_owned()
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

/// Folder of Python packages for tests: `.tools/python`.
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

/// A build of the filter that panics at a header of the test, beside the real one.
pub fn panicking_filter() -> Result<PathBuf> {
    let path = filter()?.with_file_name("filter-test-panic.wasm");
    existing(path, "run 'make wasm-test-panic'")
}

/// A build of the filter that neither limits nor counts, beside the real one. With `headers` its
/// responses still have the header fields of a rate limit.
pub fn unlimited_filter(headers: bool) -> Result<PathBuf> {
    let name = if headers { "filter-unlimited-with-headers.wasm" } else { "filter-unlimited.wasm" };
    existing(filter()?.with_file_name(name), "run 'make wasm-bench'")
}

/// A filter that does nothing, beside the real one.
pub fn empty_filter() -> Result<PathBuf> {
    existing(filter()?.with_file_name("empty-filter.wasm"), "run 'make wasm-bench'")
}

/// A program of this workspace in this one's build profile: in `BIN_DIR` or cargo's target folder.
pub fn workspace_binary(name: &str) -> Result<PathBuf> {
    existing(binary_dir()?.join(name), &format!("run 'cargo build -p {name}'"))
}

fn binary_dir() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("BIN_DIR") {
        return Ok(dir.into());
    }
    let program = env::current_exe()?;
    let dir = program.parent().context("the program is in no folder")?;
    // Test binaries are one folder below the others.
    let dir = if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir };
    Ok(dir.to_owned())
}

/// Builds the programs of this workspace in this one's profile, so that no test runs against old
/// ones. Does nothing if `BIN_DIR` is set.
pub fn build() -> Result<()> {
    if env::var_os("BIN_DIR").is_some() {
        return Ok(());
    }
    let dir = binary_dir()?;
    let target = dir.parent().context("there is no target folder")?;
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // All default members, as `cargo test` builds them: features are resolved once.
    command.args(["build", "--quiet", "--bins", "--target-dir"]).arg(target);
    command.current_dir(root());
    if dir.ends_with("release") {
        command.arg("--release");
    }
    ensure!(command.status()?.success(), "relay and orchestrator don't build");
    Ok(())
}
