//! Exit codes and messages of the program.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn serve(config: &Path) -> Output {
    let program = env!("CARGO_BIN_EXE_orchestrator");
    Command::new(program).args(["serve", "--config"]).arg(config).output().unwrap()
}

#[test]
fn bad_configuration_exits_64_with_every_fault() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("orchestrator.toml");
    let text = "what = 1\n[lifecycle]\nlease = \"1ms\"\n[listen]\ngate = \"0.0.0.0:1\"\n";
    fs::write(&config, text).unwrap();
    let output = serve(&config);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{stderr}");
    for fault in ["what: ", "lifecycle.lease: ", "listen.gate: "] {
        assert!(stderr.contains(fault), "{fault}is missing in:\n{stderr}");
    }
}

#[test]
fn missing_configuration_exits_64() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(serve(&dir.path().join("none.toml")).status.code(), Some(64));
}
