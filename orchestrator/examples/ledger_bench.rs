//! Measures the ledger: `cargo run --release -p orchestrator --example ledger_bench [TENANTS]`.
//!
//! Reports a month of a million tenants (by default) hour by hour, as gateways do, and prunes each
//! day, as the ledger does. Of 1,000 tenants 900 send requests in one hour of the month, 90 in ten
//! hours, 9 in a hundred, and one in every hour; those last ten on two workers. Then measures the
//! month of all tenants, the month of one, backup and start.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use orchestrator::usage::names::Names;
use orchestrator::usage::received::ReceivedReport;
use orchestrator::usage::store::Store;
use orchestrator::usage::tally::Tally;
use protocol::calendar::Month;
use protocol::time::HOUR_S;
use protocol::usage::UsageRow;
use protocol::{Counters, GatewayId, Limits, TenantId, TierName, UsageReport};

/// A time in January 2027, of which thirty days are reported.
const NOW: u64 = 1_800_000_000;
const HOURS: u64 = 30 * 24;
const ROWS_PER_REPORT: usize = 500;
const REPORTS_PER_BATCH: usize = 256;

/// Every name that is reported exists.
#[derive(Debug)]
struct Everyone;

impl Names for Everyone {
    fn is_tenant(&self, _: &TenantId) -> bool {
        true
    }

    fn is_tier(&self, _: &TierName) -> bool {
        true
    }
}

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
    let mut store = Store::open(path, Arc::new(Everyone))?;
    let first_hour = Month::of(NOW).start_s() / HOUR_S;
    measure_month(&mut store, tenants, first_hour)?;
    measure_updates(&mut store, tenants, first_hour + HOURS - 1)?;

    let reader = Store::open_read_only(path)?;
    measure_queries(&reader)?;
    let started = Instant::now();
    reader.backup(&path.with_extension("copy"))?;
    print("backup", &elapsed(started));
    drop(reader);
    drop(store);

    let bytes = std::fs::metadata(path)?.len();
    let per_tenant = bytes / u64::try_from(tenants.max(1))?;
    print("file", &format!("{} MB, {per_tenant} bytes a tenant", bytes / 1_000_000));
    measure_start(path, (first_hour + HOURS) * HOUR_S)
}

/// Inserts the month, and prunes at the end of each day.
fn measure_month(store: &mut Store, tenants: usize, first_hour: u64) -> anyhow::Result<()> {
    let mut inserts = Inserts { store, rows: 0, time: Duration::ZERO };
    let mut prune_time = Duration::ZERO;
    let mut longest_step = Duration::ZERO;
    let mut pruned = 0;
    for hour in 0..HOURS {
        inserts.report_hour(tenants, hour, first_hour + hour, 3)?;
        if hour % 24 != 23 {
            continue;
        }
        let before = inserts.store.hour_rows()?;
        let now_s = (first_hour + hour + 1) * HOUR_S;
        loop {
            let started = Instant::now();
            let more = inserts.store.prune(now_s)?;
            let step = started.elapsed();
            prune_time += step;
            longest_step = longest_step.max(step);
            if !more {
                break;
            }
        }
        pruned += before - inserts.store.hour_rows()?;
    }
    let Inserts { rows, time, .. } = inserts;
    print("rows of the month", &format!("{rows} of {tenants} tenants"));
    print("insert", &format!("{:.0} rows/s", per_s(rows, time)));
    print("pruned into days", &format!("{:.0} rows/s", per_s(pruned, prune_time)));
    print("  longest step, for which reports wait", &format!("{:.0} ms", ms(longest_step)));
    Ok(())
}

/// Reports the last hour again with newer counters, then single rows.
fn measure_updates(store: &mut Store, tenants: usize, hour: u64) -> anyhow::Result<()> {
    let mut inserts = Inserts { store, rows: 0, time: Duration::ZERO };
    for reads in 4..24 {
        inserts.report_hour(tenants, HOURS - 1, hour, reads)?;
    }
    let rate = per_s(inserts.rows, inserts.time);
    print("newer counters of existing rows", &format!("{rate:.0} rows/s"));
    let started = Instant::now();
    for reads in 0..200 {
        let report = report("vm-0", vec![row(0, hour, 100 + reads)?])?;
        inserts.store.commit(&[report], hour * HOUR_S)?;
    }
    let per_commit = ms(started.elapsed()) / 200.0;
    print("commit of one row, on disk", &format!("{per_commit:.2} ms"));
    Ok(())
}

/// Queries the month of all tenants, of the busiest tenant and of one with a single hour.
fn measure_queries(reader: &Store) -> anyhow::Result<()> {
    let month = Month::of(NOW);
    let span = month.start_s()..month.next().start_s();
    let started = Instant::now();
    let all = reader.sums_by_tenant(span.clone())?;
    print(&format!("month of all, {} tenants", all.len()), &elapsed(started));
    for (title, tenant) in [("a tenant of every hour", 0), ("a tenant of one hour", 999)] {
        let tenant = name(tenant)?;
        let started = Instant::now();
        for _ in 0..100 {
            reader.tenant_sums(&tenant, span.clone())?;
        }
        let per_query = ms(started.elapsed()) / 100.0;
        print(&format!("month of {title}"), &format!("{per_query:.2} ms"));
    }
    Ok(())
}

/// Opens the ledger as at the start of the orchestrator.
fn measure_start(path: &Path, now_s: u64) -> anyhow::Result<()> {
    let started = Instant::now();
    let store = Store::open(path, Arc::new(Everyone))?;
    print("open with integrity check", &elapsed(started));
    let started = Instant::now();
    let mut tally = Tally::default();
    for increase in store.recent_increases(now_s)? {
        tally.add(&increase);
    }
    print("tally rebuilt", &elapsed(started));
    Ok(())
}

/// A store with the number of rows reported to it and the time that took.
struct Inserts<'a> {
    store: &'a mut Store,
    rows: u64,
    time: Duration,
}

impl Inserts<'_> {
    /// Reports the `nth` hour of the month, as two workers of one gateway.
    fn report_hour(
        &mut self,
        tenants: usize,
        nth: u64,
        hour: u64,
        reads: u64,
    ) -> anyhow::Result<()> {
        let mut reports = Vec::new();
        for worker in 0..2 {
            let mut rows = Vec::new();
            for tenant in 0..tenants {
                if is_active(tenant, nth) && (worker == 0 || is_busy(tenant)) {
                    rows.push(row(tenant, hour, reads)?);
                }
            }
            self.rows += u64::try_from(rows.len())?;
            for rows in rows.chunks(ROWS_PER_REPORT) {
                reports.push(report(&format!("vm-{worker}"), rows.to_vec())?);
            }
        }
        let started = Instant::now();
        for batch in reports.chunks(REPORTS_PER_BATCH) {
            self.store.commit(batch, hour * HOUR_S)?;
        }
        self.time += started.elapsed();
        Ok(())
    }
}

/// Returns true if the tenant sends requests in the `nth` hour of the month.
fn is_active(tenant: usize, nth: u64) -> bool {
    let interval = match tenant % 1_000 {
        0 => return true,
        1..10 => HOURS / 100,
        10..100 => HOURS / 10,
        _ => HOURS,
    };
    // Spread over the hours: 7919 is prime.
    (nth + tenant as u64 * 7_919).is_multiple_of(interval)
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
    Ok(UsageRow {
        tenant: name(tenant)?,
        tier: TierName::parse("free")?,
        limits: Limits::default(),
        hour,
        counters,
    })
}

fn report(source: &str, rows: Vec<UsageRow>) -> anyhow::Result<ReceivedReport> {
    let gateway = GatewayId::parse("gw")?;
    Ok(UsageReport { gateway, source: source.to_owned(), sequence: 1, rows }.into())
}

fn name(n: usize) -> anyhow::Result<TenantId> {
    Ok(TenantId::parse(&format!("tenant-{n:07}"))?)
}

fn print(title: &str, figure: &str) {
    println!("{title:<44} {figure}");
}

fn elapsed(started: Instant) -> String {
    format!("{:.0} ms", ms(started.elapsed()))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

#[allow(clippy::cast_precision_loss, reason = "a figure for people")]
fn per_s(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}
