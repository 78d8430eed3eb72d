//! Jumps of the wall clock that leave the host's clock alone.
//!
//! All parts of the drill are started with a preloaded library that shifts the time which the C
//! library returns. The monotonic clock is not shifted, as in a real jump. Two clocks are not
//! covered: that of SQ, a static program, and the one that Docker writes into its events.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Environment variable with the path of the file that holds the shift.
const SHIFT_FILE: &str = "SQ_CLOCK_FILE";
const LIBRARY_SOURCE: &str = include_str!("clock.c");

/// Returns whether this process was started by [`run_with_shifted_clock`].
pub(super) fn can_shift() -> bool {
    std::env::var_os(SHIFT_FILE).is_some()
}

/// Sets the difference between the parts' clock and the host's.
pub(super) fn shift(seconds: i64) -> Result<()> {
    let path = std::env::var_os(SHIFT_FILE).context("this process has no clock to shift")?;
    // Written in place: the parts have mapped the file.
    let mut file = fs::OpenOptions::new().write(true).open(&path)?;
    Ok(file.write_all(&seconds.to_ne_bytes())?)
}

/// Runs the clock drill as a child process whose clock can be shifted. `program` is the binary
/// `integration`. Prints the drill's row.
pub fn run_with_shifted_clock(program: &Path, quick: bool) -> Result<()> {
    let title = super::Drill::ClockJumps.title();
    let dir = tempfile::tempdir()?;
    let library = build_library(dir.path())?;
    let file = dir.path().join("shift");
    fs::write(&file, 0_i64.to_ne_bytes())?;
    let mut command = Command::new(program);
    command.args(["drill", "--only", title]);
    if quick {
        command.arg("--quick");
    }
    let output = command.env(SHIFT_FILE, &file).env("LD_PRELOAD", library).output()?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let row = stdout.lines().find(|line| line.starts_with(title));
    println!("{}", row.with_context(|| stderr.clone().into_owned())?);
    ensure!(output.status.success(), "{stderr}");
    Ok(())
}

fn build_library(dir: &Path) -> Result<PathBuf> {
    let source = dir.join("clock.c");
    let library = dir.join("clock.so");
    fs::write(&source, LIBRARY_SOURCE)?;
    let output = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&library, &source])
        .arg("-ldl")
        .output()
        .context("the clock drill needs a C compiler, `cc`")?;
    ensure!(output.status.success(), "cc: {}", String::from_utf8_lossy(&output.stderr));
    Ok(library)
}
