//! Measures the cost of limits and metering: `cargo run --release -p gate --example limits_bench`.
//!
//! Native, with the shared data in memory, so it measures the decisions alone. A hostcall costs about
//! 1 µs on top; hostcalls are counted.

use std::cell::Cell;
use std::hint::black_box;
use std::rc::Rc;
use std::time::Instant;

use gate::http::request::Coordinate;
use gate::limits::quota;
use gate::limits::rate::Buckets;
use gate::limits::storage::{self, Change, Measurement, StorageRequest};
use gate::limits::usage::{Class, Fate, Served, Since, Usage};
use gate::shared::{Changed, Local, Shared};
use protocol::tenant::MalformedName;
use protocol::time::SECOND_NS;
use protocol::{GatewayId, Limits, TenantId, TenantNotice, TenantStatus, TierName, Verdict};

const START_NS: u64 = 1_800_000_000_000_000_000;
const START_MS: u64 = START_NS / 1_000_000;
const REQUESTS: u64 = 2_000_000;
const TENANTS: usize = 10_000;

/// The host's shared data in memory; counts hostcalls.
#[derive(Default)]
struct Host {
    map: Local,
    calls: Cell<u64>,
}

impl Shared for Host {
    fn get(&self, key: &str) -> Option<(Vec<u8>, u32)> {
        self.calls.set(self.calls.get() + 1);
        self.map.get(key)
    }

    fn now_ns(&self) -> u64 {
        self.calls.set(self.calls.get() + 1);
        0
    }

    fn set(&mut self, key: &str, value: &[u8], version: Option<u32>) -> Result<(), Changed> {
        self.calls.set(self.calls.get() + 1);
        self.map.set(key, value, version)
    }
}

fn main() -> Result<(), MalformedName> {
    let served = Served {
        fate: Fate::Forwarded(Class::Read),
        status: 200,
        bytes_in: 40,
        bytes_out: 900,
        service_us: 2_000,
    };
    let tenant = TenantId::parse("alice")?;
    let verdict = verdict(&tenant)?;
    let gateway = GatewayId::parse("gw")?;
    for (rate, burst) in [(20, 50), (200, 500), (20_000, 20_000)] {
        rates(&tenant, rate, burst);
    }

    let limits = Limits::default();
    let mut usage = Usage::new(gateway.clone(), "vm".to_owned());
    let notice = TenantNotice { requests_day: 5, day_ends_s: u64::MAX, ..TenantNotice::default() };
    let record = ns_per_call(|_| {
        black_box(usage.record(&verdict, &served, 1_800_000_000));
    });
    print_ns("usage: record", record);
    // All but one are acknowledged and the quotas are far, as for nearly every request.
    if let Some(report) = usage.flush(1_800_000_000) {
        usage.acked(report.sequence);
    }
    black_box(usage.record(&verdict, &served, 1_800_000_000));
    print_ns(
        "quota: delta and check",
        ns_per_call(|_| {
            let delta = usage.delta(&tenant, Since::Acked, 1_800_000_000);
            drop(black_box(quota::check(&notice, &limits, &delta, Class::Read, 1_800_000_000)));
        }),
    );
    let mut host = Host::default();
    let measurement = Measurement { notice: &notice, measured_ms: START_MS };
    let change = Change::Replace { at: Coordinate::ROOT, growth: 100 };
    let request = StorageRequest { tenant: &tenant, limits: &limits, phext: "notes", change };
    print_ns(
        "storage: a write admitted and completed (4 hostcalls)",
        ns_per_call(|_| {
            let passed = storage::admit(&request, measurement, START_MS, &mut host);
            if let Ok(Some(written)) = black_box(passed) {
                storage::completed(&tenant, "notes", &written, START_MS, &mut host);
            }
        }),
    );
    memory(&gateway, &served)
}

fn verdict(tenant: &TenantId) -> Result<Rc<Verdict>, MalformedName> {
    Ok(Rc::new(Verdict {
        tenant: tenant.clone(),
        tier: TierName::parse("free")?,
        status: TenantStatus::Active,
        expires_s: None,
        limits: Limits::default(),
    }))
}

/// Measures a VM at 90 % of a rate.
fn rates(tenant: &TenantId, rate: u32, burst: u32) {
    let limits = Limits { requests_per_s: rate, burst, ..Limits::default() };
    let mut buckets = Buckets::new(16);
    let mut host = Host::default();
    let step_ns = SECOND_NS * 10 / 9 / u64::from(rate);
    let ns = ns_per_call(|n| {
        let rate = buckets.take(tenant, &limits, 1, START_NS + n * step_ns, &mut host);
        black_box(rate.header());
    });
    let calls = 1_000 * host.calls.get() / REQUESTS;
    let what = format!("bucket: take and header at {rate}/s, burst {burst}");
    println!("{what:<52} {ns:>7} ns, 0.{calls:03} hostcalls per request");
}

fn memory(gateway: &GatewayId, served: &Served) -> Result<(), MalformedName> {
    let names = (0..TENANTS)
        .map(|n| TenantId::parse(&format!("tenant-{n:07}")))
        .collect::<Result<Vec<_>, _>>()?;
    let limits = Limits::default();
    let mut buckets = Buckets::new(TENANTS);
    let mut map = Local::default();
    let mut usage = Usage::new(gateway.clone(), "vm".to_owned());
    // Create the shared records first: they are the host's memory, not the VM's.
    for name in &names {
        let _ = Buckets::new(1).take(name, &limits, 1, START_NS, &mut map);
    }
    // Verdicts are cached in any case.
    let verdicts = names.iter().map(verdict).collect::<Result<Vec<_>, _>>()?;
    let before = resident_bytes();
    for name in &names {
        let _ = buckets.take(name, &limits, 1, START_NS, &mut map);
    }
    let between = resident_bytes();
    for verdict in &verdicts {
        usage.record(verdict, served, 1_800_000_000);
    }
    let after = resident_bytes();
    println!(
        "{:<52} {:>7} bytes",
        "bucket: per active tenant and VM",
        between.saturating_sub(before) / TENANTS
    );
    println!(
        "{:<52} {:>7} bytes",
        "usage: per active tenant and VM",
        after.saturating_sub(between) / TENANTS
    );
    Ok(())
}

/// Resident memory of this process in bytes; 0 without /proc.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    pages.unwrap_or(0_usize) * 4_096
}

/// Mean nanoseconds of one call.
fn ns_per_call(mut call: impl FnMut(u64)) -> u64 {
    let started = Instant::now();
    for n in 0..REQUESTS {
        call(n);
    }
    u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX) / REQUESTS
}

fn print_ns(what: &str, ns: u64) {
    println!("{what:<52} {ns:>7} ns");
}
