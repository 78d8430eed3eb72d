//! All tenants awake at once: the cost for Envoy and xDS. No host with this number of tenants runs
//! all of their SQs.
//!
//! The sleeping tenants' instance records are replaced by that of one running SQ. The orchestrator
//! then counts all of them as awake and sends Envoy a cluster for each.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::Value;

use super::figures::Figures;
use super::instance_record::{InstanceRecord, record_path};
use super::populated_host::PopulatedHost;
use super::population::{AWAKE_TENANT, AWAKE_TIER, tenant_name};
use super::{PATIENCE, idle, ms};
use harness::parts::orchestrator::metric_sum;
use harness::until;

/// Measures the push of all clusters, a wake after it, memory, and a restart with an Envoy that has
/// all clusters already.
pub(super) async fn measure(host: &PopulatedHost, figures: &mut Figures) -> Result<()> {
    let orchestrator = &host.stack.orchestrator;
    orchestrator.service().kill();
    let awake = mark_all_awake(host)?;
    orchestrator.start().await?;
    until(format!("{awake} tenants to be awake"), PATIENCE, || async {
        let states = host.tenants_by_state().await.ok()?;
        (states.get("awake").copied().unwrap_or(0) >= awake).then_some(())
    })
    .await?;

    let start = wait_for_xds_stream(host).await?;
    // This tenant's cluster is the last change: its lease is granted when Envoy has all clusters.
    host.leases.request(&host.last_tenant(), AWAKE_TIER).await?;
    figures.push_ms = ms(start.elapsed());
    figures.pushed = awake - host.population.awake;
    figures.all_rss_mb = idle::rss_mb(orchestrator.service().process()?.pid())?;
    figures.all_envoy_rss_mb = idle::rss_mb(host.stack.envoy.pid()?)?;

    let start = Instant::now();
    orchestrator.service().kill();
    orchestrator.start().await?;
    figures.all_restart_ms = ms(start.elapsed());
    host.leases.request_until_granted(AWAKE_TENANT, AWAKE_TIER).await?;
    figures.all_serving_ms = ms(start.elapsed());
    Ok(())
}

/// Gives the sleeping tenants, except the last, the instance record of an awake tenant. Returns the
/// number of tenants that are awake then.
fn mark_all_awake(host: &PopulatedHost) -> Result<usize> {
    let dir = &host.stack.dir;
    let read = |tenant: &str| -> Result<Value> {
        Ok(serde_json::from_slice(&fs::read(record_path(dir, tenant))?)?)
    };
    let running = read(AWAKE_TENANT)?;
    let record = InstanceRecord::from_json(&running).context("the record lacks a field")?;
    let mut awake = host.population.awake;
    for number in host.population.sleeping_numbers() {
        let tenant = tenant_name(number);
        // A tenant that was woken before has a running SQ and a record of this boot.
        if read(&tenant)?["boot"] == running["boot"] {
            continue;
        }
        record.write(dir, &tenant)?;
        awake += 1;
    }
    Ok(awake)
}

/// Waits until Envoy has opened its xDS stream. Returns the time of its opening.
async fn wait_for_xds_stream(host: &PopulatedHost) -> Result<Instant> {
    until("Envoy's xDS stream", PATIENCE, || async {
        let text = host.stack.orchestrator.metrics().get("/metrics").await.ok()?.text();
        (metric_sum(&text, "sq_orchestrator_xds_streams") > 0.0).then(Instant::now)
    })
    .await
}
