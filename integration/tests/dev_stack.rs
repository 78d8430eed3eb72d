//! The stack of `make run`: what a newcomer types, what is said when it can't be had, and that
//! nothing of it is left behind. `RUNTIME` chooses what runs the tenants.

// All of it is tests.
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
use harness::until;
use rustix::process::Signal;
use tempfile::TempDir;

/// Longest wait for a stack to start or to end: an orchestrator may finish for 20 s.
const PATIENCE: Duration = Duration::from_mins(2);

/// A folder for one stack; ends what runs in it.
struct Dev {
    dir: PathBuf,
    _temporary: TempDir,
}

impl Dev {
    fn new() -> Self {
        // The first of this process builds what the stack is made of.
        tools::build().unwrap();
        let temporary = tempfile::Builder::new().prefix("sq-gateway-dev-").tempdir().unwrap();
        // SQ runs as another user and must reach its folder.
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o755)).unwrap();
        // Paths may have spaces in them.
        let dir = temporary.path().canonicalize().unwrap().join("a run");
        Self { dir, _temporary: temporary }
    }

    /// `integration --dir … <args>`, as make runs it: with an empty version, where none was said.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_integration"));
        command.arg("--dir").arg(&self.dir).args(args).env("SQ_VERSION", "");
        command.stdin(Stdio::null());
        command
    }

    /// Starts one in the background; its screen.
    fn start(&self) -> String {
        said(&self.command(&["stack", "--detach", "--any-ports"]).output().unwrap())
    }

    /// Starts one in the foreground, and waits until it is ready.
    async fn foreground(&self) -> Child {
        let mut command = self.command(&["stack", "--any-ports"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        until("the stack to be ready", PATIENCE, || {
            let here = self.dir.join("screen.txt").exists() || child.try_wait().unwrap().is_some();
            async move { here.then_some(()) }
        })
        .await
        .unwrap();
        assert!(child.try_wait().unwrap().is_none(), "{:?}", child.wait_with_output());
        child
    }

    /// Runs a line that the screen shows, as a reader does.
    fn shell(&self, line: &str) -> String {
        let script = format!("set -euo pipefail\n. '{}/demo.env'\n{line}", self.dir.display());
        said(&Command::new("bash").args(["-c", &script]).output().unwrap())
    }

    fn pid(&self) -> i32 {
        fs::read_to_string(self.dir.join("stack.pid")).unwrap().trim().parse().unwrap()
    }

    /// Processes of the stack, by their command lines.
    fn processes(&self) -> Vec<i32> {
        let mut all = processes::with_argument_below(&self.dir, &processes::PARTS);
        all.extend(processes::with_argument(&self.dir, &["integration"]));
        all
    }

    /// Containers and networks of the stack.
    fn of_docker(&self) -> Vec<String> {
        if docker::daemon().is_err() {
            return Vec::new();
        }
        let labels = [installation_label(&self.dir.join("data"))];
        [docker::containers(&labels).unwrap(), docker::networks(&labels).unwrap()].concat()
    }

    /// Shared memory that its Envoy has.
    fn shared_memory(&self) -> Vec<PathBuf> {
        let maps = processes::with_argument_below(&self.dir, &["envoy"])
            .into_iter()
            .map(|pid| fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default())
            .collect::<String>();
        let files = maps.lines().filter_map(|line| line.split_once("/dev/shm/"));
        files.map(|(_, name)| Path::new("/dev/shm").join(name)).collect()
    }

    fn nothing_is_left(&self) {
        assert_eq!(self.processes(), [0; 0]);
        assert_eq!(self.of_docker(), [""; 0]);
        for name in ["demo.env", "screen.txt", "stack.pid"] {
            assert!(!self.dir.join(name).exists(), "{name} is left");
        }
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // A test that failed may have left anything.
        let _ = self.command(&["stop"]).output();
    }
}

fn said(output: &Output) -> String {
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    out.into_owned()
}

/// The one line that a program says when it can't.
fn complaint(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() == 1 && lines[0].starts_with("error: "), "not one line:\n{text}");
    lines[0].to_owned()
}

fn end(pid: i32, signal: Signal) {
    processes::signal(pid, signal);
}

async fn gone(pid: i32) {
    let gone = || async { (!processes::is_alive(pid)).then_some(()) };
    until("it to end", PATIENCE, gone).await.unwrap();
}

/// Runs a line of the screen until it prints something with `text`.
async fn prints(dev: &Dev, line: &str, text: &str) {
    let what = format!("{line} to print {text}");
    until(what, PATIENCE, || async { dev.shell(line).contains(text).then_some(()) }).await.unwrap();
}

#[tokio::test]
async fn everything_on_the_screen_works_and_stop_leaves_nothing() {
    let dev = Dev::new();
    let screen = dev.start();
    for name in ["demo.env", "demo-keys"] {
        let mode = fs::metadata(dev.dir.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name} has keys in it");
    }
    let shown = screen.split_once("Try in another terminal:").unwrap().1;
    let lines: Vec<&str> = shown.lines().filter_map(|line| line.strip_prefix("  ")).collect();
    let [env, insert, select, suspend, resume, status, sleep] = lines[..] else {
        panic!("other lines than the test knows: {lines:#?}")
    };
    dev.shell(env);
    assert_eq!(dev.shell(insert), "Inserted 5 bytes");
    assert_eq!(dev.shell(select), "hello");
    dev.shell(suspend);
    prints(&dev, select, "urn:sq:problem:suspended").await;
    dev.shell(resume);
    prints(&dev, select, "hello").await;
    let table = dev.shell(status);
    let alice = table.lines().find(|line| line.starts_with("alice")).unwrap_or_default();
    assert!(alice.contains("awake"), "{table}");
    dev.shell(sleep);
    // What is there already.
    let again = complaint(&mut dev.command(&["stack", "--any-ports"]));
    assert!(again.contains("it runs already"), "{again}");
    let shared = dev.shared_memory();
    said(&dev.command(&["stop"]).output().unwrap());
    dev.nothing_is_left();
    assert!(shared.iter().all(|file| !file.exists()), "{shared:?}");
}

#[tokio::test]
async fn an_interrupted_stack_leaves_nothing() {
    let dev = Dev::new();
    for signal in [Signal::INT, Signal::HUP, Signal::TERM] {
        let child = dev.foreground().await;
        dev.shell(
            "curl --silent --fail --cacert \"$SQ_CA\" -H \"Authorization: $SQ_KEY_BOB\" \
                   \"$SQ_URL/api/v2/toc?p=notes\"",
        );
        end(i32::try_from(child.id()).unwrap(), signal);
        said(&child.wait_with_output().unwrap());
        dev.nothing_is_left();
    }
}

#[tokio::test]
async fn a_stack_interrupted_at_its_start_leaves_nothing() {
    let dev = Dev::new();
    let mut child = dev.command(&["stack", "--detach", "--any-ports"]).spawn().unwrap();
    until("a part to run", PATIENCE, || async {
        (!processes::with_argument_below(&dev.dir, &["relay", "orchestrator"]).is_empty())
            .then_some(())
    })
    .await
    .unwrap();
    end(i32::try_from(child.id()).unwrap(), Signal::INT);
    assert!(!child.wait().unwrap().success());
    dev.nothing_is_left();
}

#[tokio::test]
async fn what_a_killed_stack_has_left_is_cleared_away_by_the_next_one_of_either_runtime() {
    let dev = Dev::new();
    dev.start();
    let wake = "curl --silent --fail --cacert \"$SQ_CA\" -H \"Authorization: $SQ_KEY_BOB\" \
                \"$SQ_URL/api/v2/toc?p=notes\"";
    dev.shell(wake);
    let pid = dev.pid();
    end(pid, Signal::KILL);
    gone(pid).await;
    let left = dev.processes();
    assert!(!left.is_empty(), "the parts ended by themselves");
    let mut next = dev.command(&["stack", "--detach", "--any-ports"]);
    said(&next.env("RUNTIME", "process").output().unwrap());
    assert!(left.iter().all(|pid| !processes::is_alive(*pid)), "{left:?}");
    assert_eq!(dev.of_docker(), [""; 0]);
    dev.shell(wake);
    // And by `stop`.
    let pid = dev.pid();
    end(pid, Signal::KILL);
    gone(pid).await;
    said(&dev.command(&["stop"]).output().unwrap());
    dev.nothing_is_left();
}

#[tokio::test]
async fn a_part_that_dies_ends_the_stack_which_says_so() {
    let dev = Dev::new();
    let child = dev.foreground().await;
    let relay = processes::with_argument_below(&dev.dir, &["relay"]);
    processes::kill_all(&relay);
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("error: relay ended with"), "{text}");
    dev.nothing_is_left();
}

#[test]
fn what_is_in_the_way_is_said_in_one_line() {
    let dev = Dev::new();
    // Held here, or by somebody else already.
    let _held = std::net::TcpListener::bind(("0.0.0.0", 8443));
    for args in [&["stack"][..], &["stack", "--detach"]] {
        let said = complaint(dev.command(args).env("RUNTIME", "process"));
        assert!(said.contains("port 8443 (HTTPS)"), "{said}");
    }
    fs::write(dev.dir.with_file_name("file"), "").unwrap();
    let below = dev.dir.with_file_name("file").join("run");
    for args in [&["stack"][..], &["stack", "--detach"], &["stop"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_integration"));
        command.arg("--dir").arg(&below).args(args).env("SQ_VERSION", "");
        if args == ["stop"] {
            assert!(said(&command.output().unwrap()).contains("nothing runs"));
        } else {
            let said = complaint(&mut command);
            assert!(said.contains("can't write to") && said.contains("file/run"), "{said}");
        }
    }
}

#[test]
fn why_docker_can_t_be_used_is_said_in_one_line() {
    let dev = Dev::new();
    let bin = dev.dir.with_file_name("bin");
    fs::create_dir(&bin).unwrap();
    for program in ["timeout", "sleep", "sh"] {
        let found = Command::new("which").arg(program).output().unwrap();
        let found = String::from_utf8(found.stdout).unwrap();
        std::os::unix::fs::symlink(found.trim(), bin.join(program)).unwrap();
    }
    let complaint = |what: &str| {
        let mut command = dev.command(&["stack", "--any-ports"]);
        let said = complaint(command.env("RUNTIME", "docker").env("PATH", &bin));
        assert!(said.contains("RUNTIME=docker") && said.contains(what), "{what}: {said}");
    };
    complaint("there is no docker command");
    let docker = |script: &str| {
        let file = bin.join("docker");
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    };
    docker("echo 'Cannot connect to the Docker daemon' >&2; exit 1");
    complaint("Cannot connect to the Docker daemon");
    docker("echo '27.1.0|Debian GNU/Linux 12|[name=seccomp,profile=builtin name=rootless]'");
    complaint("rootless Docker");
    docker("echo '27.1.0|Docker Desktop|[name=seccomp,profile=unconfined]'");
    complaint("Docker Desktop");
    docker("exec sleep 1000");
    let start = Instant::now();
    complaint("no answer in 5 s");
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
}
