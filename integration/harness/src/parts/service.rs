//! A program with its arguments that can be started, ended and started again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};
use parking_lot::Mutex;

use crate::parts::process::{self, Process};

/// A program, its arguments and its present process, if one was started.
#[derive(Debug)]
pub struct Service {
    name: &'static str,
    program: Mutex<PathBuf>,
    args: Vec<String>,
    envs: Vec<(&'static str, String)>,
    logs: PathBuf,
    process: Mutex<Option<Arc<Process>>>,
}

impl Service {
    /// A service that logs to `<logs>/<name>.log`. Nothing runs yet.
    pub fn new(name: &'static str, program: PathBuf, args: Vec<String>, logs: &Path) -> Self {
        let program = Mutex::new(program);
        Self { name, program, args, envs: vec![], logs: logs.to_owned(), process: Mutex::default() }
    }

    /// Sets an environment variable of the process.
    #[must_use]
    pub fn env(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.envs.push((name, value.into()));
        self
    }

    /// Starts the process; a running one is killed first.
    pub fn start(&self) -> Result<Arc<Process>> {
        self.kill();
        let process = Arc::new(self.spawn(&self.args)?);
        *self.process.lock() = Some(process.clone());
        Ok(process)
    }

    fn spawn(&self, args: &[String]) -> Result<Process> {
        let program = self.program.lock().clone();
        let mut command = Command::new(program);
        command.args(args).envs(self.envs.iter().map(|(name, value)| (name, value)));
        Process::start(self.name, &self.logs, &mut command)
    }

    /// Starts a process with other arguments that takes over from the running one. Returns the new
    /// process and the old one.
    pub(crate) fn start_successor(
        &self,
        args: &[String],
    ) -> Result<(Arc<Process>, Option<Arc<Process>>)> {
        let process = Arc::new(self.spawn(args)?);
        let old = self.process.lock().replace(process.clone());
        Ok((process, old))
    }

    /// The arguments of every start but a successor's.
    pub fn args(&self) -> &[String] {
        &self.args
    }

    /// Replaces the program from the next start on, as an upgrade does.
    pub fn replace(&self, program: PathBuf) {
        *self.program.lock() = program;
    }

    /// The present process; an error if none was started.
    pub fn process(&self) -> Result<Arc<Process>> {
        let process = self.process.lock().clone();
        process.with_context(|| format!("{} is not started", self.name))
    }

    /// Sends SIGKILL and waits until the process has ended.
    pub fn kill(&self) {
        if let Some(process) = self.process.lock().take() {
            process.kill();
        }
    }

    /// Sends SIGTERM and waits until the process has ended; SIGKILL follows if it does not end.
    pub fn stop(&self) {
        if let Some(process) = self.process.lock().take() {
            process.stop();
        }
    }

    /// The whole log, over all starts.
    pub fn log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(self.log_file())?).into_owned())
    }

    /// The last lines of the log.
    pub fn tail(&self) -> String {
        process::tail(self.name, &self.log_file())
    }

    fn log_file(&self) -> PathBuf {
        self.logs.join(format!("{}.log", self.name))
    }
}
