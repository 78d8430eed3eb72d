//! The `orchestrator` program: sets up logging and signals, then runs the command.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use orchestrator::cli::Cli;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(std::io::stderr)
        .init();
    cli.run(stop_signal()).await
}

/// Resolves at SIGTERM or SIGINT. A hang-up, which would end the process by default, is ignored: there
/// is nothing to reload.
async fn stop_signal() {
    let terminate = signal(SignalKind::terminate());
    let interrupt = signal(SignalKind::interrupt());
    let _hangup = signal(SignalKind::hangup());
    let (Ok(mut terminate), Ok(mut interrupt)) = (terminate, interrupt) else {
        // Without handlers the default action of the signals ends the process.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => (),
        _ = interrupt.recv() => (),
    }
}
