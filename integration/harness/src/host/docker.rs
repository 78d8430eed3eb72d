//! What the harness asks Docker itself, by its command line: is it there, what was started, end it.

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

/// Longest wait for the daemon to say who it is.
const ANSWER_S: u64 = 5;
/// Longest wait for what it is asked to do: ending a container takes it ten seconds at most, and a
/// stack may have hundreds.
const PATIENCE_S: u64 = 120;
/// How often it is tried to remove what may still be coming, and how soon again.
const REMOVALS: usize = 20;
const BETWEEN_REMOVALS: Duration = Duration::from_millis(200);
/// What `timeout` exits with.
const TIMED_OUT: i32 = 124;
/// What `timeout` exits with when there is no such program.
const NO_PROGRAM: i32 = 127;

/// Runs `docker …` and gives its stdout.
pub fn run(args: &[&str]) -> Result<String> {
    run_within(PATIENCE_S, args)
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

/// Runs `docker …` and gives its stdout and stderr, whatever its status: `docker logs` has a
/// container's both, and refuses where nothing is logged.
pub fn run_with_stderr(args: &[&str]) -> Result<String> {
    let output = output(PATIENCE_S, args)?;
    Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// A daemon that hangs answers nobody, and its clients wait for ever: hence coreutils' `timeout`.
fn output(seconds: u64, args: &[&str]) -> Result<Output> {
    let output = Command::new("timeout")
        .args([&seconds.to_string(), "docker"])
        .args(args)
        .output()
        .context("no timeout command")?;
    match output.status.code() {
        Some(TIMED_OUT) => bail!("docker {args:?}: no answer in {seconds} s"),
        Some(NO_PROGRAM) => bail!("there is no docker command"),
        _ => Ok(output),
    }
}

/// Version of a daemon that can run tenants, or why there is none.
pub fn daemon() -> Result<String> {
    let format = "{{.ServerVersion}}|{{.OperatingSystem}}|{{.SecurityOptions}}";
    let said = run_within(ANSWER_S, &["info", "--format", format])?;
    let mut said = said.splitn(3, '|');
    let version = said.next().unwrap_or_default().to_owned();
    let (system, options) = (said.next().unwrap_or_default(), said.next().unwrap_or_default());
    // `docker info` itself is content with the client's half.
    ensure!(!version.is_empty(), "no Docker daemon answers");
    for (apart, found) in [
        ("rootless Docker", options.contains("name=rootless")),
        ("Docker Desktop", system.contains("Docker Desktop")),
    ] {
        ensure!(!found, "{apart} keeps its containers' addresses from this host");
    }
    Ok(version)
}

/// The label of everything that an orchestrator with this data root makes.
pub fn installation_label(data: &Path) -> String {
    let id = containers::installation_id(data.as_os_str().as_encoded_bytes());
    format!("{}={id}", containers::INSTALLATION)
}

/// Ids of all containers with all of these labels.
pub fn containers(labels: &[String]) -> Result<Vec<String>> {
    listed(&["ps", "--all", "--quiet", "--no-trunc"], labels)
}

/// Ids of those that run.
pub fn running_containers(labels: &[String]) -> Result<Vec<String>> {
    listed(&["ps", "--filter=status=running", "--quiet", "--no-trunc"], labels)
}

/// Ids of all networks with all of these labels.
pub fn networks(labels: &[String]) -> Result<Vec<String>> {
    listed(&["network", "ls", "--quiet", "--no-trunc"], labels)
}

fn listed(command: &[&str], labels: &[String]) -> Result<Vec<String>> {
    let filters: Vec<String> =
        labels.iter().map(|label| format!("--filter=label={label}")).collect();
    let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
    let ids = run(&[command, &filters].concat())?;
    Ok(ids.lines().map(str::to_owned).collect())
}

/// Ends and removes all containers and networks with all of these labels.
pub fn remove_labelled(labels: &[String]) -> Result<()> {
    // What a killed orchestrator has just asked for may come a moment later.
    for _ in 1..REMOVALS {
        if remove_once(labels).is_ok() && containers(labels)?.is_empty() {
            return Ok(());
        }
        std::thread::sleep(BETWEEN_REMOVALS);
    }
    remove_once(labels)
}

fn remove_once(labels: &[String]) -> Result<()> {
    let ids = containers(labels)?;
    if !ids.is_empty() {
        // All at once: docker removes them side by side.
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        run(&[&["rm", "--force", "--volumes"], &ids[..]].concat())?;
    }
    for id in networks(labels)? {
        run(&["network", "rm", &id])?;
    }
    Ok(())
}

/// The daemon's API on its socket, for what must not cost the start of a command.
pub struct Engine;

impl Engine {
    /// `POST <path>` without a body; fails unless it is answered with 2xx or 304.
    pub async fn post(path: &str) -> Result<()> {
        let stream = UnixStream::connect("/var/run/docker.sock").await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = Request::post(path).header("host", "docker").body(Empty::<Bytes>::new())?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        connection.abort();
        ensure!(
            status.is_success() || status == 304,
            "docker {path}: {status} {}",
            String::from_utf8_lossy(&body)
        );
        Ok(())
    }
}
