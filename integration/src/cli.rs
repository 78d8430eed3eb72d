//! The command line of `integration`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use experiments::{bench, drill, proof, reconcile, scale};
use harness::Runtime;
use harness::host::signals;
use harness::host::tools;

use crate::dev::{self, Options};

const EXAMPLES: &str = "\
Examples:
  integration stack                     serve https://localhost:8443 until Ctrl-C
  integration stack --detach            the same in the background
  integration stop                      end it
  RUNTIME=process integration stack     run SQ in processes although Docker is available
  integration bench --quick             check that every benchmark still works
  integration bench --only warm         measure one part with all rounds
  integration drill --only kill         run the drills with `kill` in their title

Environment:
  RUNTIME      docker (default) or process: tenants as plain processes, for development
  SQ_VERSION   version of SQ for `stack` (default: 0.6.0)
  SEED         random seed of `proof`";

/// Runs, measures and breaks the whole gateway on this machine.
#[derive(Parser)]
#[command(after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Folder for the files of the stack [default: `run` in the repository]
    #[arg(long, global = true)]
    dir: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Serves <https://localhost:8443> with two demo tenants until Ctrl-C
    Stack {
        /// Returns when the stack is ready; `stop` ends it
        #[arg(long)]
        detach: bool,
        /// Version of SQ [default: `SQ_VERSION`, or 0.6.0]
        #[arg(long)]
        sq: Option<String>,
        /// Uses free ports instead of the documented ones
        #[arg(long)]
        any_ports: bool,
    },
    /// Ends a detached stack
    Stop,
    #[command(flatten)]
    Experiment(Experiment),
}

/// Commands that start their own stacks and end when they are done.
#[derive(Subcommand)]
enum Experiment {
    /// Measures the cost of the gateway and prints each figure beside its goal
    Bench {
        /// Runs few rounds, to show that the benchmarks work
        #[arg(long)]
        quick: bool,
        /// Runs one part only
        #[arg(long, value_enum)]
        only: Option<bench::BenchPart>,
    },
    /// Measures the cost of many tenants on one host and prints each figure beside its goal
    Scale {
        /// Number of tenants
        #[arg(long, default_value_t = 10_000)]
        tenants: usize,
    },
    /// Kills SQ during writes, behind the gateway and without it, and counts lost writes
    Proof {
        /// Kills SQ only a few times, which takes about a minute
        #[arg(long)]
        quick: bool,
        /// Random seed of the times of the kills
        #[arg(long, env = "SEED", default_value_t = 1)]
        seed: u64,
        /// Runs one part only
        #[arg(long)]
        only: Option<proof::ProofPart>,
        /// Folder of a private Docker daemon; set for the child process that kills it
        #[arg(long, hide = true)]
        dockerd_in: Option<PathBuf>,
        /// Number of times that the private daemon is killed
        #[arg(long, hide = true)]
        dockerd_kills: Option<u64>,
    },
    /// Compares what clients saw, Envoy counted and the ledger stored while all parts are killed
    Reconcile {
        /// Total number of requests
        #[arg(long, default_value_t = 100_000)]
        requests: u64,
    },
    /// Breaks parts under load and counts the errors that clients see
    Drill {
        /// Runs each drill for a shorter time
        #[arg(long)]
        quick: bool,
        /// Also kills and restarts the Docker daemon of this host
        #[arg(long)]
        dockerd: bool,
        /// Runs only drills with this text in their title
        #[arg(long)]
        only: Option<String>,
    },
}

impl Cli {
    /// Runs the command. An interrupted experiment ends all stacks that it started.
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
            Command::Experiment(experiment) => tokio::select! {
                result = experiment.run(runtime) => result,
                () = signals::shutdown()? => bail!("interrupted"),
            },
        }
    }
}

impl Experiment {
    async fn run(self, runtime: Option<Runtime>) -> Result<()> {
        match self {
            Self::Bench { quick, only } => bench::run(runtime, quick, only).await,
            Self::Scale { tenants } => scale::run(tenants).await,
            Self::Proof { quick, seed, only, dockerd_in, dockerd_kills } => {
                let options =
                    proof::ProofOptions { runtime, quick, seed, only, dockerd_in, dockerd_kills };
                proof::run(options).await
            }
            Self::Reconcile { requests } => reconcile::run(runtime, requests).await,
            Self::Drill { quick, dockerd, only } => {
                drill::run(drill::DrillOptions { runtime, quick, dockerd, only }).await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
