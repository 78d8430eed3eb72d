//! The process runtime.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use orchestrator::config::ProcessConfig;
use orchestrator::runtime::folder::Owner;
use orchestrator::runtime::process::ProcessRuntime;
use orchestrator::runtime::{ExitKind, FoundState, Runtime, RuntimeError};
use tempfile::TempDir;

use crate::rules;
use crate::tools::{VERSIONS, eventually, spec, sq_pattern};

/// Folders of one installation; what still runs at the end is killed.
pub(crate) struct Home {
    dir: TempDir,
}

impl Home {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(dir.path().join("data")).unwrap();
        Self { dir }
    }

    pub(crate) fn runtime(&self) -> ProcessRuntime {
        let data_root = self.dir.path().join("data");
        let state_dir = self.dir.path().join("state");
        let owner = Owner { uid: 10001, gid: 10001 };
        let config = ProcessConfig { sq: sq_pattern() };
        ProcessRuntime::new(&data_root, &state_dir, owner, &config).unwrap()
    }

    fn pids(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.dir.path().join("state/process")) else {
            return Vec::new();
        };
        let pid = |path: &Path| {
            let json: serde_json::Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
            Some(json["pid"].to_string())
        };
        entries.filter_map(|entry| pid(&entry.ok()?.path())).collect()
    }

    fn kill(&self) {
        for pid in self.pids() {
            std::process::Command::new("kill").args(["-9", &pid]).status().unwrap();
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.kill();
    }
}

#[tokio::test]
async fn an_instance_lives_through_its_states() {
    for version in VERSIONS {
        let home = Home::new();
        rules::an_instance_lives_through_its_states(
            home.runtime(),
            async || home.runtime(),
            version,
        )
        .await;
    }
}

#[tokio::test]
async fn a_death_is_told_once_and_a_stop_is_not() {
    for version in VERSIONS {
        let home = Home::new();
        rules::a_death_is_told_once_and_a_stop_is_not(&home.runtime(), version, async || {
            home.kill();
        })
        .await;
    }
}

#[tokio::test]
async fn a_tenant_that_uses_up_its_memory_dies_alone() {
    for version in VERSIONS {
        let home = Home::new();
        rules::a_tenant_that_uses_up_its_memory_dies_alone(&home.runtime(), version).await;
    }
}

#[tokio::test]
async fn a_running_instance_can_be_given_more_memory() {
    rules::a_running_instance_can_be_given_more_memory(&Home::new().runtime()).await;
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_fails_the_start_with_its_name() {
    let home = Home::new();
    fs::write(home.dir.path().join("data/alice"), "not a folder").unwrap();
    let error = home.runtime().start(spec("alice", "0.6.0")).await.unwrap_err();
    assert!(matches!(&error, RuntimeError::Unwritable { path, .. } if path.ends_with("alice")));
}

#[tokio::test]
async fn what_an_earlier_boot_left_is_told_from_what_died_in_this_one() {
    let home = Home::new();
    let runtime = home.runtime();
    runtime.start(spec("alice", "0.6.0")).await.unwrap();
    drop(runtime);
    home.kill();
    let state = async || home.runtime().list().await.unwrap().remove(0).state;
    // A signal is sent, not yet delivered.
    eventually("its end is seen", async || {
        (state().await == FoundState::Stopped(ExitKind::Gone)).then_some(())
    })
    .await;
    let path = home.dir.path().join("state/process/alice.json");
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    record["boot"] = "another".into();
    fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
    assert_eq!(state().await, FoundState::FromEarlierBoot);
}

/// As an orchestrator leaves it that is killed before it has written the record.
#[tokio::test]
async fn an_sq_without_a_record_is_ended_before_another_can_be_started() {
    let home = Home::new();
    let runtime = home.runtime();
    runtime.start(spec("alice", "0.6.0")).await.unwrap();
    let pid = home.pids().remove(0);
    drop(runtime);
    fs::remove_file(home.dir.path().join("state/process/alice.json")).unwrap();
    let runtime = home.runtime();
    assert_eq!(runtime.list().await.unwrap(), []);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "it runs: {stat}");
    runtime.start(spec("alice", "0.6.0")).await.unwrap();
    assert_eq!(runtime.list().await.unwrap().len(), 1, "its own are known");
}

/// A file system that is full but for the blocks which it keeps for root.
#[tokio::test]
#[ignore = "root and loop devices are needed: `make integration-test` runs it"]
async fn a_disk_with_room_for_root_alone_fails_the_start() {
    let home = Home::new();
    let (image, data) = (home.dir.path().join("image"), home.dir.path().join("data"));
    fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
    run("mkfs.ext4", &["-q", "-F", "-m", "50", path(&image)]);
    run("mount", &["-o", "loop", path(&image), path(&data)]);
    let _mounted = Mounted(data.clone());
    fs::create_dir(data.join("alice")).unwrap();
    let filler = data.join("filler");
    fs::write(&filler, "").unwrap();
    run("chown", &["10001", path(&filler)]);
    let owner = ["--reuid", "10001", "--regid", "10001", "--clear-groups"];
    run("setpriv", &[&owner[..], &["sh", "-c", FILL, path(&filler)]].concat());
    let error = home.runtime().start(spec("alice", "0.6.0")).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Unwritable { .. }), "{error}");
    fs::remove_file(filler).unwrap();
    home.runtime().start(spec("alice", "0.6.0")).await.unwrap();
    home.kill();
}

/// To the last block.
const FILL: &str = "dd if=/dev/zero of=\"$0\" bs=64k 2>/dev/null; \
                    dd if=/dev/zero of=\"$0\" bs=1k oflag=append conv=notrunc 2>/dev/null; true";

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run(program: &str, args: &[&str]) {
    let status = std::process::Command::new(program).args(args).status().unwrap();
    assert!(status.success(), "{program} {args:?}: {status}");
}

struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        run("umount", &["-l", path(&self.0)]);
    }
}

#[tokio::test]
async fn a_version_that_is_not_there_is_named() {
    let error = Home::new().runtime().start(spec("alice", "9.9.9")).await.unwrap_err();
    assert!(
        error.to_string().contains("sq-9.9.9/bin/sq does not exist: run `make setup`"),
        "{error}"
    );
}

#[tokio::test]
async fn the_record_with_the_key_is_for_us_alone() {
    let home = Home::new();
    let runtime = home.runtime();
    runtime.start(spec("alice", "0.6.0")).await.unwrap();
    let record = home.dir.path().join("state/process/alice.json");
    assert_eq!(fs::metadata(record).unwrap().permissions().mode() & 0o777, 0o600);
}

/// In ours, the kernel would send it SIGHUP when we die while it is frozen.
#[tokio::test]
async fn a_tenant_has_a_session_of_its_own() {
    let home = Home::new();
    home.runtime().start(spec("alice", "0.6.0")).await.unwrap();
    let pids = home.pids();
    let stat = fs::read_to_string(format!("/proc/{}/stat", pids[0])).unwrap();
    let session = stat.rsplit(')').next().unwrap().split_whitespace().nth(3);
    assert_eq!(session, Some(pids[0].as_str()));
}
