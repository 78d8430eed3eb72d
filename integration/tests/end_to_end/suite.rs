//! Runs the cases: gives each case its stack, prints the logs of a stack whose case failed, and
//! ends all stacks when the run is over or interrupted.
//!
//! Two cases run at a time on two cores. A case that measures a promise of a second or two would be
//! slowed down by a neighbour, so such cases are exclusive. They run last, which keeps the other
//! cases from waiting for them.

use std::any::Any;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use harness::host::docker;
use harness::host::signals;
use harness::host::tools;
use harness::{Runtime, Stack, StackBuilder};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Handle;
use tokio::sync::{OnceCell, watch};

/// Time-out of one case. The longest, fifty sleeps in a row, takes about a minute.
const CASE_TIMEOUT: Duration = Duration::from_mins(4);
/// Number of the slowest cases that the summary lists.
const SLOWEST: usize = 15;
/// Exit code after SIGINT, as shells report it.
const INTERRUPTED: u8 = 130;

/// A test that runs on one stack.
pub(crate) struct Case {
    name: &'static str,
    on: On,
    test: Test,
    exclusive: bool,
    docker_only: bool,
}

type Test = fn(Arc<Stack>) -> Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// The stack that a case runs on.
#[derive(Clone, Copy)]
pub(crate) enum On {
    /// A stack that all cases with this name share.
    Shared(&'static str, fn() -> StackBuilder),
    /// A stack that only this case uses.
    Own(fn() -> StackBuilder),
}

impl Case {
    pub(crate) fn new(name: &'static str, on: On, test: Test) -> Self {
        Self { name, on, test, exclusive: false, docker_only: false }
    }

    /// Runs no other case at the same time, because this one measures time.
    pub(crate) fn exclusive(mut self) -> Self {
        self.exclusive = true;
        self
    }

    /// Leaves the case out on processes, which lack something it needs, such as a network per
    /// tenant.
    pub(crate) fn docker_only(mut self) -> Self {
        self.docker_only = true;
        self
    }

    fn runs_on(&self, runtime: Runtime) -> bool {
        runtime == Runtime::Docker || !self.docker_only
    }
}

/// Makes a case of the async function that is its test.
macro_rules! case {
    ($on:expr, $test:ident) => {
        crate::suite::Case::new(stringify!($test), $on, |stack| Box::pin($test(stack)))
    };
}
pub(crate) use case;

/// Shared stacks by runtime and name; each starts when a case first needs it.
type SharedStacks = HashMap<(Runtime, &'static str), Arc<OnceCell<Arc<Stack>>>>;

/// State that all running cases share.
#[derive(Clone)]
pub(crate) struct Suite {
    tokio: Handle,
    shared: Arc<Mutex<SharedStacks>>,
    /// Locked for writing by an exclusive case, for reading by any other.
    turns: Arc<RwLock<()>>,
    interrupted: watch::Receiver<bool>,
    finished: Arc<Mutex<Vec<Finished>>>,
}

/// The outcome of a case that has finished.
struct Finished {
    name: String,
    duration: Duration,
    /// First line of the failure, without the logs; `None` if the case passed.
    failure: Option<String>,
}

impl Suite {
    /// Runs the cases that the command line selects, on every runtime available here.
    pub(crate) fn run(cases: &[Case]) -> ExitCode {
        let args = Arguments::from_args();
        match Self::run_selected(&args, cases) {
            Ok(code) => code,
            Err(error) => {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            }
        }
    }

    fn run_selected(args: &Arguments, cases: &[Case]) -> Result<ExitCode> {
        let runtimes = runtimes()?;
        if !args.list {
            tools::build()?;
        }
        let tokio = tokio::runtime::Runtime::new()?;
        let suite = Self {
            tokio: tokio.handle().clone(),
            shared: Arc::default(),
            turns: Arc::default(),
            interrupted: watch_interruption(tokio.handle()),
            finished: Arc::default(),
        };
        let trials = runtimes.into_iter().flat_map(|runtime| suite.trials(runtime, cases));
        let conclusion = libtest_mimic::run(args, trials.collect());
        suite.lock_shared().clear();
        if !args.list {
            suite.print_summary();
        }
        if *suite.interrupted.borrow() {
            return Ok(INTERRUPTED.into());
        }
        Ok(if conclusion.has_failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    /// The cases as trials of the test runner, exclusive ones last.
    fn trials(&self, runtime: Runtime, cases: &[Case]) -> Vec<Trial> {
        let mut cases: Vec<&Case> = cases.iter().filter(|case| case.runs_on(runtime)).collect();
        cases.sort_by_key(|case| case.exclusive);
        let mut trials = Vec::new();
        for case in cases {
            let suite = self.clone();
            let on = case.on;
            let test = case.test;
            let exclusive = case.exclusive;
            let name = format!("{}::{}", runtime.name(), case.name);
            trials.push(Trial::test(name.clone(), move || {
                suite.take_turn(name, exclusive, || suite.run_case(runtime, on, test))
            }));
        }
        trials
    }

    /// Runs a trial when its turn has come, and records its outcome.
    fn take_turn(
        &self,
        name: String,
        exclusive: bool,
        trial: impl FnOnce() -> Result<(), Failed>,
    ) -> Result<(), Failed> {
        // A poisoned lock means only that another case failed in its turn.
        if exclusive {
            let _turn = self.turns.write().unwrap_or_else(PoisonError::into_inner);
            self.record(name, trial)
        } else {
            let _turn = self.turns.read().unwrap_or_else(PoisonError::into_inner);
            self.record(name, trial)
        }
    }

    fn record(
        &self,
        name: String,
        trial: impl FnOnce() -> Result<(), Failed>,
    ) -> Result<(), Failed> {
        let started = Instant::now();
        let result = trial();
        let duration = started.elapsed();
        let failure = result.as_ref().err().map(first_line);
        self.lock_finished().push(Finished { name, duration, failure });
        result
    }

    /// Prints the slowest cases, and repeats each failure where logs do not bury it.
    fn print_summary(&self) {
        let mut finished = self.lock_finished();
        finished.sort_by_key(|case| Reverse(case.duration));
        println!("slowest cases, including the start of their stacks:");
        for Finished { name, duration, .. } in finished.iter().take(SLOWEST) {
            println!("{:7.1} s  {name}", duration.as_secs_f64());
        }
        for Finished { name, failure, .. } in finished.iter() {
            if let Some(failure) = failure {
                println!("FAILED {name}: {failure}");
            }
        }
    }

    fn run_case(&self, runtime: Runtime, on: On, test: Test) -> Result<(), Failed> {
        let stack = self.tokio.block_on(self.unless_interrupted(self.stack(runtime, on)));
        let stack = stack.map_err(|error| Failed::from(format!("{error:#}")))?;
        let test = test(stack.clone());
        let timed = self.unless_interrupted(async {
            let result = tokio::time::timeout(CASE_TIMEOUT, test).await;
            result.with_context(|| format!("the case did not finish within {CASE_TIMEOUT:?}"))?
        });
        let failure = match catch_unwind(AssertUnwindSafe(|| self.tokio.block_on(timed))) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => format!("{error:#}"),
            Err(panic) => panic_message(panic),
        };
        Err(format!("{failure}\n{}", stack.log_tails()).into())
    }

    async fn stack(&self, runtime: Runtime, on: On) -> Result<Arc<Stack>> {
        match on {
            On::Own(build) => self.start(runtime, build).await,
            On::Shared(name, build) => {
                let cell = self.lock_shared().entry((runtime, name)).or_default().clone();
                cell.get_or_try_init(|| self.start(runtime, build)).await.cloned()
            }
        }
    }

    /// Starts a stack on one of tokio's own threads, which last as long as this process. Envoy gets
    /// SIGTERM when the thread that started it ends, and a test runner's thread ends when no test
    /// is left for it.
    async fn start(&self, runtime: Runtime, build: fn() -> StackBuilder) -> Result<Arc<Stack>> {
        let stack = self.tokio.spawn(async move { build().runtime(runtime).start().await });
        Ok(Arc::new(stack.await??))
    }

    /// Does the work unless the suite is interrupted. Interrupted work is dropped, together with
    /// the stack that it uses or is starting.
    async fn unless_interrupted<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut interrupted = self.interrupted.clone();
        tokio::select! {
            result = work => result,
            _ = interrupted.wait_for(|interrupted| *interrupted) => bail!("interrupted"),
        }
    }

    fn lock_shared(&self) -> MutexGuard<'_, SharedStacks> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_finished(&self) -> MutexGuard<'_, Vec<Finished>> {
        self.finished.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn first_line(failed: &Failed) -> String {
    failed.message().and_then(|message| message.lines().next()).unwrap_or_default().to_owned()
}

fn panic_message(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => (*panic.downcast::<&str>().unwrap_or_default()).to_owned(),
    }
}

/// Becomes true at a signal that asks the process to end. Running cases then stop, and no further
/// case starts.
fn watch_interruption(tokio: &Handle) -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(false);
    tokio.spawn(async move {
        if let Ok(signal) = signals::shutdown() {
            signal.await;
            eprintln!("interrupted: ending all stacks");
            sender.send_replace(true);
        }
        // Keep the sender: a closed channel would count as an interruption.
        std::future::pending::<()>().await;
    });
    receiver
}

/// The runtime that `RUNTIME` names, or else processes, and Docker as well if a daemon answers.
fn runtimes() -> Result<Vec<Runtime>> {
    if let Some(requested) = Runtime::from_env()? {
        return Ok(vec![Runtime::resolve(Some(requested))?]);
    }
    match docker::daemon() {
        Ok(_) => Ok(vec![Runtime::Process, Runtime::Docker]),
        Err(error) => {
            eprintln!("NO TEST RUNS ON DOCKER: no daemon answers ({error:#})");
            Ok(vec![Runtime::Process])
        }
    }
}
