//! One child process: started with its output in a file, checked, ended by its pid.
//!
//! Each process has its own process group: Ctrl-C at the terminal reaches only the parent, which
//! then ends its parts in their order.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};

/// Time that a process has between SIGTERM and SIGKILL: the orchestrator ends the work that it has
/// begun for its tenants within 20 s.
const STOP_TIMEOUT: Duration = Duration::from_secs(25);

/// Interval of checks for the end of a process.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Failed requests of an access log that are shown beside its last lines.
const FAILED_LINES: usize = 5;

/// Last lines of a log that are shown when something fails.
const TAIL_LINES: usize = 30;

/// A child process, killed on drop.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: Pid,
    log: PathBuf,
    child: Mutex<Child>,
    detached: AtomicBool,
}

impl Process {
    /// Starts `command` with stdout and stderr appended to `<logs>/<name>.log`.
    pub fn start(name: &str, logs: &Path, command: &mut Command) -> Result<Self> {
        fs::create_dir_all(logs)?;
        let log = logs.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).mode(0o600).open(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()
            .with_context(|| {
                format!("{name}: can't start {}", command.get_program().to_string_lossy())
            })?;
        let pid = Pid::from_child(&child);
        Ok(Self {
            name: name.to_owned(),
            pid,
            log,
            child: Mutex::new(child),
            detached: AtomicBool::default(),
        })
    }

    /// The process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// The exit status; `None` while the process runs.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.child.lock().try_wait().ok().flatten()
    }

    /// Fails with the end of the log if the process has ended.
    pub fn check(&self) -> Result<()> {
        match self.ended() {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}:\n{}", self.name, self.tail()),
        }
    }

    /// Polls `is_ready` until it is true. Fails at once if the process ends.
    pub async fn ready<F, Fut>(&self, within: Duration, mut is_ready: F) -> Result<()>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = bool>,
    {
        let what = format!("{} to be ready", self.name);
        crate::until(what, within, || {
            let is_ready = is_ready();
            async {
                if self.ended().is_some() {
                    return Some(());
                }
                is_ready.await.then_some(())
            }
        })
        .await
        .with_context(|| self.tail())?;
        self.check()
    }

    /// Sends SIGKILL and waits until the process has ended.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
        let _ = self.child.lock().wait();
    }

    /// Sends SIGTERM, and SIGKILL after 25 s; `None` if SIGKILL was needed.
    pub fn stop(&self) -> Option<ExitStatus> {
        self.signal(Signal::TERM);
        let start = Instant::now();
        while start.elapsed() < STOP_TIMEOUT {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        self.kill();
        None
    }

    /// Sends a signal, unless the process has ended: its pid may belong to another one by then.
    pub fn signal(&self, signal: Signal) {
        if self.ended().is_none() {
            let _ = kill_process(self.pid, signal);
        }
    }

    /// Lets the process run after this value is dropped.
    pub fn detach(self) {
        self.detached.store(true, Ordering::Relaxed);
    }

    /// The last lines of the log.
    pub fn tail(&self) -> String {
        tail(&self.name, &self.log)
    }
}

/// The last lines of a log file below a heading with its name.
pub fn tail(name: &str, log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let lines = last_lines(&String::from_utf8_lossy(&bytes));
    format!("--- {name} ({})\n{lines}", log.display())
}

/// The last lines of a log, preceded by a few failed requests if it is an access log.
pub(crate) fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let (earlier, last) = lines.split_at(lines.len().saturating_sub(TAIL_LINES));
    let failed = earlier.iter().filter(|line| line.contains("\"status\":5"));
    let failed: Vec<&str> = failed.take(FAILED_LINES).copied().collect();
    [&failed, last].concat().join("\n")
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.detached.load(Ordering::Relaxed) {
            self.kill();
        }
    }
}
