//! `orchestrator usage`: what tenants used, what it earns, whether Envoy agrees, a backup.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use protocol::GatewayId;
use serde::Deserialize;

use crate::api::usage::{LedgerFile, MonthUsage};
use crate::cli::AdminUrl;
use crate::cli::client;
use crate::host;
use crate::usage::reconcile::{EnvoyCounters, reconcile};
use crate::usage::revenue::Revenue;
use crate::usage::store::Store;
use crate::usage::sums::{Line, Sums};

/// Arguments of `orchestrator usage`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct UsageArgs {
    #[command(subcommand)]
    command: Option<UsageCommand>,
    /// Only this one, with its refusals by reason.
    #[arg(long)]
    tenant: Option<String>,
    /// `YYYY-MM`; the default is this month (UTC).
    #[arg(long)]
    month: Option<String>,
    /// How to print it.
    #[arg(long, value_enum, default_value_t)]
    format: UsageFormat,
    #[command(flatten)]
    admin: AdminUrl,
}

#[derive(Debug, Subcommand)]
enum UsageCommand {
    /// Compare the ledger with an Envoy's own counters since its start, under load or not. Fails
    /// when the ledger has more than Envoy, or less than the filter has put into reports.
    Reconcile {
        /// Envoy's admin address, such as <http://127.0.0.1:9901>.
        #[arg(long)]
        envoy_admin: String,
        /// `stat_prefix` of the listener's HTTP connection manager.
        #[arg(long, default_value = "https")]
        stat_prefix: String,
        #[command(flatten)]
        admin: AdminUrl,
    },
    /// Copy the ledger into a new file while the orchestrator runs. On its host.
    Backup {
        /// The new file.
        file: PathBuf,
        /// The ledger; without it the running orchestrator is asked where it is.
        #[arg(long)]
        ledger: Option<PathBuf>,
        #[command(flatten)]
        admin: AdminUrl,
    },
}

/// How usage is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum UsageFormat {
    /// For people.
    #[default]
    Table,
    /// For spreadsheets.
    Csv,
    /// For programs.
    Json,
}

/// Does it; what is printed comes back.
pub async fn run(args: UsageArgs) -> anyhow::Result<String> {
    match args.command {
        None => {
            let asked = (args.month.as_deref(), args.tenant.as_deref());
            let usage = month(&args.admin.get(), asked).await?;
            render(&usage, args.format)
        }
        Some(UsageCommand::Reconcile { envoy_admin, stat_prefix, admin }) => {
            compare(&admin.get(), &envoy_admin, &stat_prefix, REPORTED).await
        }
        Some(UsageCommand::Backup { file, ledger, admin }) => {
            let ledger = match ledger {
                Some(ledger) => ledger,
                None => get::<LedgerFile>(&admin.get(), "/v1/usage/ledger").await?.path,
            };
            backup(&ledger, &file)
        }
    }
}

async fn get<T: for<'de> Deserialize<'de>>(base: &str, path: &str) -> anyhow::Result<T> {
    let body = client::get(base, path).await?;
    serde_json::from_slice(&body).with_context(|| format!("{base}{path} answers something else"))
}

async fn month(
    admin: &str,
    (month, tenant): (Option<&str>, Option<&str>),
) -> anyhow::Result<MonthUsage> {
    let mut path = "/v1/usage?".to_owned();
    for (name, value) in [("month", month), ("tenant", tenant)] {
        let Some(value) = value else { continue };
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if value.is_empty() || !value.bytes().all(plain) {
            bail!("--{name} {value:?} is not right");
        }
        let _ = write!(path, "{name}={value}&");
    }
    get(admin, path.trim_end_matches(['?', '&'])).await
}

/// A month as text.
pub fn render(usage: &MonthUsage, format: UsageFormat) -> anyhow::Result<String> {
    Ok(match format {
        UsageFormat::Json => serde_json::to_string_pretty(usage)? + "\n",
        UsageFormat::Csv => csv(&usage.tenants),
        UsageFormat::Table => table(usage),
    })
}

const COLUMNS: [&str; 16] = [
    "tenant",
    "tier",
    "price_usd",
    "requests",
    "reads",
    "writes",
    "refused",
    "2xx",
    "4xx",
    "5xx",
    "no_answer",
    "bytes_in",
    "bytes_out",
    "service_ms",
    "dozes",
    "starts",
];

fn cells(line: &Line) -> [String; 16] {
    let Sums { reads, writes, refused, status, bytes_in, bytes_out, service_ms, wakes, .. } =
        &line.sums;
    let requests = line.sums.requests();
    let starts = wakes.start + wakes.create;
    let numbers = [
        requests,
        *reads,
        *writes,
        *refused,
        status[2],
        status[4],
        status[5],
        status[0],
        *bytes_in,
        *bytes_out,
        *service_ms,
        wakes.doze,
        starts,
    ];
    let mut cells = [const { String::new() }; 16];
    cells[0] = line.tenant.to_string();
    cells[1] = line.tier.to_string();
    cells[2] = usd(u64::from(line.price_cents_month));
    for (cell, number) in cells[3..].iter_mut().zip(numbers) {
        *cell = number.to_string();
    }
    cells
}

/// No cell needs quotes: names have none of `",` and the rest are numbers.
fn csv(lines: &[Line]) -> String {
    let mut text = COLUMNS.join(",") + "\n";
    for line in lines {
        text += &cells(line).join(",");
        text.push('\n');
    }
    text
}

fn table(usage: &MonthUsage) -> String {
    let rows: Vec<[String; 16]> = usage.tenants.iter().map(cells).collect();
    let mut widths = COLUMNS.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.len());
        }
    }
    let line = |cells: &[String; 16]| {
        let aligned = cells.iter().zip(widths).enumerate().map(|(index, (cell, width))| {
            if index < 2 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        aligned.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = format!("usage of {} (UTC)\n", usage.month);
    text += &line(&COLUMNS.map(str::to_owned));
    for row in &rows {
        text += &line(row);
    }
    let total = &usage.total;
    let _ = writeln!(
        text,
        "{} tenants, {} requests ({} refused), {} bytes in, {} bytes out",
        rows.len(),
        total.requests(),
        total.refused,
        total.bytes_in,
        total.bytes_out
    );
    for (reason, times) in &total.reasons {
        let _ = writeln!(text, "  refused {reason}: {times}");
    }
    text + &revenue(&usage.revenue)
}

fn revenue(revenue: &Revenue) -> String {
    let mut text = String::new();
    for (tier, part) in &revenue.tiers {
        let cents = usd(part.cents);
        let _ = writeln!(text, "  {tier}: {} tenants, {cents} USD a month", part.tenants);
    }
    let (earned, target) = (usd(revenue.cents), usd(revenue.target_cents));
    let percent = revenue.percent();
    let _ = writeln!(text, "revenue {earned} of {target} USD a month ({percent} % of the target)");
    text
}

fn usd(cents: u64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}

/// Envoy's `GET /server_info`, what is needed of it.
#[derive(Debug, Deserialize)]
struct ServerInfo {
    node: Node,
    uptime_all_epochs: String,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
}

/// Envoy's `GET /stats?format=json`. Histograms have neither.
#[derive(Debug, Deserialize)]
struct Stats {
    stats: Vec<Stat>,
}

#[derive(Debug, Deserialize)]
struct Stat {
    name: Option<String>,
    value: Option<serde_json::Value>,
}

impl Stats {
    /// A counter or gauge; none while nothing was counted.
    fn value(&self, name: &str) -> Option<u64> {
        let stat = self.stats.iter().find(|stat| stat.name.as_deref() == Some(name))?;
        stat.value.as_ref().and_then(serde_json::Value::as_u64)
    }
}

/// Source of Envoy's counters.
fn envoy_counters(stats: &Stats, stat_prefix: &str) -> EnvoyCounters {
    let value =
        |name: &str| stats.value(&format!("http.{stat_prefix}.downstream_rq_{name}")).unwrap_or(0);
    EnvoyCounters {
        total: value("total"),
        active: value("active"),
        status: ["1xx", "2xx", "3xx", "4xx", "5xx"].map(value),
    }
}

/// How long the ledger may lack what the filter has put into a report: it is sent once a second, and
/// given up for the next try after two.
const REPORTED: Duration = Duration::from_secs(10);
/// How often the ledger is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(500);

async fn compare(
    admin: &str,
    envoy: &str,
    stat_prefix: &str,
    patience: Duration,
) -> anyhow::Result<String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if stat_prefix.is_empty() || !stat_prefix.bytes().all(plain) {
        bail!("--stat-prefix {stat_prefix:?} is not right");
    }
    let info: ServerInfo = get(envoy, "/server_info").await?;
    let gateway = GatewayId::parse(&info.node.id)
        .with_context(|| format!("node.id {:?} of {envoy}", info.node.id))?;
    let uptime = info.uptime_all_epochs.trim_end_matches('s');
    let uptime_s: u64 = uptime.parse().with_context(|| format!("uptime {uptime:?}"))?;
    // Envoy's start by our clock, and a second for rounding: its VMs begin later than that.
    let since_s = host::now_s().saturating_sub(uptime_s + 1);
    // The filter first, then the ledger, then Envoy. What comes between the looks is then Envoy's
    // surplus: it makes neither a loss nor a double.
    let stats: Stats = get(envoy, "/stats?format=json&filter=^wasmcustom%5C.sq%5C.").await?;
    let Some(metered) = stats.value("wasmcustom.sq.metered") else {
        bail!("{envoy} has no wasmcustom.sq.metered: its filter is older than this command");
    };
    let path = format!("/v1/usage/gateways/{gateway}?since_s={since_s}");
    let asked = Instant::now();
    let sums = loop {
        let sums: Sums = get(admin, &path).await?;
        if sums.status.iter().sum::<u64>() >= metered || asked.elapsed() >= patience {
            break sums;
        }
        tokio::time::sleep(LOOK).await;
    };
    let path = format!("/stats?format=json&filter=^http%5C.{stat_prefix}%5C.downstream_rq_");
    let counters = envoy_counters(&get(envoy, &path).await?, stat_prefix);
    let reconciliation = reconcile(&counters, metered, &sums);
    let text = format!("Envoy {gateway} since its start {uptime_s} s ago\n{reconciliation}");
    if reconciliation.is_sound() {
        return Ok(text);
    }
    let mut faults = Vec::new();
    if reconciliation.total.doubled > 0 {
        let doubled = reconciliation.total.doubled;
        faults.push(format!("the ledger has {doubled} requests more than Envoy"));
    }
    if reconciliation.lost > 0 {
        faults.push(format!(
            "{} requests are not in the ledger: of a worker that died within a second of them, that \
             had more tenants than it counts, whose reports came weeks late, or do not come now",
            reconciliation.lost
        ));
    }
    bail!("{text}{}", faults.join("; "))
}

/// Copies, checks the copy, then gives it its name: a file of that name is a good one.
fn backup(ledger: &Path, file: &Path) -> anyhow::Result<String> {
    if file.exists() {
        bail!("{} is there already: name a new file", file.display());
    }
    let partial = file.with_added_extension("partial");
    let from = Store::open_to_read(ledger)
        .with_context(|| format!("{} can't be read", ledger.display()))?;
    // What an interrupted backup left behind.
    let _ = std::fs::remove_file(&partial);
    from.backup(&partial)?;
    Store::check_copy(&partial)?;
    std::fs::File::open(&partial)?.sync_all()?;
    std::fs::rename(&partial, file)?;
    let bytes = std::fs::metadata(file)?.len();
    Ok(format!("{} has {bytes} bytes and is checked\n", file.display()))
}

#[cfg(test)]
mod tests;
