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

use crate::world::{World, id, key};

struct Ranch {
    dir: TempDir,
}

fn relay(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_relay")).args(args).output().unwrap()
}

impl Ranch {
    fn new() -> Self {
        let ranch = Self { dir: tempfile::tempdir().unwrap() };
        ranch.good("init", &[]);
        ranch
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("registry.phext")
    }

    fn run(&self, command: &str, args: &[&str]) -> Output {
        let file = self.file();
        relay(&[&["registry", command, "--file", file.to_str().unwrap()], args].concat())
    }

    /// stdout of a command that succeeds.
    fn good(&self, command: &str, args: &[&str]) -> String {
        let output = self.run(command, args);
        let (out, err) = texts(&output);
        assert_eq!(output.status.code(), Some(0), "{command} {args:?}: {out}{err}");
        out
    }

    /// stderr of a command that fails with that code.
    fn bad(&self, code: i32, command: &str, args: &[&str]) -> String {
        let output = self.run(command, args);
        assert_eq!(output.status.code(), Some(code), "{command} {args:?}");
        texts(&output).1
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.file()).unwrap()
    }

    fn registry(&self) -> Registry {
        Registry::read(self.text().as_bytes()).unwrap()
    }
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn add_prints_the_key_once_and_stores_its_digest() {
    let ranch = Ranch::new();
    let out = ranch.good("add", &["alice", "--tier", "free", "--set", "storage=30 MB"]);
    let key = ApiKey::parse(out.trim()).unwrap();
    let registry = ranch.registry();
    let alice = &registry.tenants[&id("alice")];
    assert_eq!(alice.keys[0].hash, key.hash());
    assert_eq!(alice.limits.storage_bytes, 30_000_000);
    assert!(!ranch.text().contains(key.expose()));
    for command in ["list", "check"] {
        assert!(!ranch.good(command, &[]).contains(key.expose()));
    }
    assert!(!ranch.good("show", &["alice"]).contains(key.expose()));
}

#[test]
fn a_tenants_life_is_told_by_list_and_show() {
    let ranch = Ranch::new();
    let first = ApiKey::parse(ranch.good("add", &["alice", "--tier", "free"]).trim()).unwrap();
    ranch.good("add", &["bob", "--tier", "pro", "--set", "x-email=bob@example.com"]);
    ranch.good("suspend", &["bob"]);
    assert_eq!(
        ranch.good("list", &[]),
        "TENANT  TIER  STATUS     KEYS  STORAGE  USD/MONTH  AT\n\
         alice   free  active     1     25 MB    0          1.1.1/1.1.1/1.1.2\n\
         bob     pro   suspended  1     500 MB   20         1.1.1/1.1.1/1.1.3\n"
    );
    let said = |args: &[&str]| texts(&ranch.run("list", args)).1;
    assert_eq!(said(&[]), "active tenants: 1; they pay 0.00 USD a month of 380\n");
    ranch.good("resume", &["bob"]);
    ranch.good("set", &["alice", "price-usd-month=4.99"]);
    let revenue = "active tenants: 2; they pay 24.99 USD a month of 500\n";
    assert_eq!(said(&["--target", "500", "--format", "json"]), revenue);
    let second = ranch.good("rotate", &["alice", "--overlap", "2h"]);
    let second = ApiKey::parse(second.trim()).unwrap();
    let json: serde_json::Value =
        serde_json::from_str(&ranch.good("show", &["alice", "--format", "json"])).unwrap();
    let keys = json["keys"].as_array().unwrap();
    assert_eq!(keys[0]["sha256"], first.hash().to_string());
    assert!(keys[0]["expires"].is_string());
    assert_eq!(keys[1]["sha256"], second.hash().to_string());
    assert_eq!(
        (&keys[1]["expires"], &keys[1]["state"]),
        (&serde_json::Value::Null, &"live".into())
    );
    ranch.good("rotate", &["alice", "--overlap", "0"]);
    assert!(ranch.good("list", &[]).contains("alice   free  active  1 "));
    ranch.good("set", &["bob", "tier=team", "x-email=", "keep=awake"]);
    let shown = ranch.good("show", &["bob"]);
    assert!(shown.contains("1 GB") && shown.contains("awake") && !shown.contains("example.com"));
    ranch.good("remove", &["alice"]);
    let list: serde_json::Value =
        serde_json::from_str(&ranch.good("list", &["--format", "json"])).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert_eq!(list[0]["limits"]["price_cents_month"], 5000);
}

#[test]
fn a_file_that_is_not_valid_is_not_touched() {
    let ranch = Ranch::new();
    ranch.good("add", &["alice", "--tier", "free"]);
    let broken = ranch.text().replace("status: active", "status: maybe");
    std::fs::write(ranch.file(), &broken).unwrap();
    for (command, args) in [
        ("check", vec![]),
        ("list", vec![]),
        ("suspend", vec!["alice"]),
        ("add", vec!["bob", "--tier", "free"]),
    ] {
        let err = ranch.bad(1, command, &args);
        let place = format!("{}: 1.1.1/1.1.1/1.1.2 line 5 (line ", ranch.file().display());
        assert!(err.starts_with(&place), "{command}: {err}");
        assert!(err.contains("status: write active or suspended"), "{command}: {err}");
    }
    assert_eq!(ranch.text(), broken);
}

#[test]
fn wrong_usage_is_told_apart_from_faults() {
    let ranch = Ranch::new();
    let before = ranch.text();
    assert!(ranch.bad(1, "init", &[]).contains("exists"));
    assert!(ranch.bad(1, "suspend", &["nobody"]).contains("there is no tenant nobody"));
    assert!(ranch.bad(1, "add", &["a", "--tier", "gold"]).contains("there are: free"));
    let storage = ["a", "--tier", "free", "--set", "storage=lots"];
    assert!(ranch.bad(1, "add", &storage).contains("storage: write a size with its unit"));
    assert!(ranch.bad(2, "add", &["alice"]).contains("--tier"));
    assert!(ranch.bad(2, "add", &["Alice", "--tier", "free"]).contains("a name is"));
    assert!(ranch.bad(2, "rotate", &["a", "--overlap", "soon"]).contains("write a time"));
    assert_eq!(ranch.text(), before);
    let help = texts(&relay(&["registry", "--help"])).0;
    assert!(help.contains("Examples:") && help.contains("--overlap 24h"), "{help}");
}

/// `/dev/full` takes nothing.
#[test]
fn a_key_that_can_not_be_printed_is_a_fault_that_says_what_to_do() {
    let ranch = Ranch::new();
    let file = ranch.file();
    let into_nothing = |command: &str, args: &[&str]| {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut relay = Command::new(env!("CARGO_BIN_EXE_relay"));
        relay.args(["registry", command, "--file"]).arg(&file).args(args).stdout(full);
        let output = relay.output().unwrap();
        (output.status.code(), texts(&output).1)
    };
    for (command, args) in
        [("add", ["alice", "--tier", "free"].as_slice()), ("rotate", ["alice"].as_slice())]
    {
        let (code, err) = into_nothing(command, args);
        assert_eq!(code, Some(1), "{command}: {err}");
        assert!(err.contains("Make another: relay registry rotate alice"), "{command}: {err}");
    }
    let digest = key(7).hash().to_string();
    let given = ["bob", "--tier", "free", "--key-sha256", &digest];
    assert_eq!(into_nothing("add", &given).0, Some(0), "there is nothing to lose");
    assert_eq!(into_nothing("list", &[]).0, Some(1));
}

/// A pipe whose reader has gone, as after `| head -0`.
#[test]
fn a_reader_that_is_gone_is_no_fault_but_for_a_key() {
    let ranch = Ranch::new();
    let file = ranch.file();
    let unread = |command: &str, args: &[&str]| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut relay = Command::new(env!("CARGO_BIN_EXE_relay"));
        relay.args(["registry", command, "--file"]).arg(&file).args(args).stdout(writer);
        relay.output().unwrap().status.code()
    };
    assert_eq!(unread("list", &[]), Some(0));
    assert_eq!(unread("add", &["alice", "--tier", "free"]), Some(1));
}

#[test]
fn a_bad_configuration_ends_with_64_and_every_fault() {
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
fn certificates_that_are_not_there_are_a_fault_of_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("relay.toml");
    let text = include_str!("../../relay.example.toml").replace("127.0.0.1:7443", "127.0.0.1:0");
    std::fs::write(&config, text).unwrap();
    let output = relay(&["serve", "--config", config.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(64));
    assert!(texts(&output).1.contains("gateways-ca.crt"));
}

#[test]
fn a_port_in_use_is_one_clear_line() {
    let world = World::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let output = relay(&["serve", "--config", configured(&world, address).to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let err = texts(&output).1;
    assert!(err.contains(&format!("can't listen on {address}: Address already in use")), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
}

/// What is logged from start to end, a bad edit and a plain key in the registry included. A hang-up
/// in between ends nothing.
#[test]
fn sigterm_ends_the_relay_with_0_and_no_key_is_ever_logged() {
    let world = World::new();
    let plain = world
        .text()
        .replace(&format!("key-sha256: {}", key(2).hash()), &format!("key: {}", key(2).expose()));
    world.save(&plain);
    let config = configured(&world, ([127, 0, 0, 1], 0).into());
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
    wait_for("the registry was read");
    world.save(&plain.replace("key: pmb", "key: Pmb"));
    wait_for("1.1.1/1.1.1/1.1.3 line 3");
    wait_for("the last good one stays");
    kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
    world.save(&plain.replace("key: pmb", "key:  Pmb"));
    wait_for("the last good one stays");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    wait_for("stopped");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!log.contains(&key(2).expose()[8..]), "{log}");
}

fn configured(world: &World, listen: SocketAddr) -> PathBuf {
    let config = world.path("relay.toml");
    let text = include_str!("../../relay.example.toml")
        .replace("127.0.0.1:7443", &listen.to_string())
        .replace("gateways-ca.crt", "ca.crt");
    std::fs::write(&config, text).unwrap();
    config
}

#[test]
fn fifty_commands_at_once_lose_no_edit() {
    let ranch = Ranch::new();
    let file = ranch.file();
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
    assert_eq!(ranch.registry().tenants.len(), 50);
    assert_eq!(names(ranch.dir.path()), ["registry.phext"], "nothing is left behind");
}

/// As it is while a copy in place stalls: a command would make the half the whole.
#[test]
fn a_file_that_looks_cut_beside_what_the_relay_kept_is_not_changed() {
    let ranch = Ranch::new();
    for n in 0..6 {
        ranch.good("add", &[&format!("t{n}"), "--tier", "free"]);
    }
    let whole = ranch.text();
    let kept = ranch.dir.path().join("registry.phext.last-good");
    std::fs::write(&kept, &whole).unwrap();
    let cut = &whole[..whole.find("\ntenant: t1").unwrap()];
    std::fs::write(ranch.file(), cut).unwrap();
    for (command, args) in [("add", vec!["new", "--tier", "free"]), ("suspend", vec!["t0"])] {
        let err = ranch.bad(1, command, &args);
        assert!(err.contains("looks cut") && err.contains("5 of 6 good keys"), "{err}");
        assert!(err.contains("--allow-loss"), "{err}");
    }
    assert_eq!(ranch.text(), cut);
    ranch.good("suspend", &["t0", "--allow-loss"]);
    std::fs::write(ranch.file(), &whole).unwrap();
    for n in 0..3 {
        ranch.good("remove", &[&format!("t{n}")]);
    }
}

#[test]
fn what_a_killed_command_left_is_taken_out_by_the_next() {
    let ranch = Ranch::new();
    std::fs::write(ranch.dir.path().join(".registry-x1y2z3"), "half of a registry").unwrap();
    ranch.good("add", &["alice", "--tier", "free"]);
    assert_eq!(names(ranch.dir.path()), ["registry.phext"]);
}

#[test]
fn a_change_keeps_mode_owner_and_links() {
    let ranch = Ranch::new();
    assert_eq!(mode(&ranch.file()), 0o600, "a new registry is its owner's only");
    std::fs::set_permissions(ranch.file(), PermissionsExt::from_mode(0o640)).unwrap();
    let root = std::fs::metadata(ranch.file()).unwrap().uid() == 0;
    if root {
        std::os::unix::fs::chown(ranch.file(), Some(12_345), Some(12_346)).unwrap();
    }
    let link = ranch.dir.path().join("link");
    std::os::unix::fs::symlink(ranch.file(), &link).unwrap();
    let args = ["registry", "add", "alice", "--tier", "free", "--file", link.to_str().unwrap()];
    assert!(relay(&args).status.success());
    assert_eq!(mode(&ranch.file()), 0o640);
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(ranch.registry().tenants.len(), 1);
    if root {
        let meta = std::fs::metadata(ranch.file()).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (12_345, 12_346));
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o7777
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}
