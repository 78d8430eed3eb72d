//! The stack of `make run`: the documented ports, two demo tenants, all files below `run/`.
//!
//! ```text
//! integration stack           serves until Ctrl-C
//! integration stack --detach  starts the same in the background, returns when it is ready
//! integration stop            SIGTERM to the recorded pid, then ends the rest below run/
//! ```
//!
//! A killed stack may leave processes, containers and files behind. The next start and `stop` both
//! clear them away, whichever runtime made them.

mod banner;
mod demo;
mod run_files;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::Signal;

use harness::host::docker;
use harness::host::files;
use harness::host::ports;
use harness::host::processes;
use harness::host::signals;
use harness::host::sockets;
use harness::host::tools;
use harness::parts::process::Process;
use harness::stack::kill_tenants;
use harness::{Listen, Registry, Runtime, Stack, until};

pub use demo::demo_env;
use run_files::RunFiles;

/// Ports of the documentation.
const LISTEN: Listen =
    Listen { https: 8443, envoy_metrics: 9901, relay: 7443, orchestrator_metrics: 7102 };

/// Deadline for a detached stack to be ready, or to end.
const PATIENCE: Duration = Duration::from_mins(2);

/// Interval at which the processes of a stack are checked.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// Error text when a stack already serves from the folder.
const ALREADY_RUNNING: &str = "the stack is already running; end it with 'make stop'";

/// Options of the dev stack.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of all its files.
    pub dir: PathBuf,
    /// Runtime of SQ; Docker unless another is requested.
    pub runtime: Option<Runtime>,
    /// Version of SQ, such as `0.6.0`.
    pub sq_version: String,
    /// Free ports instead of the documented ones.
    pub any_ports: bool,
}

/// Serves until SIGINT, SIGTERM or SIGHUP. A part that ends earlier is an error.
pub async fn serve(options: &Options) -> Result<()> {
    let runtime = Runtime::resolve(options.runtime)?;
    let dir = create_dir(&options.dir)?;
    ensure!(run_files::running_pid(&dir).is_none(), ALREADY_RUNNING);
    let shutdown = signals::shutdown()?;
    tokio::pin!(shutdown);
    // Declared before the stack, so that it is dropped after it.
    let run_files = RunFiles::create(&dir)?;
    let stack = tokio::select! {
        stack = start(options, &dir, runtime) => stack?,
        () = &mut shutdown => return Ok(()),
    };
    files::write_private(&run_files.env(), demo_env(&stack).as_bytes())?;
    let banner = banner::text(&stack, options, &run_files.env());
    fs::write(run_files.banner(), &banner)?;
    println!("{banner}");
    tokio::select! {
        () = &mut shutdown => {}
        error = first_failure(&stack) => return Err(error),
    }
    // Not `println!`, which panics when the terminal is gone.
    let _ = writeln!(std::io::stdout(), "\nStopping.");
    stack.envoy.stop();
    stack.orchestrator.service().stop();
    Ok(())
}

/// Starts a stack in `dir`, with the tenants and data of an earlier run if there was one.
async fn start(options: &Options, dir: &Path, runtime: Runtime) -> Result<Stack> {
    clear_away(dir);
    let listen = if options.any_ports { Listen::free()? } else { documented_ports()? };
    let registry = Registry::new(tools::workspace_binary("relay")?, dir.join("registry.phext"));
    let keys = demo::register_tenants(&registry, dir)?;
    eprintln!("Starting relay, orchestrator and Envoy ({} runtime).", runtime.name());
    Stack::builder()
        .runtime(runtime)
        .sq(&options.sq_version)
        .start_in(dir, listen, registry, keys)
        .await
}

/// Creates the folder and proves that files can be written to it.
fn create_dir(dir: &Path) -> Result<PathBuf> {
    let probe = dir.join(".writable");
    fs::create_dir_all(dir)
        .and_then(|()| fs::write(&probe, b"x"))
        .and_then(|()| fs::remove_file(&probe))
        .with_context(|| format!("can't write to {}", dir.display()))?;
    Ok(dir.canonicalize()?)
}

/// Fails with the name of the first documented port that is taken.
fn documented_ports() -> Result<Listen> {
    for (port, name) in [
        (LISTEN.https, "HTTPS"),
        (LISTEN.envoy_metrics, "Envoy's metrics"),
        (LISTEN.relay, "relay"),
        (LISTEN.orchestrator_metrics, "orchestrator's metrics"),
    ] {
        ports::check(port, name)?;
    }
    Ok(LISTEN)
}

/// Returns the error of the first part that ends.
async fn first_failure(stack: &Stack) -> anyhow::Error {
    loop {
        for service in [stack.relay.service(), stack.orchestrator.service()] {
            if let Err(error) = service.process().and_then(|process| process.check()) {
                return error;
            }
        }
        if let Err(error) = stack.envoy.check() {
            return error;
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

/// Starts `serve` in a background process and returns when it is ready.
pub async fn detach(options: &Options) -> Result<()> {
    let dir = create_dir(&options.dir)?;
    ensure!(run_files::running_pid(&dir).is_none(), ALREADY_RUNNING);
    let shutdown = signals::shutdown()?;
    let banner = RunFiles::banner_in(&dir);
    let logs = dir.join("logs");
    let log = logs.join("stack.log");
    // Those of an earlier run would be taken for this one's.
    let _ = fs::remove_file(&banner);
    let _ = fs::remove_file(&log);
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--dir").arg(&dir).args(["stack", "--sq", &options.sq_version]);
    if options.any_ports {
        command.arg("--any-ports");
    }
    let process = Process::start("stack", &logs, &mut command)?;
    let ready = tokio::select! {
        ready = process.ready(PATIENCE, || async { banner.exists() }) => ready,
        () = shutdown => Err(anyhow!("interrupted")),
    };
    if let Err(error) = ready {
        // Not killed: on SIGTERM it ends what it has started.
        process.stop();
        let log = fs::read_to_string(log).unwrap_or_default();
        match log.split_once("error: ") {
            Some((_, message)) => bail!("{}", message.trim_end()),
            None => return Err(error),
        }
    }
    println!("{}", fs::read_to_string(&banner)?);
    process.detach();
    Ok(())
}

/// Ends the stack in `dir`, and everything that a killed one left.
pub async fn stop(dir: &Path) -> Result<()> {
    let Ok(dir) = dir.canonicalize() else {
        println!("No stack is running: {} does not exist.", dir.display());
        return Ok(());
    };
    if let Some(pid) = run_files::running_pid(&dir) {
        processes::signal(pid, Signal::TERM);
        let ended = || async { (!processes::is_alive(pid)).then_some(()) };
        until("the stack to end", PATIENCE, ended).await?;
    }
    clear_away(&dir);
    run_files::remove(&dir);
    println!("Stopped.");
    Ok(())
}

/// Ends what a killed stack left behind in either runtime: two SQ instances must never run on one
/// folder, also when the next stack has the other runtime.
fn clear_away(dir: &Path) {
    processes::kill_all(&processes::with_argument_below(dir, &processes::PARTS));
    let runtime = docker::daemon().map_or(Runtime::Process, |_| Runtime::Docker);
    kill_tenants(runtime, &dir.join("data"));
    // The orchestrator's record of its previous run: after a run with containers it would refuse
    // to start processes while no daemon says that the containers are gone.
    let _ = fs::remove_file(dir.join("state/run.json"));
    // Those of a deep folder are outside of it.
    let _ = sockets::remove(dir);
}
