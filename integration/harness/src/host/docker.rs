//! Docker as the harness uses it: its command line for most purposes, its API where the start of a
//! command would take too long.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use protocol::containers;
use tokio::net::UnixStream;

/// Socket of the daemon's API.
const SOCKET: &str = "/var/run/docker.sock";

/// Time-out of the daemon's description of itself.
const INFO_TIMEOUT_S: u64 = 5;

/// Time-out of other commands: the end of one container may take ten seconds, and a stack may have
/// hundreds of them.
const COMMAND_TIMEOUT_S: u64 = 120;

/// Attempts to remove all containers of a label.
const REMOVALS: usize = 20;

/// Pause between two of these attempts.
const REMOVAL_INTERVAL: Duration = Duration::from_millis(200);

/// Exit status of `timeout` after its time-out.
const TIMED_OUT: i32 = 124;

/// Exit status of `timeout` if the program does not exist.
const NO_PROGRAM: i32 = 127;

/// Runs `docker …` and returns its stdout.
pub fn run(args: &[&str]) -> Result<String> {
    run_within(COMMAND_TIMEOUT_S, args)
}

fn run_within(seconds: u64, args: &[&str]) -> Result<String> {
    let output = output(seconds, args)?;
    ensure!(
        output.status.success(),
        "docker {args:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs `docker …` and returns stdout and stderr whatever the exit status: `docker logs` prints the
/// container's output to both, and fails for a log driver without a log.
pub fn run_with_stderr(args: &[&str]) -> Result<String> {
    let output = output(COMMAND_TIMEOUT_S, args)?;
    Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

fn output(seconds: u64, args: &[&str]) -> Result<Output> {
    // By coreutils' `timeout`: clients of a hung daemon wait without end.
    let output = Command::new("timeout")
        .args([&seconds.to_string(), "docker"])
        .args(args)
        .output()
        .context("there is no timeout command")?;
    match output.status.code() {
        Some(TIMED_OUT) => bail!("docker {args:?}: no response within {seconds} s"),
        Some(NO_PROGRAM) => bail!("there is no docker command"),
        _ => Ok(output),
    }
}

/// Version of the daemon if it can run tenants; otherwise the error says why it can't.
pub fn daemon() -> Result<String> {
    let format = "{{.ServerVersion}}|{{.OperatingSystem}}|{{.SecurityOptions}}";
    let info = run_within(INFO_TIMEOUT_S, &["info", "--format", format])?;
    let mut fields = info.splitn(3, '|');
    let version = fields.next().unwrap_or_default().to_owned();
    let system = fields.next().unwrap_or_default();
    let security = fields.next().unwrap_or_default();
    // `docker info` succeeds with the client's half alone.
    ensure!(!version.is_empty(), "no Docker daemon responds");
    for (name, found) in [
        ("rootless Docker", security.contains("name=rootless")),
        ("Docker Desktop", system.contains("Docker Desktop")),
    ] {
        ensure!(!found, "{name} is not supported: this host can't reach its containers' addresses");
    }
    Ok(version)
}

/// The label of everything that an orchestrator with this data root makes.
pub fn installation_label(data: &Path) -> String {
    let id = containers::installation_id(data.as_os_str().as_encoded_bytes());
    format!("{}={id}", containers::INSTALLATION)
}

/// Ids of all containers with all of these labels, stopped ones included.
pub fn containers(labels: &[String]) -> Result<Vec<String>> {
    list(&["ps", "--all", "--quiet", "--no-trunc"], labels)
}

/// Ids of the running containers with all of these labels.
pub fn running_containers(labels: &[String]) -> Result<Vec<String>> {
    list(&["ps", "--filter=status=running", "--quiet", "--no-trunc"], labels)
}

/// Ids of all networks with all of these labels.
pub fn networks(labels: &[String]) -> Result<Vec<String>> {
    list(&["network", "ls", "--quiet", "--no-trunc"], labels)
}

fn list(command: &[&str], labels: &[String]) -> Result<Vec<String>> {
    let filters: Vec<String> =
        labels.iter().map(|label| format!("--filter=label={label}")).collect();
    let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
    let ids = run(&[command, &filters].concat())?;
    Ok(ids.lines().map(str::to_owned).collect())
}

/// Kills and removes all containers and networks with all of these labels.
pub(crate) fn remove_labelled(labels: &[String]) -> Result<()> {
    // A container that a killed orchestrator has just requested may appear a moment later.
    for _ in 1..REMOVALS {
        if remove_once(labels).is_ok() && containers(labels)?.is_empty() {
            return Ok(());
        }
        std::thread::sleep(REMOVAL_INTERVAL);
    }
    remove_once(labels)
}

fn remove_once(labels: &[String]) -> Result<()> {
    let ids = containers(labels)?;
    if !ids.is_empty() {
        // In one command, because Docker removes them in parallel.
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        run(&[&["rm", "--force", "--volumes"], &ids[..]].concat())?;
    }
    for id in networks(labels)? {
        run(&["network", "rm", &id])?;
    }
    Ok(())
}

/// The daemon's API, for calls that must not include the start of a command.
pub struct Engine;

impl Engine {
    /// Sends `POST <path>` without a body; fails unless the status is 2xx or 304.
    pub async fn post(path: &str) -> Result<()> {
        let stream = UnixStream::connect(SOCKET).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = Request::post(path).header("host", "docker").body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        connection.abort();
        ensure!(
            status.is_success() || status == 304,
            "docker {path}: {status} {}",
            String::from_utf8_lossy(&body)
        );
        Ok(())
    }
}
