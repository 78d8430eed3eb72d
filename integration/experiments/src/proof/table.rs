//! The table of what SQ alone does and what the gateway makes of it, out of the tests that show it.

use std::env;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use harness::host::tools;

/// Tests that print rows: the binary and, where not all of it does, which tests.
const TESTS: [(&str, &[&str]); 2] = [("guard", &[]), ("end_to_end", &["process::sq_alone"])];

/// Runs the tests and prints their rows; gives those test binaries that failed.
pub fn run() -> Result<Vec<String>> {
    println!("| test | rule | SQ | alone | gateway |");
    println!("|---|---|---|---|---|");
    let mut failed = Vec::new();
    for (binary, tests) in TESTS {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["test", "--quiet", "--package", "integration", "--features"])
            .args(["integration/containers", "--test", binary, "--"])
            .args(tests)
            .arg("--nocapture")
            .current_dir(tools::root())
            .env("RUNTIME", "process")
            .stdin(Stdio::null())
            .output()
            .context("cargo test")?;
        let text = String::from_utf8_lossy(&output.stdout);
        // A row may follow what the harness prints for another test.
        let rows = text.lines().filter_map(|line| line.find("| ").map(|at| &line[at..]));
        let mut rows: Vec<&str> = rows.filter(|row| row.ends_with('|')).collect();
        rows.sort_unstable();
        for row in rows {
            println!("{row}");
        }
        if !output.status.success() {
            eprintln!("{text}\n{}", String::from_utf8_lossy(&output.stderr));
            failed.push(format!("tests of {binary}"));
        }
    }
    Ok(failed)
}
