//! CPU and memory of the host's parts while there are no requests.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::figures::Figures;
use super::populated_host::PopulatedHost;
use crate::bench::cpu;

/// Duration of the measurement.
const MEASURED: Duration = Duration::from_secs(12);
/// `USER_HZ`, the unit of CPU times in `/proc`: 100 on every Linux that Rust runs on.
const TICKS_PER_S: f64 = 100.0;
/// Wait until leases have ended and the last copies are taken: longer than the vault's quiet time
/// and its window.
const SETTLE: Duration = Duration::from_secs(8);

/// Reads the CPU time of a process, ended threads included, from `/proc/<pid>/stat`.
fn cpu_s(pid: i32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = text.rsplit_once(')').context("/proc/<pid>/stat has no name")?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut next_field = || {
        let field = fields.next().context("/proc/<pid>/stat has too few fields")?;
        anyhow::Ok(field.parse::<f64>()?)
    };
    let user = next_field()?;
    let system = next_field()?;
    Ok((user + system) / TICKS_PER_S)
}

/// Reads the resident memory of a process in MB.
pub(super) fn rss_mb(pid: i32) -> Result<f64> {
    #[allow(clippy::cast_precision_loss)] // far below 2^52
    Ok(cpu::rss_kib(pid)? as f64 * 1_024.0 / 1e6)
}

/// Measures CPU and memory of the orchestrator and of Envoy.
pub(super) async fn measure(host: &PopulatedHost, figures: &mut Figures) -> Result<()> {
    let orchestrator = host.stack.orchestrator.service().process()?.pid();
    let envoy = host.stack.envoy.pid()?;
    tokio::time::sleep(SETTLE).await;
    let orchestrator_before = cpu_s(orchestrator)?;
    let envoy_before = cpu_s(envoy)?;
    let start = Instant::now();
    tokio::time::sleep(MEASURED).await;
    let percent_per_s = 100.0 / start.elapsed().as_secs_f64();
    figures.cpu_percent = (cpu_s(orchestrator)? - orchestrator_before) * percent_per_s;
    figures.envoy_cpu_percent = (cpu_s(envoy)? - envoy_before) * percent_per_s;
    figures.rss_mb = rss_mb(orchestrator)?;
    figures.envoy_rss_mb = rss_mb(envoy)?;
    Ok(())
}
