//! The table that compares SQ alone with SQ behind the gateway, rule by rule. Its rows are printed
//! by the tests that verify them.

use std::env;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use harness::host::tools;

/// The test binaries that print rows, each with its test filters; no filter selects all tests.
const TESTS: [(&str, &[&str]); 2] = [("guard", &[]), ("end_to_end", &["process::sq_alone"])];

/// Runs the tests and prints their rows. Returns the test binaries that failed.
pub(super) fn run() -> Result<Vec<String>> {
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
        // A row may follow the output of another test on the same line.
        let rows = text.lines().filter_map(|line| line.find("| ").map(|start| &line[start..]));
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
