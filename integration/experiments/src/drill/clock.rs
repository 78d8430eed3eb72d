//! A jump of the wall clock, without one of the host: everything of the drill is started with a
//! small library preloaded that shifts what the C library tells of the time. The monotonic clock is
//! left alone, as a real jump leaves it. Not covered: SQ itself (a static program), and the clock
//! that Docker writes into its events.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Where the shift stands.
const FILE: &str = "SQ_CLOCK_FILE";
const SOURCE: &str = include_str!("clock.c");

/// Whether this process was started by [`run_shifted`].
pub(super) fn is_shifted() -> bool {
    std::env::var_os(FILE).is_some()
}

/// From now on the clock of all parts is off by this.
pub(super) fn shift(seconds: i64) -> Result<()> {
    let path = std::env::var_os(FILE).context("the clock can't be shifted here")?;
    // In place: the parts have the file mapped.
    let mut file = fs::OpenOptions::new().write(true).open(&path)?;
    Ok(file.write_all(&seconds.to_ne_bytes())?)
}

/// Runs the drill of `program`, which is this crate's, with a clock that can be shifted.
pub fn run_shifted(program: &Path, quick: bool) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let library = build(dir.path())?;
    let file = dir.path().join("shift");
    fs::write(&file, 0_i64.to_ne_bytes())?;
    let mut command = Command::new(program);
    command.args(["drill", "--only", super::Drill::ClockJumps.title()]);
    if quick {
        command.arg("--quick");
    }
    let output = command.env(FILE, &file).env("LD_PRELOAD", library).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let row = text.lines().find(|line| line.starts_with(super::Drill::ClockJumps.title()));
    let error = || String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{}", row.with_context(error)?);
    ensure!(output.status.success(), "{}", error());
    Ok(())
}

fn build(dir: &Path) -> Result<std::path::PathBuf> {
    let (source, library) = (dir.join("clock.c"), dir.join("clock.so"));
    fs::write(&source, SOURCE)?;
    let output = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&library, &source])
        .arg("-ldl")
        .output()
        .context("no C compiler: the clock can't be shifted")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(library)
}
