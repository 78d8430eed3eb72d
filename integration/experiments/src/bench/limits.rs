//! The cost of limits and metering on the warm path.
//!
//! The filter is compared with two builds of it that neither limit nor count. One of them still
//! writes the `RateLimit` and `RateLimit-Policy` headers. The builds are listeners of one Envoy
//! with one worker and take turns. Everything that is on in production is on: the tenant has a
//! rate, which the load does not exceed, and finite quotas, and usage reports are acknowledged. The
//! difference between two builds in the same round is one sample.

use std::path::Path;

use anyhow::Result;

use super::envoy::{self, BenchEnvoy, CONNECTIONS};
use super::filter_chains::wasm_filter;
use super::{BenchSize, compare_with_goal, percentile};
use crate::columns::Columns;
use harness::host::ports;
use harness::host::tools;

/// CPU of limits and metering per request, µs.
const GOAL_US: f64 = 1.0;
/// Hostcalls of limits and metering per request.
const GOAL_CALLS: f64 = 0.5;
/// Room for the longest title.
const TITLE_WIDTH: usize = 42;
/// Rounds per round of the benchmark, each a fourth of its size. The differences are small compared
/// with other load on the machine, so the builds of a round must run shortly after one another.
const ROUNDS: usize = 16;
/// Smallest difference in hostcalls that is printed.
const MIN_CALLS_SHOWN: f64 = 0.005;

/// CPU per request of the three builds in one round, µs.
struct Round {
    /// The filter as it is shipped.
    limits: f64,
    /// Without limits and metering, with the two headers.
    headers: f64,
    /// Without limits, metering and headers.
    neither: f64,
}

/// Ports of the three builds.
struct Ports {
    limits: u16,
    headers: u16,
    neither: u16,
}

/// Measures and prints the table.
pub(super) async fn print(size: &BenchSize) -> Result<()> {
    let ports = Ports { limits: ports::free()?, headers: ports::free()?, neither: ports::free()? };
    let listeners = listener("limits", ports.limits, &tools::filter()?)
        + &listener("headers", ports.headers, &tools::unlimited_filter(true)?)
        + &listener("neither", ports.neither, &tools::unlimited_filter(false)?);
    let envoy = BenchEnvoy::start(&listeners, orchestrator).await?;
    let requests = size.requests / 4 / CONNECTIONS * CONNECTIONS;
    let rounds = measure(&envoy, &ports, size.rounds * ROUNDS, requests).await?;

    println!("Limits and metering on a warm read, {} rounds of {requests} requests", rounds.len());
    let columns = Columns::new(TITLE_WIDTH, ["CPU µs", "quartiles, 25 … 75 %"]);
    println!("{}", columns.heading(""));
    let row = |title: &str, figure: fn(&Round) -> f64| {
        let middle = MiddleHalf::new(&rounds.iter().map(figure).collect::<Vec<_>>());
        let quartiles = format!("{:.2} … {:.2}", middle.low, middle.high);
        (columns.row(title, &[format!("{:.2}", middle.mean), quartiles]), middle.mean)
    };
    let (filter, _) = row("the filter", |round| round.limits);
    println!("{filter}");
    let (limits, limits_us) =
        row("  of which limits and metering", |round| round.limits - round.headers);
    println!("{limits}  {}", compare_with_goal(limits_us, GOAL_US));
    let (headers, _) =
        row("  of which two headers of responses", |round| round.headers - round.neither);
    println!("{headers}");
    print_hostcalls(&envoy, &ports, &columns).await
}

/// Measures all builds in each round. Each build is the first of every third round.
async fn measure(
    envoy: &BenchEnvoy,
    ports: &Ports,
    rounds: usize,
    requests: u64,
) -> Result<Vec<Round>> {
    let ports = [ports.limits, ports.headers, ports.neither];
    for port in ports {
        envoy.warm_up(port).await?;
    }
    let mut measured = Vec::new();
    for number in 0..rounds {
        let mut cpu_us = [0.0; 3];
        for turn in 0..3 {
            let build = (number + turn) % 3;
            cpu_us[build] = envoy.load(ports[build], requests).await?.cpu_us;
        }
        let [limits, headers, neither] = cpu_us;
        measured.push(Round { limits, headers, neither });
    }
    Ok(measured)
}

async fn print_hostcalls(envoy: &BenchEnvoy, ports: &Ports, columns: &Columns) -> Result<()> {
    let with = envoy.hostcalls(ports.limits).await?;
    let without = envoy.hostcalls(ports.neither).await?;
    let added = with.per_request - without.per_request;
    let row = columns.row("hostcalls of limits, metering and headers", &[format!("{added:.2}")]);
    println!("{row}  {}", compare_with_goal(added, GOAL_CALLS));
    for (name, count) in &with.by_name {
        let difference = count - without.count_of(name);
        if difference.abs() >= MIN_CALLS_SHOWN {
            println!("    {difference:>+8.2} {name}");
        }
    }
    Ok(())
}

/// The quartiles of a sample and the mean of the values between them.
struct MiddleHalf {
    low: f64,
    high: f64,
    mean: f64,
}

impl MiddleHalf {
    #[allow(clippy::cast_precision_loss)] // counts far below 2^52
    fn new(values: &[f64]) -> Self {
        let [low, high] = [25, 75].map(|percent| percentile(values, percent).unwrap_or(f64::NAN));
        let inner: Vec<f64> = values.iter().copied().filter(|v| (low..=high).contains(v)).collect();
        Self { low, high, mean: inner.iter().sum::<f64>() / inner.len() as f64 }
    }
}

/// Responds to lease requests and acknowledges usage reports: a report without acknowledgement is
/// repeated together with the next.
fn orchestrator(path: &str) -> Option<String> {
    if path == protocol::headers::USAGE_PATH {
        return Some(r#"{"sequence":0}"#.to_owned());
    }
    envoy::orchestrator(path)
}

fn listener(name: &str, port: u16, module: &Path) -> String {
    let filters = "type.googleapis.com/envoy.extensions.filters";
    format!(
        r#"  - name: {name}
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains: [{{filters: [{{name: hcm, typed_config: {{
      "@type": {filters}.network.http_connection_manager.v3.HttpConnectionManager,
      stat_prefix: {name}, http_filters: [{filter}
        {{name: router, typed_config: {{"@type": {filters}.http.router.v3.Router}}}}],
      route_config: {{virtual_hosts: [{{name: all, domains: ["*"],
        routes: [{{match: {{prefix: /}}, route: {{cluster_header: x-sq-cluster}}}}]}}]}}}}}}]}}]
"#,
        filter = wasm_filter(name, module, r#"{"orchestrator_cluster":"orchestrator"}"#)
    )
}
