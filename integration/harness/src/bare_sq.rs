//! A real SQ as a child process, without the gateway: its own behaviour, and its reaction to the
//! requests that the gateway rebuilds.
//!
//! The client is blocking and uses no HTTP library, because SQ speaks a dialect: one request per
//! connection, no `Connection` header, and bytes after the head are stored. SQ 0.5.0 dies of a
//! connection without a request, so its readiness is probed by an unauthenticated GET, to which SQ
//! responds with 401 before it touches any file.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::host::ports;
use crate::host::tools;

/// API key of every bare SQ.
pub const KEY: &str = "pmb-v1-00000000000000000000000000000000";

/// Deadline for a response, a start or an end.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Interval of checks for a start or an end.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// An SQ with its own data folder, killed on drop.
pub struct BareSq {
    child: Child,
    port: u16,
    version: String,
    memory_kb: Option<u64>,
    dir: TempDir,
}

/// A response of SQ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqResponse {
    /// Status code of the status line.
    pub status: u16,
    /// All bytes after the head.
    pub body: Vec<u8>,
}

impl SqResponse {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl BareSq {
    /// Starts `version` and waits until it responds.
    pub fn start(version: &str) -> Result<Self> {
        Self::start_in_new_folder(version, None)
    }

    /// Starts `version` with a limit on its address space, so that a runaway allocation ends SQ
    /// and not the host.
    pub fn start_with_memory_limit(version: &str, memory_kb: u64) -> Result<Self> {
        Self::start_in_new_folder(version, Some(memory_kb))
    }

    /// Starts `version` on an existing data folder.
    pub fn start_in_folder(version: &str, data: &Path) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        std::os::unix::fs::symlink(data, dir.path().join("data"))?;
        Self::start_with(version, None, dir)
    }

    fn start_in_new_folder(version: &str, memory_kb: Option<u64>) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        fs::create_dir(dir.path().join("data"))?;
        Self::start_with(version, memory_kb, dir)
    }

    fn start_with(version: &str, memory_kb: Option<u64>, dir: TempDir) -> Result<Self> {
        let port = ports::free()?;
        let child = spawn(version, port, memory_kb, dir.path())?;
        let mut sq = Self { child, port, version: version.to_owned(), memory_kb, dir };
        sq.wait_ready()?;
        Ok(sq)
    }

    /// The process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or_default()
    }

    /// Kills it and starts it again on the same data.
    pub fn restart(&mut self) -> Result<()> {
        // It may have ended already.
        let _ = self.child.kill();
        self.child.wait()?;
        self.child = spawn(&self.version, self.port, self.memory_kb, self.dir.path())?;
        self.wait_ready()
    }

    fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                bail!("SQ {} ended at its start: {status}", self.version);
            }
            let response = self.exchange(b"GET /ready HTTP/1.1\r\nHost: sq\r\n\r\n");
            if response.is_ok_and(|response| response.status == 401) {
                return Ok(());
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        bail!("SQ {} does not respond", self.version)
    }

    /// Path of a phext's file.
    pub fn file(&self, phext: &str) -> PathBuf {
        self.dir.path().join("data").join(format!("{phext}.phext"))
    }

    /// Contents of a phext's file; empty if it does not exist.
    pub fn stored(&self, phext: &str) -> Vec<u8> {
        fs::read(self.file(phext)).unwrap_or_default()
    }

    /// Sorted names of all files in the data folder.
    pub fn files(&self) -> Result<Vec<String>> {
        let entries = fs::read_dir(self.dir.path().join("data"))?;
        let mut names = entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    /// Sends a request as Envoy does: HTTP/1.1, the instance's key, an exact length, no bytes
    /// after the body.
    pub fn send(&self, method: &str, path: &str, body: Option<&[u8]>) -> Result<SqResponse> {
        self.exchange(&request(method, path, body))
    }

    /// Sends any bytes and reads until SQ closes the connection.
    pub fn exchange(&self, bytes: &[u8]) -> Result<SqResponse> {
        exchange(self.address(), bytes, TIMEOUT)
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Sends a request that must end SQ and returns the exit status.
    pub fn exit_caused_by(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&[u8]>,
    ) -> Result<ExitStatus> {
        // The response may be complete, truncated or missing; only the exit counts.
        let _ = self.send(method, path, body);
        let status = self.ended(TIMEOUT);
        status.with_context(|| format!("SQ {} survived {method} {path}", self.version))
    }

    /// Waits for its end; `None` if it still runs after `timeout`.
    pub fn ended(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + timeout;
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        None
    }

    /// True if it runs and responds.
    pub fn is_alive(&mut self) -> bool {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return false;
        }
        let response = self.send("GET", "/api/v2/toc?p=alive", None);
        response.is_ok_and(|response| response.status == 200)
    }
}

impl Drop for BareSq {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The bytes of a request with [`KEY`].
pub fn request(method: &str, path: &str, body: Option<&[u8]>) -> Vec<u8> {
    let mut request =
        format!("{method} {path} HTTP/1.1\r\nhost: sq\r\nauthorization: Bearer {KEY}\r\n");
    if let Some(body) = body {
        // Writing into a String does not fail.
        let _ = write!(request, "content-length: {}\r\n", body.len());
    }
    request += "\r\n";
    [request.as_bytes(), body.unwrap_or_default()].concat()
}

/// Sends any bytes and reads until the other side closes the connection.
pub fn exchange(to: SocketAddr, bytes: &[u8], timeout: Duration) -> Result<SqResponse> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_nodelay(true)?;
    stream.write_all(bytes)?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response)?;
    let _ = stream.shutdown(Shutdown::Both);
    parse(&response)
}

fn spawn(version: &str, port: u16, memory_kb: Option<u64>, dir: &Path) -> Result<Child> {
    let sq = tools::sq(version)?;
    let mut command = match memory_kb {
        None => Command::new(sq),
        Some(kb) => {
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("ulimit -v {kb} && exec \"$0\" \"$@\"")]).arg(sq);
            shell
        }
    };
    command
        .args(["host", &port.to_string(), "--key", KEY, "--data-dir"])
        .arg(dir.join("data"))
        .current_dir(dir)
        // As the product starts it.
        .env("MALLOC_ARENA_MAX", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("SQ {version} does not start"))
}

fn parse(response: &[u8]) -> Result<SqResponse> {
    let head_end = response.windows(4).position(|part| part == b"\r\n\r\n").context("no head")?;
    let head = String::from_utf8_lossy(&response[..head_end]);
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = response[head_end + 4..].to_vec();
    Ok(SqResponse { status: status.context("no status")?, body })
}
