//! The stack of `make run`: its printed commands work, it explains in one line why it cannot start,
//! and it leaves nothing behind. `RUNTIME` selects the runtime of the tenants; without it, Docker if
//! a daemon responds.

// This whole file is test code.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use harness::host::docker;
use harness::host::docker::installation_label;
use harness::host::processes;
use harness::host::tools;
use harness::{Runtime, until};
use rustix::process::Signal;
use tempfile::TempDir;

/// Deadline for a stack to start or to end; an orchestrator may drain for 20 s.
const PATIENCE: Duration = Duration::from_mins(2);

/// Command that sends a request of the tenant bob, so that an SQ runs for him.
const WAKE_BOB: &str = "curl --silent --fail --cacert \"$SQ_CA\" \
    -H \"Authorization: $SQ_KEY_BOB\" \"$SQ_URL/api/v2/toc?p=notes\"";

/// A folder for one stack. Dropping it stops the stack.
struct Dev {
    dir: PathBuf,
    _temporary: TempDir,
}

impl Dev {
    fn new() -> Self {
        // Does nothing after the first call in this process.
        tools::build().unwrap();
        let temporary = tempfile::Builder::new().prefix("sq-gateway-dev-").tempdir().unwrap();
        // SQ runs as another user and must be able to reach its folder.
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o755)).unwrap();
        // A space, because paths of users have some.
        let dir = temporary.path().canonicalize().unwrap().join("a run");
        Self { dir, _temporary: temporary }
    }

    /// `integration --dir … <args>` as make runs it: with an empty version unless one is set.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_integration"));
        command.arg("--dir").arg(&self.dir).args(args).env("SQ_VERSION", "");
        command.env("RUNTIME", Runtime::for_tests().unwrap().name());
        command.stdin(Stdio::null());
        command
    }

    /// Starts a stack in the background and returns its output.
    fn start(&self) -> String {
        stdout_of(&self.command(&["stack", "--detach", "--any-ports"]).output().unwrap())
    }

    /// Starts a stack in the foreground and waits until it is ready.
    async fn start_in_foreground(&self) -> Child {
        let mut command = self.command(&["stack", "--any-ports"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        until("the stack to be ready", PATIENCE, || {
            let ready = self.dir.join("screen.txt").exists();
            let ended = child.try_wait().unwrap().is_some();
            async move { (ready || ended).then_some(()) }
        })
        .await
        .unwrap();
        assert!(child.try_wait().unwrap().is_none(), "{:?}", child.wait_with_output());
        child
    }

    /// Runs a printed command as a user does, and returns its output.
    fn shell(&self, line: &str) -> String {
        let script = format!("set -euo pipefail\n. '{}/demo.env'\n{line}", self.dir.display());
        stdout_of(&Command::new("bash").args(["-c", &script]).output().unwrap())
    }

    fn pid(&self) -> i32 {
        fs::read_to_string(self.dir.join("stack.pid")).unwrap().trim().parse().unwrap()
    }

    /// Processes of the stack, found by their command lines.
    fn processes(&self) -> Vec<i32> {
        let mut all = processes::with_argument_below(&self.dir, &processes::PARTS);
        all.extend(processes::with_argument(&self.dir, &["integration"]));
        all
    }

    /// Containers and networks of the stack.
    fn docker_objects(&self) -> Vec<String> {
        if docker::daemon().is_err() {
            return Vec::new();
        }
        let labels = [installation_label(&self.dir.join("data"))];
        [docker::containers(&labels).unwrap(), docker::networks(&labels).unwrap()].concat()
    }

    /// Files in shared memory that the stack's Envoy has mapped.
    fn shared_memory(&self) -> Vec<PathBuf> {
        let maps = processes::with_argument_below(&self.dir, &["envoy"])
            .into_iter()
            .map(|pid| fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default())
            .collect::<String>();
        let files = maps.lines().filter_map(|line| line.split_once("/dev/shm/"));
        files.map(|(_, name)| Path::new("/dev/shm").join(name)).collect()
    }

    /// Fails if a process, container, network or file of the stack is left.
    fn assert_nothing_left(&self) {
        assert_eq!(self.processes(), [0; 0]);
        assert_eq!(self.docker_objects(), [""; 0]);
        for name in ["demo.env", "screen.txt", "stack.pid"] {
            assert!(!self.dir.join(name).exists(), "{name} is left");
        }
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // A failed test may have left the stack running.
        let _ = self.command(&["stop"]).output();
    }
}

/// The standard output of a command that must succeed.
fn stdout_of(output: &Output) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{stdout}\n{stderr}", output.status);
    stdout.into_owned()
}

/// The error message of a command that must fail with exactly one line.
fn error_line(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() == 1 && lines[0].starts_with("error: "), "not one line:\n{text}");
    lines[0].to_owned()
}

async fn wait_for_end(pid: i32) {
    let ended = || async { (!processes::is_alive(pid)).then_some(()) };
    until("the process to end", PATIENCE, ended).await.unwrap();
}

/// Repeats a printed command until its output contains `text`.
async fn until_prints(dev: &Dev, line: &str, text: &str) {
    let condition = format!("{line} to print {text}");
    until(condition, PATIENCE, || async { dev.shell(line).contains(text).then_some(()) })
        .await
        .unwrap();
}

#[tokio::test]
async fn printed_commands_work_and_stop_leaves_nothing() {
    let dev = Dev::new();
    let screen = dev.start();
    for name in ["demo.env", "demo-keys", "registry.phext", "pki/server.key"] {
        let mode = fs::metadata(dev.dir.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name} is open to other users");
    }
    let shown = screen.split_once("Try in another terminal:").unwrap().1;
    let lines: Vec<&str> = shown.lines().filter_map(|line| line.strip_prefix("  ")).collect();
    let [env, insert, select, suspend, resume, status, sleep, envoy, metrics] = lines[..] else {
        panic!("unexpected commands: {lines:#?}")
    };
    dev.shell(env);
    assert_eq!(dev.shell(insert), "Inserted 5 bytes");
    assert_eq!(dev.shell(select), "hello");
    dev.shell(suspend);
    until_prints(&dev, select, "urn:sq:problem:suspended").await;
    dev.shell(resume);
    until_prints(&dev, select, "hello").await;
    let table = dev.shell(status);
    let alice = table.lines().find(|line| line.starts_with("alice")).unwrap_or_default();
    assert!(alice.contains("awake"), "{table}");
    dev.shell(sleep);
    assert!(dev.shell(envoy).contains("sq_gate.requests: "));
    let metrics = dev.shell(metrics);
    assert!(metrics.contains("sq_gate_requests") && metrics.contains("sq_orchestrator_ready 1"));
    // A second stack in the same folder is refused.
    let again = error_line(&mut dev.command(&["stack", "--any-ports"]));
    assert!(again.contains("already running"), "{again}");
    let shared = dev.shared_memory();
    stdout_of(&dev.command(&["stop"]).output().unwrap());
    dev.assert_nothing_left();
    assert!(shared.iter().all(|file| !file.exists()), "{shared:?}");
}

#[tokio::test]
async fn interrupted_stack_leaves_nothing() {
    let dev = Dev::new();
    for signal in [Signal::INT, Signal::HUP, Signal::TERM] {
        let child = dev.start_in_foreground().await;
        dev.shell(WAKE_BOB);
        processes::signal(i32::try_from(child.id()).unwrap(), signal);
        stdout_of(&child.wait_with_output().unwrap());
        dev.assert_nothing_left();
    }
}

#[tokio::test]
async fn stack_interrupted_at_start_leaves_nothing() {
    let dev = Dev::new();
    let mut child = dev.command(&["stack", "--detach", "--any-ports"]).spawn().unwrap();
    until("a part to run", PATIENCE, || async {
        (!processes::with_argument_below(&dev.dir, &["relay", "orchestrator"]).is_empty())
            .then_some(())
    })
    .await
    .unwrap();
    processes::signal(i32::try_from(child.id()).unwrap(), Signal::INT);
    assert!(!child.wait().unwrap().success());
    dev.assert_nothing_left();
}

#[tokio::test]
async fn next_stack_removes_what_a_killed_one_left() {
    let dev = Dev::new();
    dev.start();
    dev.shell(WAKE_BOB);
    let pid = dev.pid();
    processes::signal(pid, Signal::KILL);
    wait_for_end(pid).await;
    // The next stack may have another runtime.
    let left = dev.processes();
    assert!(!left.is_empty(), "the parts ended without a signal");
    let mut next = dev.command(&["stack", "--detach", "--any-ports"]);
    stdout_of(&next.env("RUNTIME", "process").output().unwrap());
    assert!(left.iter().all(|pid| !processes::is_alive(*pid)), "{left:?}");
    assert_eq!(dev.docker_objects(), [""; 0]);
    dev.shell(WAKE_BOB);
    // `stop` removes the same.
    let pid = dev.pid();
    processes::signal(pid, Signal::KILL);
    wait_for_end(pid).await;
    stdout_of(&dev.command(&["stop"]).output().unwrap());
    dev.assert_nothing_left();
}

#[tokio::test]
async fn part_that_dies_ends_the_stack() {
    let dev = Dev::new();
    let child = dev.start_in_foreground().await;
    let relay = processes::with_argument_below(&dev.dir, &["relay"]);
    processes::kill_all(&relay);
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("error: relay ended with"), "{text}");
    dev.assert_nothing_left();
}

#[test]
fn obstacle_is_reported_in_one_line() {
    let dev = Dev::new();
    // If this fails, another process occupies the port.
    let _occupied = std::net::TcpListener::bind(("0.0.0.0", 8443));
    for args in [&["stack"][..], &["stack", "--detach"]] {
        let error = error_line(dev.command(args).env("RUNTIME", "process"));
        assert!(error.contains("port 8443 (HTTPS)"), "{error}");
    }
    fs::write(dev.dir.with_file_name("file"), "").unwrap();
    let below = dev.dir.with_file_name("file").join("run");
    for args in [&["stack"][..], &["stack", "--detach"], &["stop"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_integration"));
        command.arg("--dir").arg(&below).args(args).env("SQ_VERSION", "");
        if args == ["stop"] {
            assert!(stdout_of(&command.output().unwrap()).contains("No stack is running"));
        } else {
            let error = error_line(&mut command);
            assert!(error.contains("can't write to") && error.contains("file/run"), "{error}");
        }
    }
}

#[test]
fn unusable_docker_is_explained_in_one_line() {
    let dev = Dev::new();
    let bin = dev.dir.with_file_name("bin");
    fs::create_dir(&bin).unwrap();
    for program in ["timeout", "sleep", "sh"] {
        let found = Command::new("which").arg(program).output().unwrap();
        let found = String::from_utf8(found.stdout).unwrap();
        std::os::unix::fs::symlink(found.trim(), bin.join(program)).unwrap();
    }
    expect_docker_error(&dev, &bin, "there is no docker command");
    install_docker(&bin, "echo 'Cannot connect to the Docker daemon' >&2; exit 1");
    expect_docker_error(&dev, &bin, "Cannot connect to the Docker daemon");
    let rootless = "echo '27.1.0|Debian GNU/Linux 12|[name=seccomp,profile=builtin name=rootless]'";
    install_docker(&bin, rootless);
    expect_docker_error(&dev, &bin, "rootless Docker");
    install_docker(&bin, "echo '27.1.0|Docker Desktop|[name=seccomp,profile=unconfined]'");
    expect_docker_error(&dev, &bin, "Docker Desktop");
    install_docker(&bin, "exec sleep 1000");
    let start = Instant::now();
    expect_docker_error(&dev, &bin, "no response within 5 s");
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
}

/// Starts a stack with only the programs in `bin`, and checks the error message. Without a request
/// for processes by name, none are started.
fn expect_docker_error(dev: &Dev, bin: &Path, text: &str) {
    for runtime in ["", "docker"] {
        let mut command = dev.command(&["stack", "--any-ports"]);
        let error = error_line(command.env("RUNTIME", runtime).env("PATH", bin));
        assert!(error.contains("RUNTIME=docker") && error.contains(text), "{text}: {error}");
        assert!(error.contains("`RUNTIME=process make run`"), "{error}");
    }
}

/// Writes a shell script that stands in for the command `docker`.
fn install_docker(bin: &Path, script: &str) {
    let file = bin.join("docker");
    fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
}
