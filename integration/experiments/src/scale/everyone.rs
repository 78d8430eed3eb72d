//! Everyone awake at once, which no host with so many tenants does: what Envoy and xDS would cost.
//!
//! The sleeping tenants' records are replaced by that of one running SQ, so that the orchestrator
//! takes all of them for awake and tells Envoy a cluster for each.

use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::Value;

use super::figures::Figures;
use super::host::{self, Host};
use super::{PATIENCE, ms, rest};
use harness::parts::orchestrator::metric_sum;

/// Measures the push of all clusters, a wake behind it, memory, and a restart without news.
pub async fn measure(host: &Host, figures: &mut Figures) -> Result<()> {
    let dir = &host.stack.dir;
    let orchestrator = &host.stack.orchestrator;
    orchestrator.service().kill();
    let path = dir.join("state/process").join(format!("{}.json", host.awake()));
    let found: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    let number = |name: &str| found[name].as_u64().with_context(|| format!("no {name}"));
    let text = |name: &str| found[name].as_str().with_context(|| format!("no {name}"));
    let (pid, ticks, port) = (number("pid")?, number("start_ticks")?, number("port")?);
    let instance = host::instance(pid, ticks, text("boot")?, port, text("key")?);
    let mut awake = host.shape.awake;
    for number in host.shape.awake + host.shape.dozing..host.shape.tenants - 1 {
        let tenant = host::name(number);
        let path = dir.join("state/process").join(format!("{tenant}.json"));
        let old: Value = serde_json::from_slice(&std::fs::read(path)?)?;
        // Woken by a sample: it has an SQ of its own.
        if old["boot"] == found["boot"] {
            continue;
        }
        host::record(dir, &tenant, &instance)?;
        awake += 1;
    }
    orchestrator.start().await?;
    let all = || async {
        let state = rest::tenants_by_state(host).await.ok()?;
        (state.get("awake").copied().unwrap_or(0) >= awake).then_some(())
    };
    harness::until(format!("{awake} tenants awake"), PATIENCE, all).await?;
    let start = connected(host).await?;
    // Its cluster is the last change: the lease is given when Envoy has all of them.
    host.leases.ask(&host.last(), host::AWAKE).await?;
    figures.push_ms = ms(start.elapsed());
    figures.pushed = awake - host.shape.awake;
    figures.all_rss_mb = rest::rss_mb(orchestrator.service().process()?.pid())?;
    figures.all_envoy_rss_mb = rest::rss_mb(host.stack.envoy.pid()?)?;
    let start = Instant::now();
    orchestrator.service().kill();
    orchestrator.start().await?;
    figures.all_restart_ms = ms(start.elapsed());
    host.leases.granted(host.awake(), host::AWAKE).await?;
    figures.all_serving_ms = ms(start.elapsed());
    Ok(())
}

/// When Envoy has opened its stream.
async fn connected(host: &Host) -> Result<Instant> {
    harness::until("Envoy's stream", PATIENCE, || async {
        let text = host.stack.orchestrator.admin().get("/metrics").await.ok()?.text();
        (metric_sum(&text, "sq_orchestrator_xds_streams") > 0.0).then(Instant::now)
    })
    .await
}
