//! Envoy's memory and a probe's requests while an attack runs.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::client::load::Outcome;
use harness::parts::envoy::Envoy;
use harness::{Client, Http, Load, Stack};

/// Pause between two requests of the probe, and between two looks at Envoy's memory.
const INTERVAL: Duration = Duration::from_millis(50);

/// Envoy's memory and the probe's outcomes during an attack.
#[derive(Debug, Clone)]
pub struct Observation {
    /// The most memory that Envoy had allocated, in bytes.
    pub peak_bytes: u64,
    /// The probe's requests.
    pub probe: Outcome,
}

impl Observation {
    /// Fails if Envoy allocated more than `most_bytes` or the probe got anything but 200.
    pub fn check(&self, most_bytes: u64) -> Result<()> {
        let Self { peak_bytes, probe } = self;
        ensure!(
            *peak_bytes <= most_bytes,
            "Envoy had {peak_bytes} bytes, at most {most_bytes} may be"
        );
        ensure!(probe.requests > 0, "the probe sent no request");
        ensure!(
            probe.errors == 0,
            "{} of {} requests of the probe failed: {:?}",
            probe.errors,
            probe.requests,
            probe.first_errors
        );
        Ok(())
    }
}

impl fmt::Display for Observation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = self.peak_bytes / 1_000_000;
        let Outcome { requests, errors, longest, .. } = &self.probe;
        write!(f, "Envoy at most {megabytes} MB; probe: {errors} of {requests} requests failed, ")?;
        write!(f, "longest {longest:.0?}")
    }
}

/// Runs an attack while a probe with the key of `tenant` sends requests: half of them on open
/// connections, half on new ones.
pub async fn during<T>(
    stack: &Stack,
    tenant: &str,
    attack: impl Future<Output = Result<T>>,
) -> Result<(T, Observation)> {
    let open = Arc::new([stack.tenant(tenant)?, stack.client(Http::Two)?.key(stack.key(tenant)?)]);
    for client in open.iter() {
        client.toc("probe").await?.expect_ok()?;
    }
    let url = stack.url();
    let ca = stack.certs.ca();
    let key = stack.key(tenant)?.to_owned();
    let probe = Load::start(4, INTERVAL, move |client, _| {
        let http = if client % 2 == 0 { Http::One } else { Http::Two };
        let connected = if client < 2 {
            Ok(open[usize::from(http == Http::Two)].clone())
        } else {
            Client::new(&url, &ca, http).map(|new| new.key(&key))
        };
        async move { connected?.toc("probe").await }
    });
    let peak = AtomicU64::new(0);
    let result = tokio::select! {
        result = attack => result,
        error = sample(&stack.envoy, &peak) => Err(error),
    };
    let observation =
        Observation { peak_bytes: peak.load(Ordering::Relaxed), probe: probe.finish().await };
    Ok((result?, observation))
}

/// Records Envoy's largest allocated memory until it can't be read.
async fn sample(envoy: &Envoy, peak: &AtomicU64) -> anyhow::Error {
    loop {
        match allocated_bytes(envoy).await {
            Ok(bytes) => peak.fetch_max(bytes, Ordering::Relaxed),
            Err(error) => return error,
        };
        tokio::time::sleep(INTERVAL).await;
    }
}

/// The memory that Envoy has allocated, in bytes.
pub async fn allocated_bytes(envoy: &Envoy) -> Result<u64> {
    let memory: serde_json::Value = envoy.admin().get("/memory").await?.expect_ok()?.json()?;
    let allocated = memory["allocated"].as_str().context("/memory has no allocated")?;
    Ok(allocated.parse()?)
}
