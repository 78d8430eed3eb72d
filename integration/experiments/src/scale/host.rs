//! A stack with its tenants: registered, on disk, in the ledger, awake, dozing and asleep.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use protocol::key::{KEY_HEX_DIGITS, KEY_PREFIX};
use protocol::{KeepAwake, KeyHash, Limits};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::leases::Leases;
use super::{PATIENCE, rest};
use harness::host::tools;
use harness::host::tools::SQ_VERSION;
use harness::{Lifecycle, Listen, Registry, Runtime, Stack, until};

/// The tier of tenants that are never paused.
pub const AWAKE: &str = "awake";
/// The tier of all others: paused a second after their last lease.
pub const IDLE: &str = "idle";
/// What each tenant's phext says.
pub const TEXT: &str = "as it was written";
/// Leases so short that a tenant dozes soon after each sample.
const LEASE_MS: u64 = 400;
/// As short as the leases: nothing is under way longer than a local request.
const GRACE_MS: u64 = 400;
/// The bulk of the wakes waits in the queue longer than a client would.
const PATIENCE_MS: u64 = 100_000;
/// Askers at once while the host is populated.
const ASKERS: usize = 8;
/// Scrolls per section of the registry: phext coordinates end at 999.
const SCROLLS: usize = 900;
/// Wakes for each figure, as far as there are tenants asleep: of a hundred the 99th percentile would
/// be the slowest one.
const SAMPLES: usize = 1_000;
/// Dozing tenants are woken so often at least, some of them more than once.
const DOZES_MIN: usize = 100;
/// Days of the ledger that are still kept by the hour, less the present one.
const LEDGER_DAYS: u64 = 13;
/// Hours of each such day in which a tenant was used.
const LEDGER_HOURS: u64 = 2;
/// Rows of a report: as many as a busy Envoy sends, so that memory is that of daily use.
const LEDGER_ROWS: usize = 1_000;

/// How many tenants, and how they are.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// All.
    pub tenants: usize,
    /// The first so many are awake.
    pub awake: usize,
    /// The next so many doze; the rest sleeps.
    pub dozing: usize,
}

impl Shape {
    /// 2 % awake, 10 % dozing.
    pub fn of(tenants: usize) -> Result<Self> {
        ensure!((100..=50_000).contains(&tenants), "from 100 to 50,000 tenants can be measured");
        Ok(Self { tenants, awake: tenants / 50, dozing: tenants / 10 })
    }

    /// Those that sleep.
    pub fn asleep(self) -> usize {
        self.tenants - self.awake - self.dozing
    }
}

/// A populated stack.
pub struct Host {
    /// The parts.
    pub stack: Stack,
    /// How many tenants.
    pub shape: Shape,
    /// Its lease API.
    pub leases: Leases,
    /// What populating took.
    pub took: Duration,
    /// SQs started per second meanwhile.
    pub starts_per_s: f64,
    _dir: TempDir,
}

/// A tenant's name.
pub fn name(number: usize) -> String {
    format!("t{number:05}")
}

/// A tenant's key.
pub fn key(tenant: &str) -> Result<String> {
    let number: u64 = tenant.trim_start_matches('t').parse()?;
    Ok(format!("{KEY_PREFIX}{number:0KEY_HEX_DIGITS$x}"))
}

/// The limits of a tier, as its text in the registry says.
pub fn limits(tier: &str) -> Limits {
    let keep = if tier == AWAKE { KeepAwake::Awake } else { KeepAwake::Sleep };
    let doze_after_s = (tier == IDLE).then_some(1);
    Limits { keep, doze_after_s, wakes_per_hour: 0, ..Limits::default() }
}

impl Host {
    /// Starts the stack and brings every tenant to where it belongs.
    pub async fn start(shape: Shape) -> Result<Self> {
        let began = Instant::now();
        let dir = tempfile::Builder::new().prefix("sq-gateway-").tempdir()?;
        let path = dir.path().canonicalize()?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        let registry =
            Registry::new(tools::workspace_binary("relay")?, path.join("registry.phext"));
        fs::write(registry.file(), registry_text(shape)?)?;
        for number in 0..shape.tenants {
            lay(&path, &name(number), number >= shape.awake + shape.dozing)?;
        }
        let lifecycle = Lifecycle::default()
            .duration_ms("lease", LEASE_MS)
            .duration_ms("grace", GRACE_MS)
            .duration_ms("patience", PATIENCE_MS);
        let stack = Stack::builder()
            .runtime(Runtime::Process)
            .sq(SQ_VERSION)
            .lifecycle(lifecycle)
            .start_in(&path, Listen::free()?, registry, BTreeMap::new())
            .await?;
        let leases = Leases::new(&stack)?;
        let mut host =
            Self { stack, shape, leases, took: began.elapsed(), starts_per_s: 0.0, _dir: dir };
        let filled = host.fill().await;
        filled.with_context(|| host.stack.log_tails())?;
        host.took = began.elapsed();
        Ok(host)
    }

    async fn fill(&mut self) -> Result<()> {
        self.fill_ledger().await?;
        let start = Instant::now();
        let mut wakes = JoinSet::new();
        let number = self.shape.awake + self.shape.dozing;
        for (number, tier) in (0..number).map(|n| (n, self.tier(n))) {
            let leases = self.leases.clone();
            wakes.spawn(async move { leases.ask(&name(number), tier).await });
            if wakes.len() >= ASKERS {
                wakes.join_next().await.context("no wake")???;
            }
        }
        while let Some(woken) = wakes.join_next().await {
            woken??;
        }
        #[allow(clippy::cast_precision_loss)] // thousands
        let count = number as f64;
        self.starts_per_s = count / start.elapsed().as_secs_f64();
        self.until_dozing().await
    }

    /// Two hours of each day of a fortnight, of every tenant.
    async fn fill_ledger(&self) -> Result<()> {
        let now_s = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
        let mut rows = Vec::with_capacity(LEDGER_ROWS);
        let mut sequence = 0;
        for (day, hour) in (1..=LEDGER_DAYS).flat_map(|d| (0..LEDGER_HOURS).map(move |h| (d, h))) {
            for number in 0..self.shape.tenants {
                rows.push(json!({
                    "tenant": name(number), "tier": IDLE, "limits": {},
                    "hour": now_s / 3_600 - 24 * day - hour,
                    "counters": {"reads": 100, "status": [0, 0, 100, 0, 0, 0]},
                }));
                if rows.len() == LEDGER_ROWS {
                    sequence += 1;
                    self.leases.report(sequence, std::mem::take(&mut rows)).await?;
                }
            }
        }
        self.leases.report(sequence + 1, rows).await
    }

    fn tier(&self, number: usize) -> &'static str {
        if number < self.shape.awake { AWAKE } else { IDLE }
    }

    /// Some tenant that is awake.
    pub fn awake(&self) -> &'static str {
        "t00000"
    }

    /// Tenants that doze when nobody uses them.
    pub fn dozing(&self) -> impl Iterator<Item = String> {
        (self.shape.awake..self.shape.awake + self.shape.dozing).map(name)
    }

    /// Tenants that sleep until they are first used.
    pub fn asleep(&self) -> impl Iterator<Item = String> {
        (self.shape.awake + self.shape.dozing..self.shape.tenants - 1).map(name)
    }

    /// A tenant that nothing wakes but the last measurement.
    pub fn last(&self) -> String {
        name(self.shape.tenants - 1)
    }

    /// How many wakes of dozing ones are for each kind of sample.
    pub fn dozes(&self) -> usize {
        self.shape.dozing.clamp(DOZES_MIN, SAMPLES)
    }

    /// How many of the sleeping ones are for each kind of sample; the rest goes on sleeping.
    pub fn samples(&self) -> usize {
        SAMPLES.min(self.shape.asleep() / 3)
    }

    /// Waits until everyone dozes who was woken and does not belong awake.
    pub async fn until_dozing(&self) -> Result<()> {
        let Shape { tenants, awake, dozing } = self.shape;
        until("everyone to doze who is not in use", PATIENCE, || async {
            let state = rest::tenants_by_state(self).await.ok()?;
            let of = |name| state.get(name).copied().unwrap_or(0);
            let rest = of("awake") == awake && of("dozing") >= dozing;
            (rest && of("awake") + of("dozing") + of("asleep") == tenants).then_some(())
        })
        .await
    }
}

fn registry_text(shape: Shape) -> Result<String> {
    let free = "requests-per-day: unlimited\n  requests-per-month: unlimited\n  \
                writes-per-day: unlimited\n  wakes-per-hour: unlimited\n";
    let mut text = format!(
        "tiers\n\ntier: {AWAKE}\n  keep: awake\n  {free}\ntier: {IDLE}\n  doze-after: 1 s\n  {free}"
    );
    for number in 0..shape.tenants {
        let tenant = name(number);
        let hash = KeyHash::of(key(&tenant)?.as_bytes());
        let tier = if number < shape.awake { AWAKE } else { IDLE };
        // A scroll break, or a section break where the scrolls of a section are used up.
        text.push(if number % SCROLLS == SCROLLS - 1 { '\u{18}' } else { '\u{17}' });
        writeln!(text, "tenant: {tenant}\nkey-sha256: {hash}\ntier: {tier}")?;
    }
    Ok(text)
}

/// A boot of the host that is over, and with it every lease.
const BOOT: &str = "another-boot";

/// A tenant's folder with its phext; of one that sleeps the record of an instance, too.
fn lay(dir: &Path, tenant: &str, asleep: bool) -> Result<()> {
    let folder = dir.join("data").join(tenant);
    fs::DirBuilder::new().recursive(true).mode(0o755).create(dir.join("data"))?;
    fs::DirBuilder::new().mode(0o700).create(&folder)?;
    fs::write(folder.join("home.phext"), TEXT)?;
    if asleep {
        record(dir, tenant, &instance(1, 1, BOOT, 1, &"0".repeat(32)))?;
    }
    Ok(())
}

/// What tells a process of the orchestrator's process runtime.
pub fn instance(pid: u64, start_ticks: u64, boot: &str, port: u64, key: &str) -> Value {
    json!({"pid": pid, "start_ticks": start_ticks, "boot": boot, "port": port, "key": key})
}

/// Writes the record of an instance as the process runtime leaves it.
pub fn record(dir: &Path, tenant: &str, instance: &Value) -> Result<()> {
    let folder = dir.join("state/process");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    let mut record = instance.clone();
    record["tenant"] = json!(tenant);
    record["tier"] = json!(AWAKE);
    record["limits"] = serde_json::to_value(limits(AWAKE))?;
    record["sq_version"] = json!(SQ_VERSION);
    Ok(fs::write(folder.join(format!("{tenant}.json")), serde_json::to_vec(&record)?)?)
}
