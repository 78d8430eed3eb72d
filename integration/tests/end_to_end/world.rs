//! Runs the cases: gives each its stack, shows the logs of a stack whose test failed, ends all
//! stacks at the end or when it is interrupted.
//!
//! Two cases run at a time on two cores. Those that hold a promise of a second or two against a
//! clock run alone, or they would judge their neighbour: last, so that nothing waits for them.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use harness::host::docker;
use harness::host::signals;
use harness::host::tools;
use harness::{Runtime, Stack, StackBuilder};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::sync::{OnceCell, watch};

/// Longest that one test may take: the longest, fifty sleeps, takes about a minute.
const PATIENCE: Duration = Duration::from_mins(4);
/// So many are named at the end.
const SLOWEST: usize = 15;
/// As shells have it: ended by SIGINT.
const INTERRUPTED: u8 = 130;

/// A test on one stack.
pub(crate) struct Case {
    name: &'static str,
    on: On,
    run: Run,
    alone: bool,
    docker_only: bool,
}

type Run = fn(Arc<Stack>) -> Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// Which stack a test needs.
#[derive(Clone, Copy)]
pub(crate) enum On {
    /// One that all tests with this name share.
    Shared(&'static str, fn() -> StackBuilder),
    /// One of its own.
    Own(fn() -> StackBuilder),
}

impl Case {
    pub(crate) fn new(path: &'static str, on: On, run: Run) -> Self {
        Self { name: path, on, run, alone: false, docker_only: false }
    }

    /// It measures time: nothing else runs meanwhile.
    pub(crate) fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// It needs what processes don't have, such as a network of each tenant's own.
    pub(crate) fn docker_only(mut self) -> Self {
        self.docker_only = true;
        self
    }
}

/// A case from the async function that is its test.
macro_rules! case {
    ($on:expr, $test:ident) => {
        crate::world::Case::new(stringify!($test), $on, |stack| Box::pin($test(stack)))
    };
}
pub(crate) use case;

type Shared = Arc<OnceCell<Arc<Stack>>>;

/// All that runs.
#[derive(Clone)]
pub(crate) struct World {
    tokio: tokio::runtime::Handle,
    shared: Arc<Mutex<HashMap<(Runtime, &'static str), Shared>>>,
    /// Written by a case that runs alone, read by the others.
    turns: Arc<RwLock<()>>,
    interrupted: watch::Receiver<bool>,
    ran: Arc<Mutex<Vec<Ran>>>,
}

/// A case that is over.
struct Ran {
    took: Duration,
    name: String,
    /// Why it failed, without the logs.
    failed: Option<String>,
}

impl World {
    /// Runs the cases that the command line asks for, on every runtime that is here.
    pub(crate) fn run(cases: &[Case]) -> ExitCode {
        let args = Arguments::from_args();
        let runtimes = match runtimes() {
            Ok(runtimes) => runtimes,
            Err(error) => {
                eprintln!("error: {error:#}");
                return ExitCode::FAILURE;
            }
        };
        if !args.list
            && let Err(error) = tools::build()
        {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
        let tokio = tokio::runtime::Runtime::new().unwrap();
        let world = Self {
            tokio: tokio.handle().clone(),
            shared: Arc::default(),
            turns: Arc::default(),
            interrupted: interrupted(tokio.handle()),
            ran: Arc::default(),
        };
        let (alone, beside): (Vec<_>, Vec<_>) = cases.iter().partition(|case| case.alone);
        let mut trials = Vec::new();
        for runtime in runtimes {
            let can = |case: &&&Case| runtime == Runtime::Docker || !case.docker_only;
            for Case { name, on, run, alone, .. } in beside.iter().chain(&alone).filter(can) {
                let (world, on, run, alone) = (world.clone(), *on, *run, *alone);
                let name = format!("{}::{name}", runtime.name());
                trials.push(Trial::test(name.clone(), move || {
                    world.in_turn(name, alone, || world.trial(runtime, on, run))
                }));
            }
        }
        let conclusion = libtest_mimic::run(&args, trials);
        world.all().clear();
        if !args.list {
            world.sum_up();
        }
        match conclusion.has_failed() {
            _ if *world.interrupted.borrow() => INTERRUPTED.into(),
            true => ExitCode::FAILURE,
            false => ExitCode::SUCCESS,
        }
    }

    fn in_turn(
        &self,
        name: String,
        alone: bool,
        trial: impl FnOnce() -> Result<(), Failed>,
    ) -> Result<(), Failed> {
        let timed = || {
            let began = Instant::now();
            let result = trial();
            let why =
                |failed: &Failed| failed.message().and_then(|m| m.lines().next()).map(Into::into);
            let failed = result.as_ref().err().map(|e| why(e).unwrap_or_default());
            let mut ran = self.ran.lock().unwrap_or_else(PoisonError::into_inner);
            ran.push(Ran { took: began.elapsed(), name, failed });
            result
        };
        // A case that failed has disturbed nobody's turn.
        if alone {
            let _turn = self.turns.write().unwrap_or_else(PoisonError::into_inner);
            timed()
        } else {
            let _turn = self.turns.read().unwrap_or_else(PoisonError::into_inner);
            timed()
        }
    }

    /// What took longest, and once more, where it is not buried in logs, why what failed did.
    fn sum_up(&self) {
        let mut ran = self.ran.lock().unwrap_or_else(PoisonError::into_inner);
        ran.sort_by_key(|ran| std::cmp::Reverse(ran.took));
        println!("slowest, with their stacks:");
        for Ran { took, name, .. } in ran.iter().take(SLOWEST) {
            println!("{:7.1} s  {name}", took.as_secs_f64());
        }
        for Ran { name, failed, .. } in ran.iter() {
            if let Some(why) = failed {
                println!("FAILED {name}: {why}");
            }
        }
    }

    fn trial(&self, runtime: Runtime, on: On, run: Run) -> Result<(), Failed> {
        let stack = self.tokio.block_on(self.unless_interrupted(self.stack(runtime, on)));
        let stack = stack.map_err(|error| Failed::from(format!("{error:#}")))?;
        let test = run(stack.clone());
        let timed = async {
            let ended = tokio::time::timeout(PATIENCE, test).await;
            ended.context("the test takes too long")?
        };
        let timed = self.unless_interrupted(timed);
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| self.tokio.block_on(timed)));
        let error = match result {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => format!("{error:#}"),
            Err(panic) => match panic.downcast::<String>() {
                Ok(said) => *said,
                Err(panic) => (*panic.downcast::<&str>().unwrap_or_default()).to_owned(),
            },
        };
        Err(format!("{error}\n{}", stack.log_tails()).into())
    }

    async fn stack(&self, runtime: Runtime, on: On) -> Result<Arc<Stack>> {
        // On one of tokio's own threads, which live as long as this process: Envoy gets SIGTERM when
        // the thread that started it ends, and a test's ends when no test is left for it.
        let start = |build: fn() -> StackBuilder| async move {
            let start = self.tokio.spawn(async move { build().runtime(runtime).start().await });
            anyhow::Ok(Arc::new(start.await??))
        };
        match on {
            On::Own(build) => start(build).await,
            On::Shared(name, build) => {
                let cell = self.all().entry((runtime, name)).or_default().clone();
                cell.get_or_try_init(|| start(build)).await.cloned()
            }
        }
    }

    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<(Runtime, &'static str), Shared>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is given up is dropped, and with it a stack that it has, or starts.
    async fn unless_interrupted<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut interrupted = self.interrupted.clone();
        tokio::select! {
            done = work => done,
            _ = interrupted.wait_for(|yes| *yes) => bail!("interrupted"),
        }
    }
}

/// Becomes true at a signal that asks the suite to end; what runs gives up, and nothing more starts.
fn interrupted(tokio: &tokio::runtime::Handle) -> watch::Receiver<bool> {
    let (tell, told) = watch::channel(false);
    tokio.spawn(async move {
        if let Ok(asked) = signals::shutdown() {
            asked.await;
            eprintln!("interrupted: ending all stacks");
            tell.send_replace(true);
        }
        // A sender that is gone would count as an interruption.
        std::future::pending::<()>().await;
    });
    told
}

/// Both runtimes, or the one that is asked for; Docker only where a daemon answers.
fn runtimes() -> Result<Vec<Runtime>> {
    if let Some(asked) = Runtime::from_env()? {
        return Ok(vec![Runtime::resolve(Some(asked))?]);
    }
    match docker::daemon() {
        Ok(_) => Ok(vec![Runtime::Process, Runtime::Docker]),
        Err(error) => {
            eprintln!("NO TEST RUNS ON DOCKER: no daemon answers ({error:#})");
            Ok(vec![Runtime::Process])
        }
    }
}
