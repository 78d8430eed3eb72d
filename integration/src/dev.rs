//! The stack of `make run`: the documented ports, two demo tenants, everything below `run/`.
//!
//! ```text
//! integration stack ────────► serves until Ctrl-C
//! integration stack --detach ► starts the same as a process of its own, returns when it is ready
//! integration stop ─────────► SIGTERM to the recorded pid, then whatever is left below run/
//! ```

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::Signal;

use harness::host::docker;
use harness::host::ports;
use harness::host::processes;
use harness::host::signals;
use harness::host::tools;
use harness::parts::process::Process;
use harness::stack::kill_tenants;
use harness::{Listen, OrchestratorPorts, Registry, Runtime, Stack, until};

/// The documented ports.
const LISTEN: Listen = Listen {
    https: 8443,
    envoy_admin: 9901,
    relay: 7443,
    orchestrator: OrchestratorPorts { gate: 7100, xds: 7101, admin: 7102 },
};

/// Who is in the demo registry.
const TENANTS: [&str; 2] = ["alice", "bob"];

/// Longest wait for a detached stack to be ready, or to be gone.
const PATIENCE: Duration = Duration::from_mins(2);

/// What the stack is asked to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where everything of it lies.
    pub dir: PathBuf,
    /// What runs SQ; `None`: Docker where a daemon answers.
    pub runtime: Option<Runtime>,
    /// Which SQ.
    pub sq_version: String,
    /// Free ports instead of the documented ones.
    pub any_ports: bool,
}

/// Serves until SIGINT, SIGTERM or SIGHUP, or until a part dies, which is an error.
pub async fn serve(options: &Options) -> Result<()> {
    let runtime = Runtime::resolve(options.runtime)?;
    let dir = writable(&options.dir)?;
    ensure!(running(&dir).is_none(), "it runs already: 'make stop' ends it");
    let ended = signals::shutdown()?;
    tokio::pin!(ended);
    // Dropped after the stack.
    let _traces = Traces::leave(&dir)?;
    let stack = tokio::select! {
        stack = start(options, &dir, runtime) => stack?,
        () = &mut ended => return Ok(()),
    };
    let screen = screen(&stack, options);
    fs::write(dir.join(SCREEN), &screen)?;
    println!("{screen}");
    tokio::select! {
        () = &mut ended => {}
        error = watch(&stack) => return Err(error),
    }
    // The terminal may be gone.
    let _ = writeln!(std::io::stdout(), "\nstopping");
    stack.envoy.stop();
    stack.orchestrator.service().stop();
    Ok(())
}

/// Files that say that a stack runs; gone when it does not.
struct Traces(PathBuf);

/// What scripts read.
const ENV: &str = "demo.env";
/// What a newcomer sees; there when the stack is ready.
const SCREEN: &str = "screen.txt";
/// Who serves.
const PID: &str = "stack.pid";

impl Traces {
    fn leave(dir: &Path) -> Result<Self> {
        let traces = Self(dir.to_owned());
        traces.remove();
        fs::write(dir.join(PID), std::process::id().to_string())?;
        Ok(traces)
    }

    fn remove(&self) {
        for name in [ENV, SCREEN, PID] {
            let _ = fs::remove_file(self.0.join(name));
        }
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Starts a stack in `dir`, with the tenants and data of an earlier run if there was one.
async fn start(options: &Options, dir: &Path, runtime: Runtime) -> Result<Stack> {
    clear_away(dir);
    let listen = if options.any_ports { Listen::free()? } else { documented_ports()? };
    let registry = Registry::new(tools::workspace_binary("relay")?, dir.join("registry.phext"));
    let keys = demo_tenants(&registry, dir)?;
    eprintln!("starting relay, orchestrator and Envoy ({} runtime)", runtime.name());
    let stack = Stack::builder()
        .runtime(runtime)
        .sq(&options.sq_version)
        .start_in(dir, listen, registry, keys)
        .await?;
    write_secret(&dir.join(ENV), &demo_env(&stack))?;
    Ok(stack)
}

fn writable(dir: &Path) -> Result<PathBuf> {
    let probe = dir.join(".writable");
    fs::create_dir_all(dir)
        .and_then(|()| fs::write(&probe, b"x"))
        .and_then(|()| fs::remove_file(&probe))
        .with_context(|| format!("can't write to {}", dir.display()))?;
    Ok(dir.canonicalize()?)
}

fn documented_ports() -> Result<Listen> {
    let Listen { https, envoy_admin, relay, orchestrator } = LISTEN;
    for (port, what) in [
        (https, "HTTPS"),
        (envoy_admin, "Envoy's admin"),
        (relay, "relay"),
        (orchestrator.gate, "orchestrator's gate API"),
        (orchestrator.xds, "orchestrator's xDS"),
        (orchestrator.admin, "orchestrator's admin"),
    ] {
        ports::check(port, what)?;
    }
    Ok(LISTEN)
}

/// Keys of the demo tenants: those of the last run when its registry still has them. The registry
/// holds digests only, so the keys themselves are remembered beside it.
fn demo_tenants(registry: &Registry, dir: &Path) -> Result<BTreeMap<String, String>> {
    let file = dir.join("demo-keys");
    let known = fs::read_to_string(&file).unwrap_or_default();
    let mut keys: BTreeMap<String, String> = known
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, key)| (name.to_owned(), key.to_owned()))
        .collect();
    if !registry.file().exists() {
        registry.run("init", &[])?;
    }
    for name in TENANTS {
        let there = registry.run("show", &[name]).is_ok();
        if there && keys.contains_key(name) {
            continue;
        }
        let key = if there { registry.rotate(name)? } else { registry.add(name, "free")? };
        keys.insert(name.to_owned(), key);
    }
    write_secret(&file, &lines(keys.iter()))?;
    Ok(keys)
}

/// Writes a file that only its owner reads, whole or not at all.
fn write_secret(file: &Path, text: &str) -> Result<()> {
    let new = file.with_extension("new");
    let _ = fs::remove_file(&new);
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600).open(&new)?.write_all(text.as_bytes())?;
    Ok(fs::rename(new, file)?)
}

/// What scripts read: addresses and keys, a `NAME=value` line each, as a shell sources it.
pub fn demo_env(stack: &Stack) -> String {
    let key = |name: &str| stack.keys.get(name).cloned().unwrap_or_default();
    let pairs = [
        ("SQ_URL", format!("https://localhost:{}", stack.listen.https)),
        ("SQ_CA", stack.certs.ca().display().to_string()),
        ("SQ_KEY_ALICE", key("alice")),
        ("SQ_KEY_BOB", key("bob")),
        ("SQ_REGISTRY", stack.registry.file().display().to_string()),
        ("SQ_ADMIN", stack.orchestrator.admin_url().to_owned()),
        ("ENVOY_ADMIN", stack.envoy.admin_url().to_owned()),
    ];
    lines(pairs.into_iter().map(|(name, value)| (name, quoted(&value))))
}

/// `NAME=value` lines.
fn lines<N: Display, V: Display>(pairs: impl Iterator<Item = (N, V)>) -> String {
    pairs.fold(String::new(), |text, (name, value)| text + &format!("{name}={value}\n"))
}

/// A value as a shell reads it; most need no quotes.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/:.-_".contains(c);
    if value.chars().all(plain) {
        value.to_owned()
    } else {
        format!("'{}'", value.replace('\'', "'\\''"))
    }
}

/// What a newcomer sees.
fn screen(stack: &Stack, options: &Options) -> String {
    let env = quoted(&stack.dir.join(ENV).display().to_string());
    let sq = match (stack.runtime, options.runtime) {
        (Runtime::Docker, _) => {
            format!("containers of Docker {}", docker::daemon().unwrap_or_default())
        }
        (Runtime::Process, Some(_)) => {
            "processes, as RUNTIME says (no limits of memory)".to_owned()
        }
        (Runtime::Process, None) => "processes, without Docker (no limits of memory)".to_owned(),
    };
    let bin = |name: &str| {
        let path = tools::workspace_binary(name).unwrap_or_else(|_| name.into());
        quoted(&path.display().to_string())
    };
    let (relay_bin, orchestrator_bin) = (bin("relay"), bin("orchestrator"));
    let curl = "curl --cacert \"$SQ_CA\" -H \"Authorization: Bearer $SQ_KEY_ALICE\"";
    format!(
        "\nThe SQ cloud gateway is ready: https://localhost:{https}

  Envoy         0.0.0.0:{https} (HTTPS), admin {envoy_admin}
  relay         127.0.0.1:{relay} (mutual TLS only), registry {registry}
  orchestrator  admin {admin}
  SQ {version}      {sq}
  tenants       alice and bob (tier free); keys in {env}
  logs          {logs}

Try in another terminal:
  . {env}
  {curl} \"$SQ_URL/api/v2/insert?p=notes&c=1.1.1/1.1.1/1.1.1&s=hello\"
  {curl} \"$SQ_URL/api/v2/select?p=notes&c=1.1.1/1.1.1/1.1.1\"
Suspend alice; within a second she gets 403; then let her in again:
  {relay_bin} registry suspend --file \"$SQ_REGISTRY\" alice
  {relay_bin} registry resume --file \"$SQ_REGISTRY\" alice
See who is awake, and put alice to sleep; her next request wakes her:
  {orchestrator_bin} status --admin \"$SQ_ADMIN\"
  {orchestrator_bin} sleep --admin \"$SQ_ADMIN\" alice
Ctrl-C (or 'make stop') ends it all; data and registry stay in {dir}.",
        https = stack.listen.https,
        envoy_admin = stack.envoy.admin_url(),
        relay = stack.listen.relay,
        registry = stack.registry.file().display(),
        admin = stack.orchestrator.admin_url(),
        version = options.sq_version,
        logs = stack.dir.join("logs").display(),
        dir = stack.dir.display(),
    )
}

/// Returns when a part has ended by itself.
async fn watch(stack: &Stack) -> anyhow::Error {
    loop {
        let parts = [stack.relay.service(), stack.orchestrator.service()];
        for service in parts {
            if let Err(error) = service.process().and_then(|part| part.check()) {
                return error;
            }
        }
        if let Err(error) = stack.envoy.check() {
            return error;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Starts `serve` as a process of its own and returns when it is ready.
pub async fn detach(options: &Options) -> Result<()> {
    let dir = writable(&options.dir)?;
    ensure!(running(&dir).is_none(), "it runs already: 'make stop' ends it");
    let ended = signals::shutdown()?;
    let (logs, screen) = (dir.join("logs"), dir.join(SCREEN));
    let _ = fs::remove_file(&screen);
    let _ = fs::remove_file(logs.join("stack.log"));
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--dir").arg(&dir).args(["stack", "--sq", &options.sq_version]);
    if options.any_ports {
        command.arg("--any-ports");
    }
    let part = Process::start("stack", &logs, &mut command)?;
    let ready = tokio::select! {
        ready = part.ready(PATIENCE, || async { screen.exists() }) => ready,
        () = ended => Err(anyhow!("interrupted")),
    };
    if let Err(error) = ready {
        // Not killed: it ends what it has started.
        part.stop();
        let log = fs::read_to_string(logs.join("stack.log")).unwrap_or_default();
        match log.split_once("error: ") {
            Some((_, said)) => bail!("{}", said.trim_end()),
            None => return Err(error),
        }
    }
    println!("{}", fs::read_to_string(&screen)?);
    part.detach();
    Ok(())
}

/// Ends a stack in `dir`, and what a killed one has left.
pub async fn stop(dir: &Path) -> Result<()> {
    let Ok(dir) = dir.canonicalize() else {
        println!("nothing runs: there is no {}", dir.display());
        return Ok(());
    };
    if let Some(pid) = running(&dir) {
        processes::signal(pid, Signal::TERM);
        let gone = || async { (!processes::is_alive(pid)).then_some(()) };
        until("the stack to end", PATIENCE, gone).await?;
    }
    clear_away(&dir);
    Traces(dir).remove();
    println!("stopped");
    Ok(())
}

/// Pid of the stack that serves from `dir`.
fn running(dir: &Path) -> Option<i32> {
    let pid = fs::read_to_string(dir.join("stack.pid")).ok()?.trim().parse().ok()?;
    let me = i32::try_from(std::process::id()).ok()?;
    // The pid may be another program's by now.
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    (pid != me && name.trim() == "integration" && processes::is_alive(pid)).then_some(pid)
}

/// Ends what a killed stack has left behind, of both runtimes: no two SQs on one folder, also when
/// the next stack has the other one.
fn clear_away(dir: &Path) {
    processes::kill_all(&processes::with_argument_below(dir, &processes::PARTS));
    let docker = docker::daemon().map_or(Runtime::Process, |_| Runtime::Docker);
    kill_tenants(docker, &dir.join("data"));
    // Without it the orchestrator would not run processes where containers ran and no daemon tells
    // whether they still do.
    let _ = fs::remove_file(dir.join("state/run.json"));
}
