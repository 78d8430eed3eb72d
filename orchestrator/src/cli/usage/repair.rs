//! `orchestrator usage repair`: shows what the ledger does not believe, and repairs it.

use std::fmt::Write as _;

use clap::{Args, Subcommand};
use protocol::calendar::{parse_utc, rfc3339};
use protocol::time::HOUR_S;
use protocol::usage::bounds::is_source;
use protocol::{GatewayId, TenantId};

use crate::api::Quarantine;
use crate::cli::{AdminSocket, table};
use crate::usage::store::quarantine::QuarantinedRow;
use crate::usage::store::repair::{HourRow, Repaired};
use crate::usage::sums::Sums;
use crate::usage::suspicion::Suspicion;

pub(super) const EXAMPLES: &str = "\
Examples:
  orchestrator usage repair
  orchestrator usage repair release --tenant alice --apply
  orchestrator usage repair rows --tenant alice --from 2026-12-01 --to 2026-12-02
  orchestrator usage repair remove --source 186f3b2c-1 --from 2026-12-01 --to 2026-12-02 --apply

Nothing is changed without --apply: a command then says what it would do.";

const LIST_EXAMPLES: &str = "\
Examples:
  orchestrator usage repair list
  orchestrator usage repair list --reason unknown-tenant";

const RELEASE_EXAMPLES: &str = "\
Examples:
  orchestrator usage repair release --id 17
  orchestrator usage repair release --tenant alice --apply";

const DROP_EXAMPLES: &str = "\
Examples:
  orchestrator usage repair drop --tenant evil
  orchestrator usage repair drop --reason malformed --apply";

const ROWS_EXAMPLES: &str = "\
Example:
  orchestrator usage repair rows --tenant alice --from 2026-12-01 --to 2026-12-02";

const REMOVE_EXAMPLES: &str = "\
Example:
  orchestrator usage repair remove --source 186f3b2c-1 --from 2026-12-01 --to 2026-12-02 --apply

The removed rows go to the quarantine. A source that still runs reports its present hour again.";

const SET_EXAMPLES: &str = "\
Example:
  orchestrator usage repair set --tenant alice --source 186f3b2c-1 \\
    --from 2026-12-01T05:00:00Z --to 2026-12-01T06:00:00Z --reads 12 --apply

The rows as they were go to the quarantine.";

/// Actions on rows that are not believed, or that should not be.
#[derive(Debug, Subcommand)]
pub(super) enum RepairCommand {
    /// List the quarantine, the newest rows first; this is the default.
    #[command(after_help = LIST_EXAMPLES)]
    List {
        #[command(flatten)]
        selection: QuarantineArgs,
    },
    /// Move rows from the quarantine into the ledger.
    #[command(after_help = RELEASE_EXAMPLES)]
    Release {
        #[command(flatten)]
        selection: QuarantineArgs,
        #[command(flatten)]
        apply: Apply,
    },
    /// Delete rows from the quarantine.
    #[command(after_help = DROP_EXAMPLES)]
    Drop {
        #[command(flatten)]
        selection: QuarantineArgs,
        #[command(flatten)]
        apply: Apply,
    },
    /// List rows of the ledger by source and hour, as long as hours are kept.
    #[command(after_help = ROWS_EXAMPLES)]
    Rows {
        #[command(flatten)]
        selection: RowArgs,
    },
    /// Move rows of a source, tenant or gateway from the ledger into the quarantine.
    #[command(after_help = REMOVE_EXAMPLES)]
    Remove {
        #[command(flatten)]
        selection: RowArgs,
        #[command(flatten)]
        apply: Apply,
    },
    /// Give counters of rows of the ledger other values.
    #[command(after_help = SET_EXAMPLES)]
    Set {
        #[command(flatten)]
        selection: RowArgs,
        #[command(flatten)]
        counters: CounterArgs,
        #[command(flatten)]
        apply: Apply,
    },
}

/// A selection of rows of the quarantine: those to which every option applies.
#[derive(Debug, Default, Args)]
pub(super) struct QuarantineArgs {
    /// Row with this number.
    #[arg(long)]
    id: Option<u64>,
    /// Rows of this tenant.
    #[arg(long)]
    tenant: Option<TenantId>,
    /// Rows of this source.
    #[arg(long, value_parser = parse_source)]
    source: Option<String>,
    /// Rows with this reason, such as jump or malformed.
    #[arg(long, value_parser = parse_reason)]
    reason: Option<Suspicion>,
}

/// A selection of rows of the ledger: those to which every option applies.
#[derive(Debug, Args)]
pub(super) struct RowArgs {
    /// Rows of this tenant.
    #[arg(long)]
    tenant: Option<TenantId>,
    /// Rows of this source.
    #[arg(long, value_parser = parse_source)]
    source: Option<String>,
    /// Rows of this gateway.
    #[arg(long)]
    gateway: Option<GatewayId>,
    /// Begin, in UTC: a day, or a time such as 2026-12-01T05:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    from: u64,
    /// End, in UTC.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    to: u64,
}

/// The counters to set.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(super) struct CounterArgs {
    /// Forwarded requests that read.
    #[arg(long)]
    reads: Option<u64>,
    /// Forwarded requests that write.
    #[arg(long)]
    writes: Option<u64>,
    /// Refused requests.
    #[arg(long)]
    refused: Option<u64>,
    /// Bytes of request bodies and query strings.
    #[arg(long)]
    bytes_in: Option<u64>,
    /// Bytes of response bodies.
    #[arg(long)]
    bytes_out: Option<u64>,
}

#[derive(Debug, Args)]
pub(super) struct Apply {
    /// Change the ledger; without this option, only say what would be changed.
    #[arg(long)]
    apply: bool,
}

/// A query string, with the parameters that were given.
struct QueryString(String);

impl QueryString {
    fn new() -> Self {
        Self(String::new())
    }

    /// Adds a parameter. No value needs escapes: all are names or numbers.
    fn add(mut self, name: &str, value: Option<impl std::fmt::Display>) -> Self {
        if let Some(value) = value {
            let separator = if self.0.is_empty() { '?' } else { '&' };
            let _ = write!(self.0, "{separator}{name}={value}");
        }
        self
    }

    fn apply(self, apply: &Apply) -> Self {
        self.add("apply", Some(apply.apply))
    }
}

impl QuarantineArgs {
    fn query(&self) -> QueryString {
        QueryString::new()
            .add("id", self.id)
            .add("tenant", self.tenant.as_ref())
            .add("source", self.source.as_ref())
            .add("reason", self.reason.map(Suspicion::as_str))
    }
}

impl RowArgs {
    fn query(&self) -> QueryString {
        QueryString::new()
            .add("tenant", self.tenant.as_ref())
            .add("source", self.source.as_ref())
            .add("gateway", self.gateway.as_ref())
            .add("from_s", Some(self.from))
            .add("to_s", Some(self.to))
    }
}

/// Runs the command and returns its output.
pub(super) async fn run(
    admin: &AdminSocket,
    command: Option<RepairCommand>,
) -> anyhow::Result<String> {
    let client = admin.client()?;
    let (path, QueryString(query)) = match command {
        None => return Ok(list(&client.get("/v1/usage/quarantine").await?)),
        Some(RepairCommand::List { selection }) => {
            let QueryString(query) = selection.query();
            return Ok(list(&client.get(&format!("/v1/usage/quarantine{query}")).await?));
        }
        Some(RepairCommand::Rows { selection }) => {
            let QueryString(query) = selection.query();
            let found: Vec<HourRow> = client.get(&format!("/v1/usage/rows{query}")).await?;
            return Ok(rows(&found));
        }
        Some(RepairCommand::Release { selection, apply }) => {
            ("quarantine/release", selection.query().apply(&apply))
        }
        Some(RepairCommand::Drop { selection, apply }) => {
            ("quarantine/drop", selection.query().apply(&apply))
        }
        Some(RepairCommand::Remove { selection, apply }) => {
            ("rows/remove", selection.query().apply(&apply))
        }
        Some(RepairCommand::Set { selection, counters, apply }) => {
            let CounterArgs { reads, writes, refused, bytes_in, bytes_out } = counters;
            let query = selection.query().add("reads", reads).add("writes", writes);
            let query = query.add("refused", refused).add("bytes_in", bytes_in);
            ("rows/set", query.add("bytes_out", bytes_out).apply(&apply))
        }
    };
    Ok(repaired(&client.post(&format!("/v1/usage/{path}{query}")).await?))
}

fn list(quarantine: &Quarantine) -> String {
    let total: u64 = quarantine.sizes.iter().map(|(_, rows)| rows).sum();
    let reasons: Vec<String> = quarantine
        .sizes
        .iter()
        .map(|(reason, rows)| format!("{rows} {}", reason.as_str()))
        .collect();
    if total == 0 {
        return "the quarantine is empty\n".to_owned();
    }
    let headings = [
        "ID",
        "REASON",
        "TENANT",
        "TIER",
        "HOUR",
        "GATEWAY",
        "SOURCE",
        "LAST REPORT",
        "REQUESTS",
        "BYTES",
    ];
    let mut table = table::new(&headings, 8);
    for row in &quarantine.rows {
        table.add_row(cells(row));
    }
    let shown = quarantine.rows.len();
    table::render(&table)
        + &format!(
            "{} in quarantine: {}; {shown} shown\n",
            table::count(total, "row"),
            reasons.join(", ")
        )
}

fn cells(row: &QuarantinedRow) -> [String; 10] {
    let usage = row.usage();
    let sums = usage.as_ref().map(|usage| Sums::from_counters(&usage.counters)).unwrap_or_default();
    [
        row.id.to_string(),
        row.reason.as_str().to_owned(),
        // Of a malformed row the name may be anything, also what a terminal would act on.
        row.tenant.escape_default().to_string(),
        usage.map(|usage| usage.tier.to_string()).unwrap_or_default(),
        rfc3339(row.hour.saturating_mul(HOUR_S)),
        row.gateway.clone(),
        row.source.clone(),
        rfc3339(row.last_s),
        sums.requests().to_string(),
        sums.bytes_in.saturating_add(sums.bytes_out).to_string(),
    ]
}

fn rows(rows: &[HourRow]) -> String {
    let headings = [
        "TENANT",
        "HOUR",
        "GATEWAY",
        "SOURCE",
        "READS",
        "WRITES",
        "REFUSED",
        "BYTES IN",
        "BYTES OUT",
    ];
    let mut table = table::new(&headings, 4);
    for HourRow { gateway, source, tenant, hour, sums } in rows {
        table.add_row([
            tenant.to_string(),
            rfc3339(hour.saturating_mul(HOUR_S)),
            gateway.to_string(),
            source.clone(),
            sums.reads.to_string(),
            sums.writes.to_string(),
            sums.refused.to_string(),
            sums.bytes_in.to_string(),
            sums.bytes_out.to_string(),
        ]);
    }
    table::render(&table) + &format!("{}\n", table::count(rows.len() as u64, "row"))
}

fn repaired(repaired: &Repaired) -> String {
    let Repaired { applied, rows, before, after, skipped } = repaired;
    let mut text = String::new();
    for skipped in skipped {
        let _ = writeln!(text, "row {} stays: {}", skipped.id, skipped.reason);
    }
    let rows = table::count(*rows, "row");
    let verb = if *applied { "changed" } else { "would be changed" };
    let _ = writeln!(
        text,
        "{rows} {verb}: {} before, {} after",
        table::count(before.requests(), "request"),
        table::count(after.requests(), "request"),
    );
    if !applied {
        text += "nothing is changed yet: add --apply\n";
    }
    text
}

fn parse_source(text: &str) -> Result<String, String> {
    if is_source(text) {
        Ok(text.to_owned())
    } else {
        Err("1 to 64 letters, digits and '-'".to_owned())
    }
}

fn parse_reason(text: &str) -> Result<Suspicion, String> {
    Suspicion::parse(text).ok_or_else(|| {
        let names = Suspicion::ALL.map(Suspicion::as_str);
        format!("must be one of {}", names.join(", "))
    })
}

fn parse_time(text: &str) -> Result<u64, String> {
    parse_utc(text)
        .ok_or_else(|| "must be a day or a time in UTC, such as 2026-12-01T05:00:00Z".to_owned())
}
