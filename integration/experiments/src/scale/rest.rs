//! What the host costs while nobody asks for anything.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::figures::Figures;
use super::host::Host;
use crate::bench::cpu;

/// How long the host is watched.
const WATCHED: Duration = Duration::from_secs(12);
/// `USER_HZ`, the unit of CPU times in `/proc`: 100 on every Linux that Rust runs on.
const TICKS_PER_S: f64 = 100.0;
/// Leases end and the last copies are taken before the host counts as resting: longer than the
/// vault's quiet time and its window.
const SETTLES: Duration = Duration::from_secs(8);

/// CPU time of a process, ended threads included, from `/proc/<pid>/stat`.
pub fn cpu_s(pid: i32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = text.rsplit_once(')').context("an odd stat")?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut next = || anyhow::Ok(fields.next().context("a short stat")?.parse::<f64>()?);
    Ok((next()? + next()?) / TICKS_PER_S)
}

/// Resident memory in MB.
pub fn rss_mb(pid: i32) -> Result<f64> {
    #[allow(clippy::cast_precision_loss)] // far below 2^52
    Ok(cpu::rss_kib(pid)? as f64 * 1_024.0 / 1e6)
}

/// Takes CPU and memory of orchestrator and Envoy.
pub async fn measure(host: &Host, figures: &mut Figures) -> Result<()> {
    let orchestrator = host.stack.orchestrator.service().process()?.pid();
    let envoy = host.stack.envoy.pid()?;
    tokio::time::sleep(SETTLES).await;
    let before = (cpu_s(orchestrator)?, cpu_s(envoy)?);
    let start = Instant::now();
    tokio::time::sleep(WATCHED).await;
    let per_s = 100.0 / start.elapsed().as_secs_f64();
    figures.cpu_percent = (cpu_s(orchestrator)? - before.0) * per_s;
    figures.envoy_cpu_percent = (cpu_s(envoy)? - before.1) * per_s;
    figures.rss_mb = rss_mb(orchestrator)?;
    figures.envoy_rss_mb = rss_mb(envoy)?;
    Ok(())
}

/// How many tenants are in each state.
pub async fn tenants_by_state(host: &Host) -> Result<BTreeMap<String, usize>> {
    let text = host.stack.orchestrator.admin().get("/metrics").await?.text();
    let lines = text.lines().filter_map(|line| {
        let (state, count) =
            line.strip_prefix("sq_orchestrator_tenants{kind=\"")?.split_once("\"} ")?;
        Some((state.to_owned(), count.parse().ok()?))
    });
    Ok(lines.collect())
}
