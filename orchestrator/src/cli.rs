//! The commands of `orchestrator`.

pub mod client;
pub mod snapshots;
pub mod usage;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use tracing::warn;

use crate::api::admin::SleepReport;
use crate::api::status::Status;
use crate::app;
use crate::config::{Config, Faults};
use crate::host;
use client::AdminError;
use snapshots::SnapshotsCommand;
use usage::UsageArgs;

/// Exit code of a bad configuration (`EX_USAGE` of sysexits.h).
const BAD_CONFIG: u8 = 64;
/// Exit code when no orchestrator answers (`EX_UNAVAILABLE`).
const UNAVAILABLE: u8 = 69;

/// Starts, watches and stops tenants' SQ databases, and tells Envoys about them.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the orchestrator.
    Serve {
        /// Its configuration; orchestrator.example.toml documents every key.
        #[arg(long)]
        config: PathBuf,
    },
    /// Show the tenants and the host.
    Status {
        #[command(flatten)]
        admin: AdminUrl,
        /// How to print it.
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Send a tenant to sleep as soon as no lease is live.
    Sleep {
        /// Whom.
        tenant: String,
        /// Now, even when requests in flight fail; one that is in use is started again at once.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        admin: AdminUrl,
    },
    /// List, put back or take out point-in-time copies of a tenant's phexts.
    Snapshots {
        #[command(subcommand)]
        command: SnapshotsCommand,
        #[command(flatten)]
        admin: AdminUrl,
    },
    /// Show what tenants used and what it earns; compare it with Envoy; back it up.
    Usage(UsageArgs),
    /// Let a damaged or failing tenant be tried again at its next request.
    Repaired {
        /// Whom.
        tenant: String,
        #[command(flatten)]
        admin: AdminUrl,
    },
}

/// Where the running orchestrator is asked.
#[derive(Debug, Args)]
pub struct AdminUrl {
    /// Its admin address; the environment's `SQ_ADMIN` is taken when this is not given.
    #[arg(long = "admin")]
    url: Option<String>,
}

impl AdminUrl {
    /// As given, as in the environment, or the default.
    pub fn get(&self) -> String {
        let from_env = || std::env::var("SQ_ADMIN").ok().filter(|url| !url.is_empty());
        self.url.clone().or_else(from_env).unwrap_or_else(|| "http://127.0.0.1:7102".to_owned())
    }
}

/// How a command prints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

impl Cli {
    /// Does what was asked; an error is printed with what to do next.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send + 'static) -> ExitCode {
        let done = match self.command {
            Command::Serve { config } => serve(&config, shutdown).await,
            Command::Status { admin, format } => status(&admin.get(), format).await,
            Command::Sleep { tenant, force, admin } => sleep(&admin.get(), &tenant, force).await,
            Command::Snapshots { command, admin } => snapshots::run(&admin.get(), command).await,
            Command::Usage(args) => usage::run(args).await.map(|text| print!("{text}")),
            Command::Repaired { tenant, admin } => repaired(&admin.get(), &tenant).await,
        };
        match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("orchestrator: {error:#}");
                exit_code(&error)
            }
        }
    }
}

fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error.is::<Faults>() {
        return ExitCode::from(BAD_CONFIG);
    }
    match error.downcast_ref::<AdminError>() {
        Some(AdminError::Url(_)) => ExitCode::from(BAD_CONFIG),
        Some(AdminError::Unreachable { .. }) => ExitCode::from(UNAVAILABLE),
        _ => ExitCode::FAILURE,
    }
}

async fn serve(
    config: &std::path::Path,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let config = Config::load(config)?;
    for doubt in config.doubts() {
        warn!("{doubt}");
    }
    host::raise_open_files();
    app::serve(config, shutdown).await
}

async fn status(admin: &str, format: Format) -> anyhow::Result<()> {
    let body = client::get(admin, "/v1/tenants").await?;
    match format {
        Format::Json => println!("{}", String::from_utf8_lossy(&body)),
        Format::Table => {
            let status: Status = serde_json::from_slice(&body)
                .with_context(|| format!("{admin} is no orchestrator of this version"))?;
            print!("{}", status.table());
        }
    }
    Ok(())
}

async fn sleep(admin: &str, tenant: &str, force: bool) -> anyhow::Result<()> {
    let force = if force { "?force=true" } else { "" };
    let path = format!("/v1/tenants/{tenant}/sleep{force}");
    let report: SleepReport = serde_json::from_slice(&client::post(admin, &path).await?)?;
    match (report.state.as_str(), report.earliest_ms) {
        ("awake", 1..) => println!(
            "{tenant} is awake and goes to sleep when its leases have ended: not before {} ms",
            report.earliest_ms
        ),
        (state, _) => println!("{tenant} is {state}"),
    }
    Ok(())
}

async fn repaired(admin: &str, tenant: &str) -> anyhow::Result<()> {
    let path = format!("/v1/tenants/{tenant}/repaired");
    let report: SleepReport = serde_json::from_slice(&client::post(admin, &path).await?)?;
    println!("{tenant} is {}", report.state);
    Ok(())
}
