//! The `relay serve` command: configuration → logging → serve until a signal → drain.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::error;
use tracing_subscriber::EnvFilter;

use super::{EXIT_CONFIG, EXIT_FAULT};
use crate::config::Config;
use crate::serve::{RunError, keep_private, raise_open_files};

/// Serves with the configuration in this file. Returns only if the file has a fault; otherwise the
/// process ends with the relay.
pub fn run(config: &Path) -> ExitCode {
    match Config::load(config) {
        Ok(config) => serve(config),
        Err(faults) => {
            eprintln!("{faults}");
            ExitCode::from(EXIT_CONFIG)
        }
    }
}

#[tokio::main]
async fn serve(config: Config) -> ! {
    log_to_stderr();
    keep_private();
    raise_open_files();
    let code = match serve_until_signal(config).await {
        Ok(()) => 0,
        Err(error) => {
            error!(error = format!("{error:#}"), "relay failed");
            // Faulty certificates are a fault of the configuration.
            let is_config_fault = matches!(error.downcast_ref(), Some(RunError::Tls(_)));
            if is_config_fault { EXIT_CONFIG } else { EXIT_FAULT }
        }
    };
    // Do not wait for blocking threads: one may hang on a network folder whose server is gone.
    std::process::exit(code.into())
}

/// Logs in colour on a terminal only, so that log files contain plain text.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
}

async fn serve_until_signal(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // A hang-up would end the relay by default. It has nothing to reload: all files are followed.
    let _hangup = signal(SignalKind::hangup())?;
    let bound = TcpListener::bind(config.listen).await;
    let listener = bound.with_context(|| format!("can't listen on {}", config.listen))?;
    let shutdown = async {
        tokio::select! { _ = terminate.recv() => (), _ = interrupt.recv() => () }
    };
    Ok(crate::serve::run(config, listener, shutdown).await?)
}
