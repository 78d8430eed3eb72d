//! A client of the orchestrator's gate API that sends the filter's requests.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hyper::Method;
use protocol::headers::{LEASE_PATH, USAGE_PATH};
use protocol::{LeaseResponse, WakeKind};
use serde_json::{Value, json};

use super::population::{IDLE_TIER, limits};
use harness::parts::orchestrator::metric_sum;
use harness::{Client, Response, Stack, until};

/// The `node.id` of Envoy's bootstrap.
const GATEWAY: &str = "gateway-1";
/// Longest wait until a restarted orchestrator and Envoy are connected again.
const PATIENCE: Duration = Duration::from_secs(30);

/// Requests leases and reports usage. Clones share their connections.
#[derive(Clone)]
pub(super) struct LeaseClient {
    gate: Client,
    metrics: Client,
}

/// The duration of one wake.
#[derive(Debug, Clone, Copy)]
pub(super) struct WakeTiming {
    /// Time from the lease request to its response.
    pub(super) total: Duration,
    /// The part of the time that was spent in the runtime.
    pub(super) runtime: Duration,
}

impl LeaseClient {
    /// Creates a client of a stack's orchestrator.
    pub(super) fn new(stack: &Stack) -> Self {
        let Stack { orchestrator, .. } = stack;
        Self { gate: orchestrator.gate(), metrics: orchestrator.metrics().clone() }
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Response> {
        let json = [("content-type", "application/json")];
        self.gate.send(Method::POST, path, &json, body.to_string().into()).await?.expect_ok()
    }

    /// Requests a lease. Fails unless it is granted.
    pub(super) async fn request(&self, tenant: &str, tier: &str) -> Result<LeaseResponse> {
        let body = json!({
            "gateway": GATEWAY, "tenant": tenant, "tier": tier, "limits": limits(tier),
        });
        let response = self.post(LEASE_PATH, &body).await?;
        Ok(serde_json::from_slice(&response.body)?)
    }

    /// Repeats the request until the lease is granted.
    pub(super) async fn request_until_granted(&self, tenant: &str, tier: &str) -> Result<()> {
        until(format!("a lease on {tenant}"), PATIENCE, || async {
            self.request(tenant, tier).await.ok().map(drop)
        })
        .await
    }

    /// Wakes one tenant while no other is woken: the increase of the orchestrator's sum of runtime
    /// calls is then the runtime's part.
    pub(super) async fn wake(&self, tenant: &str, expected: WakeKind) -> Result<WakeTiming> {
        let before = self.runtime_sum().await?;
        let start = Instant::now();
        let response = self.request(tenant, IDLE_TIER).await?;
        let total = start.elapsed();
        let wake = response.wake;
        ensure!(wake == expected, "{tenant}: the wake is {wake:?}, expected {expected:?}");
        Ok(WakeTiming { total, runtime: self.runtime_sum().await?.saturating_sub(before) })
    }

    async fn runtime_sum(&self) -> Result<Duration> {
        let text = self.metrics.get("/metrics").await?.text();
        Ok(Duration::try_from_secs_f64(metric_sum(&text, "sq_orchestrator_wake_seconds_sum"))?)
    }

    /// Reports usage rows, which the orchestrator stores in the ledger.
    pub(super) async fn report_usage(&self, sequence: u64, rows: Vec<Value>) -> Result<()> {
        let report =
            json!({"gateway": GATEWAY, "source": "scale", "sequence": sequence, "rows": rows});
        self.post(USAGE_PATH, &report).await.map(drop)
    }
}
