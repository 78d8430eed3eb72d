//! Hostcalls of a warm request, counted in the trace log of Envoy's wasm host.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;

use super::generator;
use harness::Client;

/// Requests that are traced: enough that a concurrent flush of usage has no weight.
const REQUESTS: u64 = 200;

/// Calls from the filter to Envoy, per request.
pub(super) struct HostcallCounts {
    /// The sum over all hostcalls.
    pub(super) per_request: f64,
    /// The counts by name, the most frequent first.
    pub(super) by_name: Vec<(String, f64)>,
}

impl HostcallCounts {
    /// Returns the count of one hostcall.
    pub(super) fn count_of(&self, name: &str) -> f64 {
        self.by_name.iter().find(|(n, _)| n == name).map_or(0.0, |(_, count)| *count)
    }
}

/// Sends warm requests to `port` while Envoy traces its hostcalls.
pub(super) async fn per_request(
    admin: &Client,
    log: &Path,
    port: u16,
    request: &str,
) -> Result<HostcallCounts> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let log_start = usize::try_from(fs::metadata(log)?.len())?;
    admin.post("/logging?wasm=trace", "").await?.expect_ok()?;
    generator::run(address, request, 1, REQUESTS).await?;
    admin.post("/logging?wasm=info", "").await?;
    let bytes = fs::read(log)?;
    let trace = String::from_utf8_lossy(bytes.get(log_start..).unwrap_or_default());
    Ok(count(&trace))
}

#[allow(clippy::cast_precision_loss)] // counts far below 2^52
fn count(trace: &str) -> HostcallCounts {
    let mut calls = BTreeMap::<String, u64>::new();
    for line in trace.lines() {
        // `[vm->host] env.proxy_get_header_map_pairs(0, …)`; return values are separate lines.
        if let Some((_, call)) = line.split_once("[vm->host] ")
            && let Some((name, _)) = call.split_once('(')
        {
            *calls.entry(name.to_owned()).or_default() += 1;
        }
    }
    let per_request = |count: u64| count as f64 / REQUESTS as f64;
    let sum = per_request(calls.values().sum());
    let mut by_name: Vec<_> =
        calls.into_iter().map(|(name, count)| (name, per_request(count))).collect();
    by_name.sort_by(|a, b| b.1.total_cmp(&a.1));
    HostcallCounts { per_request: sum, by_name }
}
