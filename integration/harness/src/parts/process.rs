//! One process of a stack: started with its output in a file, watched, ended by its pid.
//!
//! A process gets a group of its own, so that Ctrl-C at the terminal reaches only us and we end the
//! parts in our order.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How long a part has to end by itself before it is killed: an orchestrator finishes what it has
/// begun for its tenants within 20 s.
const PATIENCE: Duration = Duration::from_secs(25);

/// Failed requests of an access log that are shown as well.
const FAILED_LINES: usize = 5;

/// Lines of a log that are shown when something fails.
const TAIL_LINES: usize = 30;

/// A running process.
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
        let out = File::options().create(true).append(true).open(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
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

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// The status it ended with; `None`: it runs.
    pub fn ended(&self) -> Option<ExitStatus> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        child.try_wait().ok().flatten()
    }

    /// An error with the end of its log when it does not run any more.
    pub fn check(&self) -> Result<()> {
        match self.ended() {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}:\n{}", self.name, self.tail()),
        }
    }

    /// Polls `ready` until it is true. Fails at once when the process ends.
    pub async fn ready<F, Fut>(&self, within: Duration, mut ready: F) -> Result<()>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = bool>,
    {
        let what = format!("{} to be ready", self.name);
        crate::until(what, within, || {
            let ready = ready();
            async {
                if self.ended().is_some() {
                    return Some(());
                }
                ready.await.then_some(())
            }
        })
        .await
        .with_context(|| self.tail())?;
        self.check()
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = child.wait();
    }

    /// SIGTERM, then SIGKILL when it takes too long; `None`: it had to be killed.
    pub fn stop(&self) -> Option<ExitStatus> {
        self.signal(Signal::TERM);
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.kill();
        None
    }

    /// Sends a signal; one that has ended is left alone (its pid may be somebody else's).
    pub fn signal(&self, signal: Signal) {
        if self.ended().is_none() {
            let _ = kill_process(self.pid, signal);
        }
    }

    /// Lets it run on when this is dropped.
    pub fn detach(self) {
        self.detached.store(true, Ordering::Relaxed);
    }

    /// The last lines of its log.
    pub fn tail(&self) -> String {
        tail(&self.name, &self.log)
    }
}

/// The last lines of a log, under its name.
pub fn tail(name: &str, log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let shown = last_lines(&String::from_utf8_lossy(&bytes));
    format!("--- {name} ({})\n{shown}", log.display())
}

/// What is worth seeing of a log.
pub(crate) fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    // Of an access log the failed requests are what is looked for.
    let failed = lines[..from].iter().filter(|line| line.contains("\"status\":5"));
    let failed: Vec<&str> = failed.take(FAILED_LINES).copied().collect();
    [&failed, &lines[from..]].concat().join("\n")
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.detached.load(Ordering::Relaxed) {
            self.kill();
        }
    }
}
