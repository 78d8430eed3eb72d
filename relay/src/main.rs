//! `relay`: serve gateways, or look at and change the registry.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use relay::Config;
use relay::cli::{CONFIG, Cli, Command, FAULT, commands};
use relay::serve::{RunError, raise_open_files};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve { config } => match Config::load(&config) {
            Ok(config) => serve(config),
            Err(faults) => {
                eprintln!("{}:\n{faults}", config.display());
                ExitCode::from(CONFIG)
            }
        },
        Command::Registry(arguments) => commands::run(&arguments)
            .inspect_err(|e| eprintln!("{e}"))
            .map_or(ExitCode::from(FAULT), |said| said.print()),
    }
}

#[tokio::main]
async fn serve(config: Config) -> ! {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(std::io::stderr)
        .init();
    raise_open_files();
    let served = async {
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        // What it would reload is followed anyway; the default would end the relay.
        let _hup = signal(SignalKind::hangup())?;
        let bound = TcpListener::bind(config.listen).await;
        let listener = bound.with_context(|| format!("can't listen on {}", config.listen))?;
        info!(address = %listener.local_addr()?, "listening");
        let asked = async {
            tokio::select! { _ = term.recv() => (), _ = int.recv() => () }
        };
        relay::run(config, listener, asked).await.map_err(anyhow::Error::from)
    };
    let code = served.await.map_or_else(|e| failed(&e), |()| 0);
    // A look at a network folder whose server is gone must not be waited for.
    std::process::exit(code.into())
}

fn failed(e: &anyhow::Error) -> u8 {
    error!("{e:#}");
    // Certificates are what the configuration says; everything else is the machine's.
    if matches!(e.downcast_ref(), Some(RunError::Tls(_))) { CONFIG } else { FAULT }
}
