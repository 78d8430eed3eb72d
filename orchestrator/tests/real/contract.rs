//! Rules that every runtime must keep. Each is run by the tests of the single runtimes.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use orchestrator::runtime::{Died, ExitKind, FoundState, Runtime, RuntimeError, Stopped};
use tokio::sync::mpsc::Receiver;

use crate::tools::{SCROLL, USERS, eventually, read, request, spec, tenant, write};

/// Takes an instance through all states, and through two restarts of the orchestrator: `reopen`
/// makes another runtime on the same folders.
pub(crate) async fn instance_passes_through_all_states<R: Runtime>(
    runtime: R,
    reopen: impl AsyncFn() -> R,
    version: &str,
) {
    let alice = tenant("alice");
    let started = runtime.start(spec("alice", version)).await.unwrap();
    let first = started.endpoint;
    write(&first, "kept").await;

    // Another key is refused.
    let (status, _) = request(first.address, "wrong", "GET", "toc?p=notes", "").await;
    assert_eq!(status, 401);
    assert!(runtime.memory_bytes(&alice).await.unwrap().unwrap() > 0);

    // Pause and resume are idempotent.
    runtime.pause(&alice).await.unwrap();
    runtime.pause(&alice).await.unwrap();
    assert_eq!(runtime.list().await.unwrap()[0].state, FoundState::Paused);
    runtime.resume(&alice).await.unwrap();
    runtime.resume(&alice).await.unwrap();
    assert_eq!(read(&first).await, "kept");

    // The next orchestrator adopts it with its key, running and then paused.
    drop(runtime);
    let runtime = reopen().await;
    let found = runtime.list().await.unwrap().remove(0);
    assert_eq!(found.state, FoundState::Running);
    assert_eq!(found.endpoint, Some(first.clone()));
    assert_eq!(found.tenant.as_str(), "alice");
    assert_eq!(found.tier.as_str(), "free");
    assert_eq!(found.limits, spec("alice", version).limits);
    assert_eq!(found.sq_version, version.parse().unwrap());
    runtime.pause(&alice).await.unwrap();
    drop(runtime);
    let runtime = reopen().await;
    assert_eq!(runtime.list().await.unwrap()[0].state, FoundState::Paused);
    runtime.resume(&alice).await.unwrap();

    // After a stop and a start the data is there, under a new key.
    assert_eq!(runtime.stop(&alice).await, Ok(Stopped::Alive));
    assert_eq!(runtime.stop(&alice).await, Ok(Stopped::Dead));
    assert_eq!(runtime.list().await.unwrap(), []);
    let gone = RuntimeError::NoInstance(alice.clone());
    assert_eq!(runtime.pause(&alice).await, Err(gone));
    let second = runtime.start(spec("alice", version)).await.unwrap().endpoint;
    assert_ne!(first.key, second.key);
    assert_ne!(first.instance, second.instance);
    assert_eq!(read(&second).await, "kept");

    // A start without a stop replaces the instance: never two on one folder.
    let third = runtime.start(spec("alice", version)).await.unwrap().endpoint;
    assert_eq!(runtime.list().await.unwrap().len(), 1);
    assert_eq!(read(&third).await, "kept");

    // A paused instance can be stopped.
    runtime.pause(&alice).await.unwrap();
    assert_eq!(runtime.stop(&alice).await, Ok(Stopped::Alive));
    assert_eq!(runtime.list().await.unwrap(), []);
}

/// What two tenants' users can do to each other. Only root can give tenants users of their own.
pub(crate) async fn each_tenant_is_a_user_of_its_own<R: Runtime>(runtime: &R, data_root: &Path) {
    let mut users = Vec::new();
    let mut pids = Vec::new();
    for name in ["alice", "bob"] {
        let endpoint = runtime.start(spec(name, "0.6.0")).await.unwrap().endpoint;
        write(&endpoint, name).await;
        let pid = runtime.pid(&tenant(name)).await.unwrap().unwrap();
        let owner = fs::metadata(data_root.join(name)).unwrap().uid();
        assert_eq!(fs::metadata(data_root.join(name).join("notes.phext")).unwrap().uid(), owner);
        assert_eq!(fs::metadata(format!("/proc/{pid}")).unwrap().uid(), owner, "{name}'s SQ");
        users.push(owner);
        pids.push(pid);
    }
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let [alice, bob] = users[..] else { panic!("two tenants") };
    assert!(alice != bob && !users.contains(&USERS.first), "{users:?}");

    // Neither reads nor writes the other's files, nor signals the other's processes.
    fs::set_permissions(data_root, Permissions::from_mode(0o711)).unwrap();
    let may = |user: u32, command: &str| run_as(user, data_root, command).success();
    for (own, other, user) in [("alice", "bob", alice), ("bob", "alice", bob)] {
        assert!(may(user, &format!("cat {own}/notes.phext")), "the check must be able to succeed");
        assert!(!may(user, &format!("cat {other}/notes.phext")), "{own} reads {other}'s file");
        assert!(!may(user, &format!("ls {other}")), "{own} lists {other}'s folder");
        assert!(may(user, &format!("touch {own}/new.phext")));
        assert!(
            !may(user, &format!("touch {other}/new.phext")),
            "{own} writes to {other}'s folder"
        );
    }
    assert!(may(alice, &format!("kill -0 {}", pids[0])), "the check must be able to succeed");
    assert!(!may(alice, &format!("kill -0 {}", pids[1])), "alice signals bob's SQ");

    // What the kernel counts per user: alice has used up the inotify instances of her user.
    let held = InotifyInstances::exhaust(alice);
    assert!(!may(alice, TAKE_ONE), "the limit holds for alice");
    assert!(may(bob, TAKE_ONE), "alice has used up bob's");
    drop(held);
    for name in ["alice", "bob"] {
        runtime.stop(&tenant(name)).await.unwrap();
    }
}

/// Takes one inotify instance.
const TAKE_ONE: &str =
    "python3 -c 'import ctypes, sys; sys.exit(ctypes.CDLL(None).inotify_init() < 0)'";

/// Takes inotify instances until there are none left, says so and waits.
const TAKE_ALL: &str = "import ctypes, sys\n\
                        while ctypes.CDLL(None).inotify_init() >= 0: pass\n\
                        print('exhausted', flush=True)\n\
                        sys.stdin.read()";

/// A process that has all inotify instances of a user, until it is dropped.
struct InotifyInstances(Child);

impl InotifyInstances {
    fn exhaust(user: u32) -> Self {
        let mut python = Command::new("python3");
        python.args(["-c", TAKE_ALL]).uid(user).gid(user).current_dir("/");
        let mut child = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "exhausted\n");
        Self(child)
    }
}

impl Drop for InotifyInstances {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn run_as(user: u32, folder: &Path, command: &str) -> ExitStatus {
    let mut setpriv = Command::new("setpriv");
    setpriv.args(["--reuid", &user.to_string(), "--regid", &user.to_string(), "--clear-groups"]);
    setpriv.args(["sh", "-c", command]).current_dir(folder).stdout(Stdio::null());
    setpriv.stderr(Stdio::null()).status().unwrap()
}

/// Releases before this one ran all tenants as one user.
pub(crate) async fn folder_of_the_old_single_user_moves<R: Runtime>(
    reopen: impl AsyncFn() -> R,
    data_root: &Path,
) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    for name in ["alice", "bob"] {
        let folder = data_root.join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("notes.phext"), name).unwrap();
        for path in [&folder, &folder.join("notes.phext")] {
            chown(path, Some(USERS.first), Some(USERS.first)).unwrap();
        }
    }
    let owner_of = |path: &str| fs::metadata(data_root.join(path)).unwrap().uid();
    let runtime = reopen().await;
    let alice = runtime.start(spec("alice", "0.6.0")).await.unwrap().endpoint;
    assert_eq!(read(&alice).await, "alice");
    let owner = owner_of("alice");
    assert_ne!(owner, USERS.first);
    assert_eq!(owner_of("alice/notes.phext"), owner);
    assert_eq!(owner_of("bob"), USERS.first, "bob has not been started");
    write(&alice, "written").await;
    runtime.stop(&tenant("alice")).await.unwrap();
    drop(runtime);

    // The next orchestrator finds the same user.
    let runtime = reopen().await;
    for (name, text) in [("bob", "bob"), ("alice", "written")] {
        let endpoint = runtime.start(spec(name, "0.6.0")).await.unwrap().endpoint;
        assert_eq!(read(&endpoint).await, text);
    }
    assert_eq!(owner_of("alice"), owner);
    assert!(![owner, USERS.first].contains(&owner_of("bob")));
    for name in ["alice", "bob"] {
        runtime.stop(&tenant(name)).await.unwrap();
    }
}

/// Any user of the host reads the command lines. SQ 0.5.0 takes its key on no other way, which shows
/// that the search can find one.
pub(crate) async fn key_is_on_no_command_line<R: Runtime>(runtime: &R) {
    let started = runtime.start(spec("alice", "0.6.0")).await.unwrap();
    let old = runtime.start(spec("bob", "0.5.0")).await.unwrap();
    let texts = command_lines_and_environments();
    let contains = |key: &str| texts.iter().any(|text| text.contains(key));
    assert!(!contains(started.endpoint.key.expose()));
    assert!(contains(old.endpoint.key.expose()), "the search finds nothing");
    for name in ["alice", "bob"] {
        runtime.stop(&tenant(name)).await.unwrap();
    }
}

fn command_lines_and_environments() -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap();
    let folders = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let files = folders.flat_map(|folder| ["cmdline", "environ"].map(|name| folder.join(name)));
    let texts = files.filter_map(|file| fs::read(file).ok());
    texts.map(|text| String::from_utf8_lossy(&text).into_owned()).collect()
}

/// `kill` ends the instance from outside.
pub(crate) async fn death_is_an_event_and_stop_is_none<R: Runtime>(
    runtime: &R,
    version: &str,
    kill: impl AsyncFnOnce(),
) {
    let mut deaths = runtime.events().unwrap();
    assert!(runtime.events().is_none());
    runtime.start(spec("bob", version)).await.unwrap();
    runtime.stop(&tenant("bob")).await.unwrap();
    let endpoint = runtime.start(spec("bob", version)).await.unwrap().endpoint;

    kill().await;
    let death = next(&mut deaths).await;
    assert_eq!(death.tenant, tenant("bob"));
    assert_eq!(death.instance, endpoint.instance);
    assert_eq!(death.exit, ExitKind::Crashed(137));
    let found = runtime.list().await.unwrap().remove(0);
    assert_eq!(found.state, FoundState::Stopped(ExitKind::Crashed(137)));
    assert_eq!(found.endpoint, None);

    runtime.start(spec("bob", version)).await.unwrap();
    runtime.stop(&tenant("bob")).await.unwrap();
    assert!(deaths.try_recv().is_err(), "a requested death was reported");
}

pub(crate) async fn out_of_memory_kills_one_tenant_only<R: Runtime>(runtime: &R, version: &str) {
    let mut deaths = runtime.events().unwrap();
    let greedy = runtime.start(spec("greedy", version)).await.unwrap().endpoint;
    let modest = runtime.start(spec("modest", version)).await.unwrap().endpoint;
    write(&modest, "here").await;

    // A coordinate this far away needs more delimiters than memory holds.
    let path = "update?p=notes&c=100000000.1.1/1.1.1/1.1.1";
    let (status, body) = request(greedy.address, greedy.key.expose(), "POST", path, "x").await;
    assert_eq!(status, 0, "SQ had the memory: {body}");
    let death = next(&mut deaths).await;
    assert_eq!(death.tenant, tenant("greedy"));
    assert_eq!(death.exit, ExitKind::OutOfMemory);
    assert_eq!(read(&modest).await, "here");

    // The stop did not cause the end, so the files may be truncated.
    assert_eq!(runtime.stop(&tenant("greedy")).await, Ok(Stopped::Dead));
    assert_eq!(runtime.stop(&tenant("modest")).await, Ok(Stopped::Alive));
}

/// Sends a body that kills an SQ with the memory it was started with.
pub(crate) async fn resize_raises_the_memory_limit<R: Runtime>(runtime: &R) {
    let alice = runtime.start(spec("alice", "0.6.0")).await.unwrap().endpoint;
    runtime.resize(&tenant("alice"), 512 << 20).await.unwrap();
    let path = format!("update?{SCROLL}");
    let body = "x".repeat(40 << 20);
    let (status, body) = request(alice.address, alice.key.expose(), "POST", &path, &body).await;
    assert_eq!(status, 200, "{body}");
    runtime.stop(&tenant("alice")).await.unwrap();
}

async fn next(deaths: &mut Receiver<Died>) -> Died {
    eventually("a death is reported", async || deaths.try_recv().ok()).await
}
