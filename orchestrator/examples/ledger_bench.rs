//! What the ledger costs: `cargo run --release -p orchestrator --example ledger_bench [TENANTS]`.
//!
//! A month of a million tenants (by default), told hour by hour as gateways do, and pruned each day as
//! the ledger does. Of 1000 tenants 900 come in one hour of the month, 90 in ten, 9 in a hundred and
//! one in every hour; the last ten of them at two workers. Then the month's table, one tenant's month,
//! and the ways back to it.

use std::path::Path;
use std::time::{Duration, Instant};

use orchestrator::usage::store::Store;
use orchestrator::usage::tally::Tally;
use protocol::calendar::Month;
use protocol::time::HOUR_S;
use protocol::usage::UsageRow;
use protocol::{Counters, GatewayId, Limits, TenantId, TierName, UsageReport};

/// In January 2027, of which thirty days are told.
const NOW: u64 = 1_800_000_000;
const HOURS: u64 = 30 * 24;
const ROWS_PER_REPORT: usize = 500;
const REPORTS_PER_BATCH: usize = 256;

fn main() -> anyhow::Result<()> {
    let tenants: usize = match std::env::args().nth(1) {
        Some(text) => text.parse()?,
        None => 1_000_000,
    };
    let dir = std::env::temp_dir().join(format!("ledger-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let measured = measure(tenants, &dir.join("ledger.sqlite"));
    std::fs::remove_dir_all(&dir)?;
    measured
}

fn measure(tenants: usize, path: &Path) -> anyhow::Result<()> {
    let mut store = Store::open(path)?;
    let first = Month::of(NOW).start_s() / HOUR_S;
    let mut bench = Bench { store: &mut store, rows: 0, insert: Duration::ZERO };
    let (mut prune, mut longest, mut pruned) = (Duration::ZERO, Duration::ZERO, 0);
    for hour in 0..HOURS {
        bench.tell(tenants, hour, first + hour, 3)?;
        if hour % 24 == 23 {
            let before = bench.store.hour_rows()?;
            let now_s = (first + hour + 1) * HOUR_S;
            loop {
                let step = Instant::now();
                let more = bench.store.prune(now_s)?;
                prune += step.elapsed();
                longest = longest.max(step.elapsed());
                if !more {
                    break;
                }
            }
            pruned += before - bench.store.hour_rows()?;
        }
    }
    let Bench { rows, insert, .. } = bench;
    say("rows of the month", &format!("{rows} of {tenants} tenants"));
    say("insert", &format!("{:.0} rows/s", per_s(rows, insert)));
    say("pruned into days", &format!("{:.0} rows/s", per_s(pruned, prune)));
    say("  reports wait for a step at most", &format!("{:.0} ms", ms(longest)));
    again(&mut store, tenants, first + HOURS - 1)?;

    let end_s = (first + HOURS) * HOUR_S;
    let month = Month::of(NOW);
    let span = month.start_s()..month.next().start_s();
    let reader = Store::open_read_only(path)?;
    let started = Instant::now();
    let lines = reader.sums_by_tenant(span.clone())?;
    say(&format!("month of all, {} lines", lines.len()), &took(started));
    for (what, tenant) in [("one that came each hour", 0), ("one that came once", 999)] {
        let (started, tenant) = (Instant::now(), name(tenant)?);
        for _ in 0..100 {
            reader.tenant_sums(&tenant, span.clone())?;
        }
        let each = ms(started.elapsed()) / 100.0;
        say(&format!("month of {what}"), &format!("{each:.2} ms"));
    }
    let copy = path.with_extension("copy");
    let started = Instant::now();
    reader.backup(&copy)?;
    say("backup", &took(started));
    drop(reader);
    drop(store);
    let bytes = std::fs::metadata(path)?.len();
    let each = bytes / u64::try_from(tenants.max(1))?;
    say("file", &format!("{} MB, {each} bytes a tenant", bytes / 1_000_000));
    let started = Instant::now();
    let store = Store::open(path)?;
    say("open with integrity check", &took(started));
    let started = Instant::now();
    let mut tally = Tally::default();
    store.recent_increases(end_s)?.iter().for_each(|added| tally.add(added));
    say("sums for notices rebuilt", &took(started));
    Ok(())
}

/// The last hour again, with newer counters and without; and single rows.
fn again(store: &mut Store, tenants: usize, hour: u64) -> anyhow::Result<()> {
    let mut bench = Bench { store, rows: 0, insert: Duration::ZERO };
    for reads in 4..24 {
        bench.tell(tenants, HOURS - 1, hour, reads)?;
    }
    let rate = per_s(bench.rows, bench.insert);
    say("newer counters of rows that are there", &format!("{rate:.0} rows/s"));
    let one = |reads| report("vm-0", vec![row(0, hour, reads)?]);
    let started = Instant::now();
    for reads in 0..200 {
        bench.store.commit(&[one(100 + reads)?], hour * HOUR_S)?;
    }
    let each = ms(started.elapsed()) / 200.0;
    say("commit of one row, on disk", &format!("{each:.2} ms"));
    Ok(())
}

struct Bench<'a> {
    store: &'a mut Store,
    rows: u64,
    insert: Duration,
}

impl Bench<'_> {
    /// What an hour's gateways report, the `nth` of the month.
    fn tell(&mut self, tenants: usize, nth: u64, hour: u64, reads: u64) -> anyhow::Result<()> {
        let mut reports = Vec::new();
        for worker in 0..2 {
            let here = (0..tenants).filter(|n| comes(*n, nth) && (worker == 0 || is_busy(*n)));
            let rows = here.map(|n| row(n, hour, reads)).collect::<anyhow::Result<Vec<_>>>()?;
            self.rows += u64::try_from(rows.len())?;
            let source = format!("vm-{worker}");
            for rows in rows.chunks(ROWS_PER_REPORT) {
                reports.push(report(&source, rows.to_vec())?);
            }
        }
        let started = Instant::now();
        for batch in reports.chunks(REPORTS_PER_BATCH) {
            self.store.commit(batch, hour * HOUR_S)?;
        }
        self.insert += started.elapsed();
        Ok(())
    }
}

/// Whether the tenant comes in the `nth` hour of the month.
fn comes(tenant: usize, nth: u64) -> bool {
    let every = match tenant % 1_000 {
        0 => return true,
        1..10 => HOURS / 100,
        10..100 => HOURS / 10,
        _ => HOURS,
    };
    // Not all in the same hours: 7919 is prime.
    (nth + tenant as u64 * 7_919).is_multiple_of(every)
}

fn is_busy(tenant: usize) -> bool {
    tenant % 1_000 < 10
}

fn row(tenant: usize, hour: u64, reads: u64) -> anyhow::Result<UsageRow> {
    let counters = Counters {
        reads,
        writes: reads / 3,
        status: [0, 0, reads + reads / 3, 0, 0, 0],
        bytes_in: 40 * reads,
        bytes_out: 900 * reads,
        service_ms: 2 * reads,
        ..Counters::default()
    };
    let (tier, limits) = (TierName::parse("free")?, Limits::default());
    Ok(UsageRow { tenant: name(tenant)?, tier, limits, hour, counters })
}

fn report(source: &str, rows: Vec<UsageRow>) -> anyhow::Result<UsageReport> {
    let gateway = GatewayId::parse("gw")?;
    Ok(UsageReport { gateway, source: source.to_owned(), sequence: 1, rows })
}

fn name(n: usize) -> anyhow::Result<TenantId> {
    Ok(TenantId::parse(&format!("tenant-{n:07}"))?)
}

fn say(what: &str, figure: &str) {
    println!("{what:<44} {figure}");
}

fn took(started: Instant) -> String {
    format!("{:.0} ms", ms(started.elapsed()))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

#[allow(clippy::cast_precision_loss, reason = "a figure for people")]
fn per_s(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}
