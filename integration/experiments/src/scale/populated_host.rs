//! A stack whose tenants are registered, on disk and in the ledger, and are awake, dozing or
//! asleep.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use protocol::KeyHash;
use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::PATIENCE;
use super::instance_record::InstanceRecord;
use super::lease_client::LeaseClient;
use super::population::{AWAKE_TIER, IDLE_TIER, Population, tenant_key, tenant_name};
use harness::host::tools;
use harness::host::tools::SQ_VERSION;
use harness::{Lifecycle, Listen, Registry, Runtime, Stack, until};

/// The text in each tenant's phext.
pub(super) const TEXT: &str = "as it was written";
/// Leases so short that a tenant dozes soon after each sample.
const LEASE_MS: u64 = 400;
/// Grace of leases, equally short: no local request takes longer.
const GRACE_MS: u64 = 400;
/// Most of the first wakes wait in the queue for longer than a client would.
const PATIENCE_MS: u64 = 100_000;
/// Concurrent lease requests while the host is populated.
const CONCURRENT_WAKES: usize = 8;
/// Scrolls per section of the registry: the numbers of a coordinate end at 999.
const SCROLLS: usize = 900;
/// Wakes for each figure, if there are enough sleeping tenants. Of a hundred samples, the 99th
/// percentile would be the slowest one.
const SAMPLES: usize = 1_000;
/// Least number of wakes of dozing tenants; some tenants are woken more than once.
const MIN_DOZE_SAMPLES: usize = 100;
/// Past days for which the ledger has hourly rows.
const LEDGER_DAYS: u64 = 13;
/// Hours of each such day in which a tenant was active.
const LEDGER_HOURS: u64 = 2;
/// Rows of a report: as many as from a busy Envoy, so that memory use is realistic.
const LEDGER_ROWS: usize = 1_000;

/// A running stack with its population.
pub(super) struct PopulatedHost {
    /// The real parts.
    pub(super) stack: Stack,
    /// The number of tenants in each state.
    pub(super) population: Population,
    /// A client of the stack's lease API.
    pub(super) leases: LeaseClient,
    /// Time that populating the host took.
    pub(super) populating: Duration,
    /// SQs started per second in that time.
    pub(super) starts_per_s: f64,
    _dir: TempDir,
}

impl PopulatedHost {
    /// Starts the stack and brings every tenant to its state.
    pub(super) async fn start(population: Population) -> Result<Self> {
        let started = Instant::now();
        let dir = tempfile::Builder::new().prefix("sq-gateway-").tempdir()?;
        let path = dir.path().canonicalize()?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        let registry =
            Registry::new(tools::workspace_binary("relay")?, path.join("registry.phext"));
        fs::write(registry.file(), registry_text(population)?)?;
        for number in 0..population.tenants {
            create_tenant_files(&path, population, number)?;
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
        let leases = LeaseClient::new(&stack);
        let mut host = Self {
            stack,
            population,
            leases,
            populating: Duration::ZERO,
            starts_per_s: 0.0,
            _dir: dir,
        };
        host.populate().await.with_context(|| host.stack.log_tails())?;
        host.populating = started.elapsed();
        Ok(host)
    }

    /// Fills the ledger and starts the tenants that are awake or doze.
    async fn populate(&mut self) -> Result<()> {
        self.fill_ledger().await?;
        let start = Instant::now();
        let mut wakes = JoinSet::new();
        let running = self.population.running();
        for number in 0..running {
            let leases = self.leases.clone();
            let tier = self.population.tier(number);
            wakes.spawn(async move { leases.request(&tenant_name(number), tier).await });
            if wakes.len() >= CONCURRENT_WAKES {
                wakes.join_next().await.context("no wake in progress")???;
            }
        }
        while let Some(woken) = wakes.join_next().await {
            woken??;
        }
        #[allow(clippy::cast_precision_loss)] // thousands
        let starts = running as f64;
        self.starts_per_s = starts / start.elapsed().as_secs_f64();
        self.wait_until_dozing().await
    }

    /// Reports two hours of usage on each of the past days for every tenant.
    async fn fill_ledger(&self) -> Result<()> {
        let this_hour = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() / 3_600;
        let mut rows = Vec::with_capacity(LEDGER_ROWS);
        let mut sequence = 0;
        for (day, hour) in (1..=LEDGER_DAYS).flat_map(|d| (0..LEDGER_HOURS).map(move |h| (d, h))) {
            for number in 0..self.population.tenants {
                rows.push(json!({
                    "tenant": tenant_name(number), "tier": IDLE_TIER, "limits": {},
                    "hour": this_hour - 24 * day - hour,
                    "counters": {"reads": 100, "status": [0, 0, 100, 0, 0, 0]},
                }));
                if rows.len() == LEDGER_ROWS {
                    sequence += 1;
                    self.leases.report_usage(sequence, std::mem::take(&mut rows)).await?;
                }
            }
        }
        self.leases.report_usage(sequence + 1, rows).await
    }

    /// Returns the names of the tenants that doze between requests.
    pub(super) fn dozing_tenants(&self) -> Vec<String> {
        (self.population.awake..self.population.running()).map(tenant_name).collect()
    }

    /// Returns the names of the tenants that sleep until their first request.
    pub(super) fn sleeping_tenants(&self) -> impl Iterator<Item = String> + use<> {
        self.population.sleeping_numbers().map(tenant_name)
    }

    /// Returns the name of the tenant that only the last measurement wakes.
    pub(super) fn last_tenant(&self) -> String {
        tenant_name(self.population.tenants - 1)
    }

    /// Returns the number of samples for wakes from a doze.
    pub(super) fn doze_samples(&self) -> usize {
        self.population.dozing.clamp(MIN_DOZE_SAMPLES, SAMPLES)
    }

    /// Returns the number of samples for starts. Most sleeping tenants stay asleep.
    pub(super) fn start_samples(&self) -> usize {
        SAMPLES.min(self.population.asleep() / 3)
    }

    /// Reads the number of tenants in each state from the orchestrator's metrics.
    pub(super) async fn tenants_by_state(&self) -> Result<BTreeMap<String, usize>> {
        let text = self.stack.orchestrator.metrics().get("/metrics").await?.text();
        let lines = text.lines().filter_map(|line| {
            let (state, count) =
                line.strip_prefix("sq_orchestrator_tenants{kind=\"")?.split_once("\"} ")?;
            Some((state.to_owned(), count.parse().ok()?))
        });
        Ok(lines.collect())
    }

    /// Waits until every tenant dozes that was woken and does not stay awake.
    pub(super) async fn wait_until_dozing(&self) -> Result<()> {
        let Population { tenants, awake, dozing } = self.population;
        until("all idle tenants to doze", PATIENCE, || async {
            let states = self.tenants_by_state().await.ok()?;
            let count = |state| states.get(state).copied().unwrap_or(0);
            let is_idle = count("awake") == awake && count("dozing") >= dozing;
            let sum = count("awake") + count("dozing") + count("asleep");
            (is_idle && sum == tenants).then_some(())
        })
        .await
    }
}

fn registry_text(population: Population) -> Result<String> {
    let unlimited = "requests-per-day: unlimited\n  requests-per-month: unlimited\n  \
                     writes-per-day: unlimited\n  wakes-per-hour: unlimited\n";
    let mut text = format!(
        "tiers\n\ntier: {AWAKE_TIER}\n  keep: awake\n  {unlimited}\n\
         tier: {IDLE_TIER}\n  doze-after: 1 s\n  {unlimited}"
    );
    for number in 0..population.tenants {
        let tenant = tenant_name(number);
        let hash = KeyHash::of(tenant_key(&tenant)?.as_bytes());
        let tier = population.tier(number);
        // A scroll break, or a section break after the last scroll of a section.
        text.push(if number % SCROLLS == SCROLLS - 1 { '\u{18}' } else { '\u{17}' });
        writeln!(text, "tenant: {tenant}\nkey-sha256: {hash}\ntier: {tier}")?;
    }
    Ok(text)
}

/// Creates a tenant's folder with its phext. A sleeping tenant also gets an instance record, from
/// which the orchestrator knows it: the record is of an earlier boot, so that a restart processes
/// it.
fn create_tenant_files(dir: &Path, population: Population, number: usize) -> Result<()> {
    let tenant = tenant_name(number);
    let data = dir.join("data");
    let folder = data.join(&tenant);
    fs::DirBuilder::new().recursive(true).mode(0o755).create(data)?;
    fs::DirBuilder::new().mode(0o700).create(&folder)?;
    fs::write(folder.join("home.phext"), TEXT)?;
    if number >= population.running() {
        InstanceRecord::of_earlier_boot().write(dir, &tenant)?;
    }
    Ok(())
}
