//! Starts of SQ without the gateway, for comparison: a created container on a bridge like the
//! tenants', or a process.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use harness::host::docker::{self, Engine};
use harness::host::ports;
use harness::host::tools;
use harness::host::tools::SQ_VERSION;
use harness::{Runtime, Stack};

/// Longest wait for one start.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// User and group of a tenant's container.
const UID: u32 = 10001;
/// Interval of connection attempts. Shorter than that of `until`: a process responds after about 3
/// ms.
const POLL: Duration = Duration::from_micros(500);

/// An SQ that is started and ended repeatedly. Its container and network are removed on drop.
pub(super) enum BareStart {
    /// A container with the name of its network, and its address once it has been started.
    Docker { name: String, address: String },
    /// A process on a data folder.
    Process { sq: PathBuf, data: PathBuf, port: u16, child: Option<Child> },
}

impl BareStart {
    /// Creates the container or the data folder, with the runtime of `stack`.
    pub(super) fn new(stack: &Stack) -> Result<Self> {
        let data = stack.dir.join("bare");
        fs::create_dir_all(&data)?;
        match stack.runtime {
            Runtime::Docker => Self::create_container(&data),
            Runtime::Process => {
                let sq = tools::sq(SQ_VERSION)?;
                Ok(Self::Process { sq, data, port: ports::free()?, child: None })
            }
        }
    }

    /// Creates a container with the limits of a tenant's.
    fn create_container(data: &Path) -> Result<Self> {
        chown(data, Some(UID), Some(UID))?;
        let name = format!("sq-bench-{}", std::process::id());
        let no_icc = "com.docker.network.bridge.enable_icc=false";
        docker::run(&["network", "create", "--internal", "--opt", no_icc, &name])?;
        // From here on a drop removes the network and the container.
        let bare = Self::Docker { name: name.clone(), address: String::new() };
        let volume = format!("{}:/data", data.display());
        let image = format!("wbic16/sq:{SQ_VERSION}");
        let mut args = vec!["create", "--name", &name, "--network", &name, "--volume", &volume];
        args.extend(["--memory", "64m", "--memory-swap", "64m", "--pids-limit", "600"]);
        args.extend(["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]);
        args.extend(["--user", "10001:10001", "--entrypoint", "./sq", &image]);
        args.extend(["host", "1337", "--key", "bare", "--data-dir", "/data"]);
        docker::run(&args)?;
        Ok(bare)
    }

    /// Starts SQ, waits for its first response, and ends it. Returns the time from start to
    /// response in milliseconds.
    pub(super) async fn start_ms(&mut self) -> Result<f64> {
        let start = Instant::now();
        match self {
            Self::Docker { name, address } => {
                Engine::post(&format!("/containers/{name}/start")).await?;
                if address.is_empty() {
                    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
                    *address = docker::run(&["inspect", "--format", format, name])?;
                }
                wait_for_response(&format!("{address}:1337")).await?;
            }
            Self::Process { sq, data, port, child } => {
                let mut command = Command::new(sq);
                command.args(["host", &port.to_string(), "--key", "bare", "--data-dir"]).arg(data);
                *child = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
                wait_for_response(&format!("127.0.0.1:{port}")).await?;
            }
        }
        let elapsed = start.elapsed();
        self.stop().await?;
        Ok(elapsed.as_secs_f64() * 1e3)
    }

    async fn stop(&mut self) -> Result<()> {
        match self {
            Self::Docker { name, .. } => {
                Engine::post(&format!("/containers/{name}/stop?t=0")).await
            }
            Self::Process { child, .. } => {
                if let Some(mut child) = child.take() {
                    child.kill()?;
                    child.wait()?;
                }
                Ok(())
            }
        }
    }
}

impl Drop for BareStart {
    fn drop(&mut self) {
        match self {
            Self::Docker { name, .. } => {
                let _ = docker::run(&["rm", "--force", name]);
                let _ = docker::run(&["network", "rm", name]);
            }
            Self::Process { child, .. } => {
                if let Some(child) = child {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        }
    }
}

/// Repeats a request without key until SQ responds: with 401.
async fn wait_for_response(address: &str) -> Result<()> {
    let responded = async {
        while request(address).await.is_err() {
            tokio::time::sleep(POLL).await;
        }
    };
    let context = || format!("no response from {address}");
    tokio::time::timeout(PATIENCE, responded).await.with_context(context)
}

async fn request(address: &str) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /api/v2/version HTTP/1.1\r\nhost: sq\r\n\r\n").await?;
    let mut first_bytes = [0; 8];
    stream.read_exact(&mut first_bytes).await?;
    Ok(())
}
