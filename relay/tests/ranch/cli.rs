//! The `relay` binary as an operator uses it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use protocol::ApiKey;
use relay::registry::Registry;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::test_ranch::{TestRanch, id, key};

/// A registry in a temporary folder, and the `relay registry` commands on it.
struct RegistryCli {
    dir: TempDir,
}

fn relay(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_relay")).args(args).output().unwrap()
}

impl RegistryCli {
    fn new() -> Self {
        let cli = Self { dir: tempfile::tempdir().unwrap() };
        cli.run_ok("init", &[]);
        cli
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("registry.phext")
    }

    fn run(&self, command: &str, args: &[&str]) -> Output {
        let file = self.file();
        relay(&[&["registry", command, "--file", file.to_str().unwrap()], args].concat())
    }

    /// Runs a command that must succeed. Returns its stdout.
    fn run_ok(&self, command: &str, args: &[&str]) -> String {
        let output = self.run(command, args);
        let (out, err) = texts(&output);
        assert_eq!(output.status.code(), Some(0), "{command} {args:?}: {out}{err}");
        out
    }

    /// Runs a command that must fail with this exit code. Returns its stderr.
    fn run_err(&self, code: i32, command: &str, args: &[&str]) -> String {
        let output = self.run(command, args);
        assert_eq!(output.status.code(), Some(code), "{command} {args:?}");
        texts(&output).1
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.file()).unwrap()
    }

    fn registry(&self) -> Registry {
        Registry::parse(self.text().as_bytes()).unwrap()
    }
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn add_prints_the_key_and_stores_its_digest() {
    let cli = RegistryCli::new();
    let out = cli.run_ok("add", &["alice", "--tier", "free", "--set", "storage=30 MB"]);
    let key = ApiKey::parse(out.trim()).unwrap();
    let registry = cli.registry();
    let alice = &registry.tenants[&id("alice")];
    assert_eq!(alice.keys[0].hash, key.hash());
    assert_eq!(alice.limits.storage_bytes, 30_000_000);
    assert!(!cli.text().contains(key.expose()));
    for command in ["list", "check"] {
        assert!(!cli.run_ok(command, &[]).contains(key.expose()));
    }
    assert!(!cli.run_ok("show", &["alice"]).contains(key.expose()));
}

#[test]
fn list_and_show_follow_all_changes() {
    let cli = RegistryCli::new();
    let first = ApiKey::parse(cli.run_ok("add", &["alice", "--tier", "free"]).trim()).unwrap();
    assert_eq!(cli.run_ok("check", &[]), "valid: 1 tenant, 1 key, 4 tiers\n");
    cli.run_ok("add", &["bob", "--tier", "pro", "--set", "x-email=bob@example.com"]);
    cli.run_ok("suspend", &["bob"]);
    assert_eq!(
        cli.run_ok("list", &[]),
        "TENANT  TIER  STATUS     KEYS  STORAGE  USD/MONTH  COORDINATE\n\
         alice   free  active     1     25 MB    0          1.1.1/1.1.1/1.1.2\n\
         bob     pro   suspended  1     500 MB   20         1.1.1/1.1.1/1.1.3\n"
    );
    let revenue = |args: &[&str]| texts(&cli.run("list", args)).1;
    assert_eq!(revenue(&[]), "1 active tenant pays 0.00 of 380 USD a month\n");
    cli.run_ok("resume", &["bob"]);
    cli.run_ok("set", &["alice", "price-usd-month=4.99"]);
    let both = "2 active tenants pay 24.99 of 500 USD a month\n";
    assert_eq!(revenue(&["--target", "500", "--format", "json"]), both);
    let second = cli.run_ok("rotate", &["alice", "--overlap", "2h"]);
    let second = ApiKey::parse(second.trim()).unwrap();
    let json: serde_json::Value =
        serde_json::from_str(&cli.run_ok("show", &["alice", "--format", "json"])).unwrap();
    let keys = json["keys"].as_array().unwrap();
    assert_eq!(keys[0]["sha256"], first.hash().to_string());
    assert!(keys[0]["expires"].is_string());
    assert_eq!(keys[1]["sha256"], second.hash().to_string());
    assert_eq!(
        (&keys[1]["expires"], &keys[1]["state"]),
        (&serde_json::Value::Null, &"live".into())
    );
    cli.run_ok("rotate", &["alice", "--overlap", "0"]);
    assert!(cli.run_ok("list", &[]).contains("alice   free  active  1 "));
    cli.run_ok("set", &["bob", "tier=team", "x-email=", "keep=awake"]);
    let shown = cli.run_ok("show", &["bob"]);
    assert!(shown.contains("1 GB") && shown.contains("awake") && !shown.contains("example.com"));
    cli.run_ok("remove", &["alice"]);
    let list: serde_json::Value =
        serde_json::from_str(&cli.run_ok("list", &["--format", "json"])).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert_eq!(list[0]["limits"]["price_cents_month"], 5000);
}

#[test]
fn an_invalid_file_is_not_changed() {
    let cli = RegistryCli::new();
    cli.run_ok("add", &["alice", "--tier", "free"]);
    let broken = cli.text().replace("status: active", "status: maybe");
    std::fs::write(cli.file(), &broken).unwrap();
    for (command, args) in [
        ("check", vec![]),
        ("list", vec![]),
        ("suspend", vec!["alice"]),
        ("add", vec!["bob", "--tier", "free"]),
    ] {
        let err = cli.run_err(1, command, &args);
        let place = format!("{}: 1.1.1/1.1.1/1.1.2 line 5 (line ", cli.file().display());
        assert!(err.starts_with(&place), "{command}: {err}");
        assert!(err.contains("status: expected active or suspended"), "{command}: {err}");
    }
    assert_eq!(cli.text(), broken);
}

#[test]
fn exit_codes_separate_wrong_usage_from_faults() {
    let cli = RegistryCli::new();
    let before = cli.text();
    assert!(cli.run_err(1, "init", &[]).contains("the file exists; `init` never overwrites"));
    assert!(cli.run_err(1, "suspend", &["carol"]).contains("there is no tenant carol"));
    assert!(
        cli.run_err(1, "add", &["a", "--tier", "gold"])
            .contains("there is no tier gold; the registry defines free")
    );
    let storage = ["a", "--tier", "free", "--set", "storage=lots"];
    assert!(cli.run_err(1, "add", &storage).contains("storage: expected a size with its unit"));
    assert!(cli.run_err(2, "add", &["alice"]).contains("--tier"));
    assert!(cli.run_err(2, "add", &["Alice", "--tier", "free"]).contains("a name is"));
    assert!(cli.run_err(2, "rotate", &["a", "--overlap", "soon"]).contains("expected a time"));
    assert_eq!(cli.text(), before);
    let absent = texts(&relay(&["registry", "list", "--file", "/nowhere/r.phext"])).1;
    assert!(absent.contains("relay registry init --file /nowhere/r.phext"), "{absent}");
    let help = texts(&relay(&["registry", "--help"])).0;
    assert!(help.contains("Examples:") && help.contains("--overlap 24h"), "{help}");
}

/// Every write to `/dev/full` fails.
#[test]
fn an_unprinted_key_is_a_fault() {
    let cli = RegistryCli::new();
    let file = cli.file();
    let run_with_full_stdout = |command: &str, args: &[&str]| {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut relay = Command::new(env!("CARGO_BIN_EXE_relay"));
        relay.args(["registry", command, "--file"]).arg(&file).args(args).stdout(full);
        let output = relay.output().unwrap();
        (output.status.code(), texts(&output).1)
    };
    for (command, args) in
        [("add", ["alice", "--tier", "free"].as_slice()), ("rotate", ["alice"].as_slice())]
    {
        let (code, err) = run_with_full_stdout(command, args);
        assert_eq!(code, Some(1), "{command}: {err}");
        assert!(err.contains("Generate another: relay registry rotate alice"), "{command}: {err}");
    }
    let digest = key(7).hash().to_string();
    let given = ["bob", "--tier", "free", "--key-sha256", &digest];
    assert_eq!(run_with_full_stdout("add", &given).0, Some(0), "no key is lost");
    assert_eq!(run_with_full_stdout("list", &[]).0, Some(1));
}

/// The reader of the pipe is gone, as after `| head -0`.
#[test]
fn a_closed_pipe_is_a_fault_only_for_keys() {
    let cli = RegistryCli::new();
    let file = cli.file();
    let run_unread = |command: &str, args: &[&str]| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut relay = Command::new(env!("CARGO_BIN_EXE_relay"));
        relay.args(["registry", command, "--file"]).arg(&file).args(args).stdout(writer);
        relay.output().unwrap().status.code()
    };
    assert_eq!(run_unread("list", &[]), Some(0));
    assert_eq!(run_unread("add", &["alice", "--tier", "free"]), Some(1));
}

#[test]
fn a_bad_configuration_reports_every_fault() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("relay.toml");
    std::fs::write(&config, "listen = 'x'\ncolour = 1\n").unwrap();
    let output = relay(&["serve", "--config", config.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(64));
    let err = texts(&output).1;
    for fault in ["listen:", "colour:", "tls.cert:", "source:"] {
        assert!(err.contains(fault), "{err}");
    }
    let absent = relay(&["serve", "--config", "/nowhere/relay.toml"]);
    assert_eq!(absent.status.code(), Some(64));
}

#[test]
fn missing_certificates_are_a_configuration_fault() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("relay.toml");
    let text = include_str!("../../relay.example.toml").replace("127.0.0.1:7443", "127.0.0.1:0");
    std::fs::write(&config, text).unwrap();
    let output = relay(&["serve", "--config", config.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(64));
    assert!(texts(&output).1.contains("gateways-ca.crt"));
}

#[test]
fn a_port_in_use_is_reported_in_one_line() {
    let ranch = TestRanch::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let output = relay(&["serve", "--config", write_config(&ranch, address).to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let err = texts(&output).1;
    assert!(err.contains(&format!("can't listen on {address}: Address already in use")), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
}

/// The log covers start, a bad edit, a plain key in the registry, a hang-up that changes nothing, and
/// the stop.
#[test]
fn no_key_is_logged_before_a_clean_stop() {
    let ranch = TestRanch::new();
    let plain = ranch
        .text()
        .replace(&format!("key-sha256: {}", key(2).hash()), &format!("key: {}", key(2).expose()));
    ranch.save(&plain);
    let config = write_config(&ranch, ([127, 0, 0, 1], 0).into());
    let mut child = Command::new(env!("CARGO_BIN_EXE_relay"))
        .args(["serve", "--config", config.to_str().unwrap()])
        .env("RUST_LOG", "trace")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = String::new();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut wait_for = |words: &str| {
        for line in lines.by_ref() {
            let line = line.unwrap();
            log += &line;
            if line.contains(words) {
                return;
            }
        }
        panic!("{words} was not logged:\n{log}");
    };
    wait_for("secret is open to every user of this host");
    wait_for("registry was loaded");
    ranch.save(&plain.replace("key: pmb", "key: Pmb"));
    wait_for("1.1.1/1.1.1/1.1.3 line 3");
    wait_for("the last good one stays");
    kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
    ranch.save(&plain.replace("key: pmb", "key:  Pmb"));
    wait_for("the last good one stays");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    wait_for("relay stopped");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!log.contains(&key(2).expose()[8..]), "{log}");
    assert!(!log.contains('\u{1b}'), "colours are for terminals only: {log}");
}

fn write_config(ranch: &TestRanch, listen: SocketAddr) -> PathBuf {
    let config = ranch.path("relay.toml");
    let text = include_str!("../../relay.example.toml")
        .replace("127.0.0.1:7443", &listen.to_string())
        .replace("gateways-ca.crt", "ca.crt");
    std::fs::write(&config, text).unwrap();
    config
}

#[test]
fn concurrent_commands_lose_no_edit() {
    let cli = RegistryCli::new();
    let file = cli.file();
    let start = |n: usize| {
        Command::new(env!("CARGO_BIN_EXE_relay"))
            .args(["registry", "add", &format!("t{n}"), "--tier", "free", "--file"])
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let commands: Vec<_> = (0..50).map(start).collect();
    for mut command in commands {
        assert!(command.wait().unwrap().success());
    }
    assert_eq!(cli.registry().tenants.len(), 50);
    let files = ["registry.phext", "registry.phext.written"];
    assert_eq!(names(cli.dir.path()), files, "no temporary file remains");
}

/// While a copy in place stalls, a command would turn the first half into the registry.
#[test]
fn a_truncated_file_is_not_changed() {
    let cli = RegistryCli::new();
    for n in 0..6 {
        cli.run_ok("add", &[&format!("t{n}"), "--tier", "free"]);
    }
    let whole = cli.text();
    let copy = cli.dir.path().join("registry.phext.last-good");
    std::fs::write(&copy, &whole).unwrap();
    let truncated = &whole[..whole.find("\ntenant: t1").unwrap()];
    std::fs::write(cli.file(), truncated).unwrap();
    for (command, args) in [("add", vec!["new", "--tier", "free"]), ("suspend", vec!["t0"])] {
        let err = cli.run_err(1, command, &args);
        assert!(err.contains("looks truncated") && err.contains("5 of 6 live keys"), "{err}");
        assert!(err.contains("--allow-loss"), "{err}");
    }
    assert_eq!(cli.text(), truncated);
    cli.run_ok("suspend", &["t0", "--allow-loss"]);
    std::fs::write(cli.file(), &whole).unwrap();
    for n in 0..3 {
        cli.run_ok("remove", &[&format!("t{n}")]);
    }
}

#[test]
fn leftovers_of_a_killed_command_are_removed() {
    let cli = RegistryCli::new();
    std::fs::write(cli.dir.path().join(".registry-x1y2z3"), "half of a registry").unwrap();
    cli.run_ok("add", &["alice", "--tier", "free"]);
    assert_eq!(names(cli.dir.path()), ["registry.phext", "registry.phext.written"]);
}

#[test]
fn a_change_preserves_mode_owner_and_links() {
    let cli = RegistryCli::new();
    assert_eq!(mode(&cli.file()), 0o600, "only the owner may read a new registry");
    std::fs::set_permissions(cli.file(), PermissionsExt::from_mode(0o640)).unwrap();
    let root = std::fs::metadata(cli.file()).unwrap().uid() == 0;
    if root {
        std::os::unix::fs::chown(cli.file(), Some(12_345), Some(12_346)).unwrap();
    }
    let link = cli.dir.path().join("link");
    std::os::unix::fs::symlink(cli.file(), &link).unwrap();
    let args = ["registry", "add", "alice", "--tier", "free", "--file", link.to_str().unwrap()];
    assert!(relay(&args).status.success());
    assert_eq!(mode(&cli.file()), 0o640);
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(cli.registry().tenants.len(), 1);
    if root {
        let meta = std::fs::metadata(cli.file()).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (12_345, 12_346));
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o7777
}

/// Names of the files in a folder, without the audit log.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name != "audit.jsonl").collect();
    names.sort();
    names
}

#[test]
fn each_change_is_written_down_without_secrets() {
    let cli = RegistryCli::new();
    let key = cli.run_ok("add", &["alice", "--tier", "free", "--set", "x-email=a@example.com"]);
    cli.run_ok("set", &["alice", "tier=team"]);
    cli.run_err(1, "suspend", &["nobody"]);
    cli.run_ok("list", &[]);
    let rotated = cli.run_ok("rotate", &["alice"]);
    let table = cli.run_ok("audit", &[]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 6, "a heading, init and four changes: {table}");
    for (line, expected) in lines[2..].iter().zip(["tier=free", "tier=team", "refused", "rotate"]) {
        assert!(line.contains(expected), "{table}");
    }
    let log = std::fs::read_to_string(cli.dir.path().join("audit.jsonl")).unwrap();
    for key in [key, rotated] {
        let key = ApiKey::parse(key.trim()).unwrap();
        assert!(!log.contains(key.expose()) && !log.contains(&key.hash().to_string()));
    }
    assert!(!log.contains("a@example.com"), "{log}");
    assert_eq!(mode(&cli.dir.path().join("audit.jsonl")) & 0o777, 0o600);
    let whole = cli.run_ok("audit", &["--verify"]);
    assert!(whole.starts_with("whole: 10 lines"), "{whole}");
    let tampered = log.replace("alice", "bobby");
    std::fs::write(cli.dir.path().join("audit.jsonl"), tampered).unwrap();
    let fault = cli.run_err(1, "audit", &["--verify"]);
    assert!(fault.contains("not whole") && fault.contains("audit.jsonl:3:"), "{fault}");
}
