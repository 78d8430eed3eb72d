//! What the program says and how it ends.

use std::fs;
use std::process::Command;

#[test]
fn a_bad_configuration_ends_it_with_64_and_every_fault() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("orchestrator.toml");
    fs::write(&config, "what = 1\n[lifecycle]\nlease_ms = 1\n[listen]\ngate = \"0.0.0.0:1\"\n")
        .unwrap();
    let program = env!("CARGO_BIN_EXE_orchestrator");
    let ended = Command::new(program).args(["serve", "--config"]).arg(&config).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(64), "{said}");
    for fault in ["what: ", "lifecycle.lease_ms: ", "listen.gate: "] {
        assert!(said.contains(fault), "{fault}is missing in:\n{said}");
    }
    let none = dir.path().join("none.toml");
    let ended = Command::new(program).args(["serve", "--config"]).arg(none).output().unwrap();
    assert_eq!(ended.status.code(), Some(64));
}
