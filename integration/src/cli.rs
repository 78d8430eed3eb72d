//! The command line of `integration`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};

use crate::dev::{self, Options};
use experiments::bench;
use experiments::drill;
use experiments::proof;
use experiments::reconcile;
use experiments::scale;
use harness::Runtime;
use harness::host::signals;
use harness::host::tools;

/// What `integration` is asked to do.
#[derive(Parser)]
#[command(about = "The whole gateway on this machine: to try, to measure, to break")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Where the stack keeps its files. Default: `run/` of the repository.
    #[arg(long, global = true)]
    dir: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Serves <https://localhost:8443> with two demo tenants until Ctrl-C.
    Stack {
        /// Returns when it is ready; `stop` ends it.
        #[arg(long)]
        detach: bool,
        /// Which SQ. Default: `SQ_VERSION`, else 0.6.0.
        #[arg(long)]
        sq: Option<String>,
        /// Free ports instead of the documented ones.
        #[arg(long)]
        any_ports: bool,
    },
    /// Ends a detached stack.
    Stop,
    #[command(flatten)]
    Work(Work),
}

/// What ends by itself.
#[derive(Subcommand)]
enum Work {
    /// Measures what the gateway costs; prints each figure beside its goal.
    Bench {
        /// Few rounds: shows that it works.
        #[arg(long)]
        quick: bool,
        /// One part only.
        #[arg(long, value_enum)]
        only: Option<bench::Part>,
    },
    /// Measures what a host pays for many tenants; prints each figure beside its goal.
    Scale {
        /// The largest number of tenants.
        #[arg(long, default_value_t = 10_000)]
        tenants: usize,
    },
    /// Has SQ die under writes, behind the gateway and alone, and counts what is lost.
    Proof {
        /// Few deaths: about a minute.
        #[arg(long)]
        quick: bool,
        /// Decides when SQ dies.
        #[arg(long, env = "SEED", default_value_t = 1)]
        seed: u64,
        /// One part instead of all.
        #[arg(long)]
        only: Option<proof::Part>,
        /// Where a Docker daemon of our own is; for the process that kills it.
        #[arg(long, hide = true)]
        dockerd_in: Option<PathBuf>,
        /// How often that is.
        #[arg(long, hide = true)]
        dockerd_kills: Option<u64>,
    },
    /// Compares what clients saw, Envoy counted and the ledger has, through kills of all of them.
    Reconcile {
        /// Requests in all.
        #[arg(long, default_value_t = 100_000)]
        requests: u64,
    },
    /// Breaks parts under load and counts what clients see.
    Drill {
        /// Each drill for a shorter time.
        #[arg(long)]
        quick: bool,
        /// Also kill this host's Docker daemon, and start it again.
        #[arg(long)]
        dockerd: bool,
        /// Only drills with this in their title.
        #[arg(long)]
        only: Option<String>,
    },
}

impl Cli {
    /// Does it. What a measurement or a drill has started is ended also when it is interrupted.
    pub async fn run(self) -> Result<()> {
        let dir = self.dir.unwrap_or_else(|| tools::root().join("run"));
        let runtime = Runtime::from_env()?;
        match self.command {
            Command::Stack { detach, sq, any_ports } => {
                let sq_version = sq.unwrap_or_else(tools::sq_version);
                let options = Options { dir, runtime, sq_version, any_ports };
                if detach { dev::detach(&options).await } else { dev::serve(&options).await }
            }
            Command::Stop => dev::stop(&dir).await,
            Command::Work(work) => tokio::select! {
                done = work.run(runtime) => done,
                () = signals::shutdown()? => bail!("interrupted"),
            },
        }
    }
}

impl Work {
    async fn run(self, runtime: Option<Runtime>) -> Result<()> {
        match self {
            Self::Bench { quick, only } => bench::run(runtime, quick, only).await,
            Self::Scale { tenants } => scale::run(tenants).await,
            Self::Proof { quick, seed, only, dockerd_in, dockerd_kills } => {
                let options =
                    proof::Options { runtime, quick, seed, only, dockerd_in, dockerd_kills };
                proof::run(options).await
            }
            Self::Reconcile { requests } => reconcile::run(runtime, requests).await,
            Self::Drill { quick, dockerd, only } => {
                drill::run(drill::Options { runtime, quick, dockerd, only }).await
            }
        }
    }
}
