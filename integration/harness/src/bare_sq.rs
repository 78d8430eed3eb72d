//! A real SQ as a child process, spoken to in raw bytes: what it does without the gateway, and what
//! it does with the requests that the gateway rebuilds.
//!
//! Blocking and without an HTTP library, because SQ speaks a dialect: one request per connection, no
//! `Connection` header, and whatever follows the head is stored. SQ 0.5.0 dies of a connection that
//! says nothing, so waiting for it means asking it something: an unauthenticated GET is answered 401
//! before anything is touched.

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

/// What opens it.
pub const KEY: &str = "pmb-v1-00000000000000000000000000000000";
/// Longest wait for an answer, a start or an end.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks.
const TICK: Duration = Duration::from_millis(5);

/// One SQ with a data folder of its own; ends when dropped.
pub struct BareSq {
    child: Child,
    port: u16,
    version: String,
    memory_kb: Option<u64>,
    dir: TempDir,
}

/// What SQ answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// From the status line.
    pub status: u16,
    /// After the head.
    pub body: Vec<u8>,
}

impl Response {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl BareSq {
    /// Starts `version` and waits until it answers.
    pub fn start(version: &str) -> Result<Self> {
        Self::start_in(version, None)
    }

    /// Starts `version` with at most so much address space, so that a runaway dies and not the host.
    pub fn start_with_memory_limit(version: &str, memory_kb: u64) -> Result<Self> {
        Self::start_in(version, Some(memory_kb))
    }

    /// Starts `version` on a folder that is there.
    pub fn start_in_folder(version: &str, data: &Path) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        std::os::unix::fs::symlink(data, dir.path().join("data"))?;
        Self::start_at(version, None, dir)
    }

    fn start_in(version: &str, memory_kb: Option<u64>) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        fs::create_dir(dir.path().join("data"))?;
        Self::start_at(version, memory_kb, dir)
    }

    fn start_at(version: &str, memory_kb: Option<u64>, dir: TempDir) -> Result<Self> {
        let port = ports::free()?;
        let child = spawn(version, port, memory_kb, dir.path())?;
        let mut sq = Self { child, port, version: version.to_owned(), memory_kb, dir };
        sq.wait_ready()?;
        Ok(sq)
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or_default()
    }

    /// Ends it and starts it again on the same data.
    pub fn restart(&mut self) -> Result<()> {
        // It may have ended by itself.
        let _ = self.child.kill();
        self.child.wait()?;
        self.child = spawn(&self.version, self.port, self.memory_kb, self.dir.path())?;
        self.wait_ready()
    }

    fn wait_ready(&mut self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait()? {
                bail!("SQ {} ended at its start: {status}", self.version);
            }
            let asked = self.exchange(b"GET /ready HTTP/1.1\r\nHost: sq\r\n\r\n");
            if asked.is_ok_and(|answer| answer.status == 401) {
                return Ok(());
            }
            std::thread::sleep(TICK);
        }
        bail!("SQ {} does not answer", self.version)
    }

    /// The file of a phext.
    pub fn file(&self, phext: &str) -> PathBuf {
        self.dir.path().join("data").join(format!("{phext}.phext"))
    }

    /// What the file holds; empty if there is none.
    pub fn stored(&self, phext: &str) -> Vec<u8> {
        fs::read(self.file(phext)).unwrap_or_default()
    }

    /// Names of all files in the data folder, sorted.
    pub fn files(&self) -> Result<Vec<String>> {
        let entries = fs::read_dir(self.dir.path().join("data"))?;
        let mut names = entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    /// One request as Envoy sends it: HTTP/1.1, the container's key, an exact length, nothing after.
    pub fn send(&self, method: &str, path: &str, body: Option<&[u8]>) -> Result<Response> {
        self.exchange(&request(method, path, body))
    }

    /// Any bytes, and what comes back until SQ closes.
    pub fn exchange(&self, bytes: &[u8]) -> Result<Response> {
        exchange(self.address(), bytes, PATIENCE)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Sends a request and waits until SQ ends because of it.
    pub fn exit_caused_by(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&[u8]>,
    ) -> Result<ExitStatus> {
        // Whatever comes back, an answer cut short included: the end is what counts.
        let _ = self.send(method, path, body);
        let ended = self.ended(PATIENCE);
        ended.with_context(|| format!("SQ {} survived {method} {path}", self.version))
    }

    /// How it ends within `patience`; `None`: it lives.
    pub fn ended(&mut self, patience: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + patience;
        while Instant::now() < end {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            std::thread::sleep(TICK);
        }
        None
    }

    /// Whether it still answers.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
            && self.send("GET", "/api/v2/toc?p=alive", None).is_ok_and(|a| a.status == 200)
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

/// Any bytes, and what comes back until the other side closes.
pub fn exchange(to: SocketAddr, bytes: &[u8], patience: Duration) -> Result<Response> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_nodelay(true)?;
    stream.write_all(bytes)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let _ = stream.shutdown(Shutdown::Both);
    split(&answer)
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
        .env("MALLOC_ARENA_MAX", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("SQ {version} does not start"))
}

fn split(answer: &[u8]) -> Result<Response> {
    let end = answer.windows(4).position(|part| part == b"\r\n\r\n").context("no head")?;
    let head = String::from_utf8_lossy(&answer[..end]);
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok(Response { status: status.context("no status")?, body: answer[end + 4..].to_vec() })
}
