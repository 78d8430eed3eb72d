//! `relay`: serves gateways, or shows and changes the registry.

use std::process::ExitCode;

use clap::Parser;
use relay::cli::{Cli, Command, EXIT_FAULT, commands, serve};

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve { config } => serve::run(&config),
        Command::Registry(args) => match commands::run(&args) {
            Ok(output) => output.print(),
            Err(error) => {
                eprintln!("{error}");
                ExitCode::from(EXIT_FAULT)
            }
        },
    }
}
