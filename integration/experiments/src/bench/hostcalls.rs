//! Hostcalls of a warm request, counted where they happen: Envoy's trace log of its wasm host.

use harness::Client;
use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;

use super::generator;

/// Requests that are traced: enough that a flush of usage in between does not count.
const REQUESTS: u64 = 200;

/// What a request costs in calls from the filter to Envoy.
pub struct Calls {
    /// All of them.
    pub per_request: f64,
    /// By name, the most frequent first.
    pub by_name: Vec<(String, f64)>,
}

/// Sends warm requests to `port` while Envoy traces.
pub async fn per_request(admin: &Client, log: &Path, port: u16, key: &str) -> Result<Calls> {
    let request = format!(
        "GET /api/v2/select?p=bench&c=1.1.1/1.1.1/1.1.1 HTTP/1.1\r\nhost: bench\r\n\
         authorization: Bearer {key}\r\n\r\n"
    );
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let from = fs::metadata(log)?.len();
    admin.post("/logging?wasm=trace", "").await?.expect_ok()?;
    generator::run(address, &request, 1, REQUESTS).await?;
    admin.post("/logging?wasm=info", "").await?;
    let bytes = fs::read(log)?;
    let text = String::from_utf8_lossy(bytes.get(usize::try_from(from)?..).unwrap_or_default());
    Ok(count(&text))
}

#[allow(clippy::cast_precision_loss)] // counts far below 2^52
fn count(trace: &str) -> Calls {
    let mut calls = BTreeMap::<String, u64>::new();
    for line in trace.lines() {
        // `[vm->host] env.proxy_get_header_map_pairs(0, …)`; what returns is logged apart.
        if let Some((_, call)) = line.split_once("[vm->host] ")
            && let Some((name, _)) = call.split_once('(')
        {
            *calls.entry(name.to_owned()).or_default() += 1;
        }
    }
    let each = |count: u64| count as f64 / REQUESTS as f64;
    let per_request = each(calls.values().sum());
    let mut by_name: Vec<_> = calls.into_iter().map(|(name, n)| (name, each(n))).collect();
    by_name.sort_by(|a, b| b.1.total_cmp(&a.1));
    Calls { per_request, by_name }
}
