//! The gate API, asked as the filter asks it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hyper::Method;
use protocol::headers::{LEASE_PATH, USAGE_PATH};
use protocol::{LeaseResponse, WakeKind};
use serde_json::{Value, json};

use super::host::{IDLE, limits};
use harness::parts::orchestrator::metric_sum;
use harness::{Client, Response, Stack, until};

/// The bootstrap's `node.id`.
const GATEWAY: &str = "gateway-1";
/// Longest wait until a restarted orchestrator and Envoy have found each other.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks for leases. Clones share their connections.
#[derive(Clone)]
pub struct Leases {
    gate: Client,
    admin: Client,
}

/// One wake.
#[derive(Debug, Clone, Copy)]
pub struct Wake {
    /// From the question to its answer.
    pub total: Duration,
    /// What the runtime took of it.
    pub runtime: Duration,
}

impl Leases {
    /// Of a stack's orchestrator.
    pub fn new(stack: &Stack) -> Result<Self> {
        let gate = format!("http://127.0.0.1:{}", stack.listen.orchestrator.gate);
        Ok(Self { gate: Client::plaintext(&gate)?, admin: stack.orchestrator.admin().clone() })
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Response> {
        let json = [("content-type", "application/json")];
        self.gate.send(Method::POST, path, &json, body.to_string().into()).await
    }

    /// Asks for a lease; an error unless it is given.
    pub async fn ask(&self, tenant: &str, tier: &str) -> Result<LeaseResponse> {
        let body = json!({
            "gateway": GATEWAY, "tenant": tenant, "tier": tier, "limits": limits(tier),
        });
        let answer = self.post(LEASE_PATH, &body).await?.expect_ok()?;
        Ok(serde_json::from_slice(&answer.body)?)
    }

    /// Asks until a lease is given.
    pub async fn granted(&self, tenant: &str, tier: &str) -> Result<()> {
        let ask = || async { self.ask(tenant, tier).await.ok().map(drop) };
        until(format!("a lease on {tenant}"), PATIENCE, ask).await
    }

    /// Wakes a tenant, alone; the orchestrator's own sum of runtime calls tells their part.
    pub async fn wake(&self, tenant: &str, expected: WakeKind) -> Result<Wake> {
        let before = self.runtime().await?;
        let start = Instant::now();
        let answer = self.ask(tenant, IDLE).await?;
        let total = start.elapsed();
        ensure!(answer.wake == expected, "{tenant}: {:?} and not {expected:?}", answer.wake);
        Ok(Wake { total, runtime: self.runtime().await?.saturating_sub(before) })
    }

    async fn runtime(&self) -> Result<Duration> {
        let text = self.admin.get("/metrics").await?.text();
        Ok(Duration::try_from_secs_f64(metric_sum(&text, "sq_orchestrator_wake_seconds_sum"))?)
    }

    /// Puts rows into the ledger.
    pub async fn report(&self, sequence: u64, rows: Vec<Value>) -> Result<()> {
        let report =
            json!({"gateway": GATEWAY, "source": "scale", "sequence": sequence, "rows": rows});
        self.post(USAGE_PATH, &report).await?.expect_ok()?;
        Ok(())
    }
}
