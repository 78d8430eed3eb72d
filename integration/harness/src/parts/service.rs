//! A part that can be ended and started again with the same command.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};

use crate::parts::process::{self, Process};

/// A program, its arguments and the process that runs it at present.
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
    /// Nothing runs yet.
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

    /// Starts the process; one that runs is killed first.
    pub fn start(&self) -> Result<Arc<Process>> {
        self.kill();
        let process = Arc::new(self.spawn(&self.args)?);
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(process.clone());
        Ok(process)
    }

    fn spawn(&self, args: &[String]) -> Result<Process> {
        let program = self.program.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut command = Command::new(program);
        command.args(args).envs(self.envs.iter().map(|(name, value)| (name, value)));
        Process::start(self.name, &self.logs, &mut command)
    }

    /// Starts another process with these arguments, to take over from the one that runs; gives the
    /// new one and the old one.
    pub fn start_successor(&self, args: &[String]) -> Result<(Arc<Process>, Option<Arc<Process>>)> {
        let process = Arc::new(self.spawn(args)?);
        let old =
            self.process.lock().unwrap_or_else(PoisonError::into_inner).replace(process.clone());
        Ok((process, old))
    }

    /// What it is started with.
    pub fn args(&self) -> &[String] {
        &self.args
    }

    /// Another program from the next start on: an upgrade.
    pub fn replace(&self, program: PathBuf) {
        *self.program.lock().unwrap_or_else(PoisonError::into_inner) = program;
    }

    /// The process.
    pub fn process(&self) -> Result<Arc<Process>> {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        process.clone().with_context(|| format!("{} is not started", self.name))
    }

    /// SIGKILL.
    pub fn kill(&self) {
        if let Some(process) = self.process.lock().unwrap_or_else(PoisonError::into_inner).take() {
            process.kill();
        }
    }

    /// SIGTERM, and SIGKILL when that does not help.
    pub fn stop(&self) {
        if let Some(process) = self.process.lock().unwrap_or_else(PoisonError::into_inner).take() {
            process.stop();
        }
    }

    /// Its log, over all its lives.
    pub fn log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(self.log_file())?).into_owned())
    }

    /// The end of it.
    pub fn tail(&self) -> String {
        process::tail(self.name, &self.log_file())
    }

    fn log_file(&self) -> PathBuf {
        self.logs.join(format!("{}.log", self.name))
    }
}
