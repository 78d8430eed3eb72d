//! `integration`: the dev stack of `make run` and the experiments.

use std::process::ExitCode;

use clap::Parser as _;
use integration::cli::Cli;

#[tokio::main]
async fn main() -> ExitCode {
    match Cli::parse().run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
