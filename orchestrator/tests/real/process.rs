//! The process runtime: the contract of all runtimes, and its own rules.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use orchestrator::config::ProcessConfig;
use orchestrator::runtime::probe::wait_until_ready;
use orchestrator::runtime::process::ProcessRuntime;
use orchestrator::runtime::{ExitKind, FoundState, Runtime, RuntimeError};
use tempfile::TempDir;

use crate::contract;
use crate::tools::{USERS, VERSIONS, eventually, spec, sq_pattern};

/// Folders of one installation. Dropping it kills the processes that are left.
pub(crate) struct Installation {
    dir: TempDir,
}

impl Installation {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        // Reachable by the uid of SQ.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(dir.path().join("data")).unwrap();
        Self { dir }
    }

    pub(crate) fn runtime(&self) -> ProcessRuntime {
        let state_dir = self.dir.path().join("state");
        let config = ProcessConfig { sq: sq_pattern() };
        ProcessRuntime::new(&self.data(), &state_dir, USERS, &config).unwrap()
    }

    /// Path of a socket of this installation.
    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn record(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("state/process/{name}.json"))
    }

    /// Process ids, as the records have them.
    fn pids(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.dir.path().join("state/process")) else {
            return Vec::new();
        };
        let pid = |path: &Path| Some(read_json(path)?["pid"].to_string());
        entries.filter_map(|entry| pid(&entry.ok()?.path())).collect()
    }

    fn kill(&self) {
        for pid in self.pids() {
            Command::new("kill").args(["-9", &pid]).status().unwrap();
        }
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        self.kill();
    }
}

fn read_json(path: &Path) -> Option<serde_json::Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[tokio::test]
async fn instance_passes_through_all_states() {
    for version in VERSIONS {
        let home = Installation::new();
        let reopen = async || home.runtime();
        contract::instance_passes_through_all_states(home.runtime(), reopen, version).await;
    }
}

#[tokio::test]
async fn each_tenant_is_a_user_of_its_own() {
    let home = Installation::new();
    contract::each_tenant_is_a_user_of_its_own(&home.runtime(), &home.data()).await;
}

#[tokio::test]
async fn folder_of_the_old_single_user_moves() {
    let home = Installation::new();
    let reopen = async || home.runtime();
    contract::folder_of_the_old_single_user_moves(reopen, &home.data()).await;
}

#[tokio::test]
async fn key_is_on_no_command_line() {
    contract::key_is_on_no_command_line(&Installation::new().runtime()).await;
}

/// SQ serves everybody if it can't read its key's file.
#[tokio::test]
async fn sq_with_a_broken_key_file_is_refused() {
    let home = Installation::new();
    let broken = home.dir.path().join("broken.json");
    fs::write(&broken, "{\"version\": \"1.0\"").unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut sq = Command::new(sq_pattern().replace("{version}", "0.6.0"))
        .args(["host", &address.port().to_string(), "--mesh-config", path(&broken)])
        .args(["--data-dir", path(&home.data().join("alice"))])
        .current_dir(home.dir.path())
        .spawn()
        .unwrap();
    let ready = wait_until_ready(address, Duration::from_secs(10)).await;
    sq.kill().unwrap();
    sq.wait().unwrap();
    let refusal = ready.unwrap_err().to_string();
    assert!(refusal.contains("instead of 401"), "{refusal}");
}

#[tokio::test]
async fn death_is_an_event_and_stop_is_none() {
    for version in VERSIONS {
        let home = Installation::new();
        let kill = async || home.kill();
        contract::death_is_an_event_and_stop_is_none(&home.runtime(), version, kill).await;
    }
}

#[tokio::test]
async fn out_of_memory_kills_one_tenant_only() {
    for version in VERSIONS {
        let home = Installation::new();
        contract::out_of_memory_kills_one_tenant_only(&home.runtime(), version).await;
    }
}

#[tokio::test]
async fn resize_raises_the_memory_limit() {
    contract::resize_raises_the_memory_limit(&Installation::new().runtime()).await;
}

#[tokio::test]
async fn unwritable_folder_fails_the_start_by_name() {
    let home = Installation::new();
    fs::write(home.data().join("alice"), "not a folder").unwrap();
    let error = home.runtime().start(spec("alice", "0.6.0")).await.unwrap_err();
    assert!(matches!(&error, RuntimeError::Unwritable { path, .. } if path.ends_with("alice")));
}

#[tokio::test]
async fn instance_of_an_earlier_boot_is_recognized() {
    let home = Installation::new();
    let runtime = home.runtime();
    runtime.start(spec("alice", "0.6.0")).await.unwrap();
    drop(runtime);
    home.kill();
    let state = async || home.runtime().list().await.unwrap().remove(0).state;
    // The signal may be sent and not yet delivered.
    eventually("the death is seen", async || {
        (state().await == FoundState::Stopped(ExitKind::Gone)).then_some(())
    })
    .await;
    let mut record = read_json(&home.record("alice")).unwrap();
    record["boot"] = "another".into();
    fs::write(home.record("alice"), serde_json::to_vec(&record).unwrap()).unwrap();
    assert_eq!(state().await, FoundState::FromEarlierBoot);
}

/// An orchestrator that is killed before it has written the record leaves such a process.
#[tokio::test]
async fn sq_without_a_record_is_killed() {
    let home = Installation::new();
    let runtime = home.runtime();
    runtime.start(spec("alice", "0.6.0")).await.unwrap();
    let pid = home.pids().remove(0);
    drop(runtime);
    fs::remove_file(home.record("alice")).unwrap();
    let runtime = home.runtime();
    assert_eq!(runtime.list().await.unwrap(), []);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "the process is alive: {stat}");
    runtime.start(spec("alice", "0.6.0")).await.unwrap();
    assert_eq!(runtime.list().await.unwrap().len(), 1, "one with a record stays");
}

/// The file system is full except for the blocks that it reserves for root.
#[tokio::test]
#[ignore = "root and loop devices are needed: `make integration-test` runs it"]
async fn disk_with_room_for_root_only_fails_the_start() {
    let home = Installation::new();
    let image = home.dir.path().join("image");
    fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
    run("mkfs.ext4", &["-q", "-F", "-m", "50", path(&image)]);
    run("mount", &["-o", "loop", path(&image), path(&home.data())]);
    let _mounted = Mounted(home.data());
    fs::create_dir(home.data().join("alice")).unwrap();

    let filler = home.data().join("filler");
    fs::write(&filler, "").unwrap();
    run("chown", &["10001", path(&filler)]);
    let owner = ["--reuid", "10001", "--regid", "10001", "--clear-groups"];
    run("setpriv", &[&owner[..], &["sh", "-c", FILL_DISK, path(&filler)]].concat());
    let error = home.runtime().start(spec("alice", "0.6.0")).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Unwritable { .. }), "{error}");

    fs::remove_file(filler).unwrap();
    home.runtime().start(spec("alice", "0.6.0")).await.unwrap();
    home.kill();
}

/// Script that fills a disk to its last block.
const FILL_DISK: &str = "dd if=/dev/zero of=\"$0\" bs=64k 2>/dev/null; \
                         dd if=/dev/zero of=\"$0\" bs=1k oflag=append conv=notrunc 2>/dev/null; \
                         true";

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).status().unwrap();
    assert!(status.success(), "{program} {args:?}: {status}");
}

/// Unmounts a folder when it is dropped.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        run("umount", &["-l", path(&self.0)]);
    }
}

#[tokio::test]
async fn missing_version_is_named_in_the_error() {
    let runtime = Installation::new().runtime();
    let error = runtime.start(spec("alice", "9.9.9")).await.unwrap_err().to_string();
    assert!(error.contains("sq-9.9.9/bin/sq does not exist: run `make setup`"), "{error}");
}

#[tokio::test]
async fn record_with_the_key_is_private() {
    let home = Installation::new();
    home.runtime().start(spec("alice", "0.6.0")).await.unwrap();
    let metadata = fs::metadata(home.record("alice")).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
}

/// In the orchestrator's session, a paused SQ would get SIGHUP when the orchestrator dies.
#[tokio::test]
async fn instance_has_its_own_session() {
    let home = Installation::new();
    home.runtime().start(spec("alice", "0.6.0")).await.unwrap();
    let pid = home.pids().remove(0);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = stat.rsplit(')').next().unwrap().split_whitespace().nth(3);
    assert_eq!(session, Some(pid.as_str()));
}
