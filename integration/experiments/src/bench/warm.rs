//! CPU per request and requests per second of one Envoy worker, with each filter chain.
//!
//! All filter chains are listeners of one process and take turns in rounds, so that other load on
//! the machine affects all of them. The median round counts.

use anyhow::{Result, ensure};

use super::envoy::{self, BenchEnvoy, CONNECTIONS, KEY, LoadCost};
use super::filter_chains::{ChainConfig, FilterChain};
use super::{BenchSize, compare_with_goal, percentile};
use crate::columns::Columns;
use harness::host::ports;
use harness::host::tools;

/// CPU of the filter above a plain route, µs per request.
const GOAL_US: f64 = 8.0;
/// Room for the longest title.
const TITLE_WIDTH: usize = 34;
/// More calls per request mean that the verdict or the lease is not cached.
const MAX_WARM_CALLS: f64 = 0.1;

/// Measures and prints the table.
pub(super) async fn print(size: &BenchSize) -> Result<()> {
    let empty_filter = tools::empty_filter()?;
    let filter = tools::filter()?;
    let config = ChainConfig { key: KEY, empty_filter: &empty_filter, filter: &filter };
    let mut listeners = String::new();
    let mut chains = Vec::new();
    for chain in FilterChain::ALL {
        let port = ports::free()?;
        listeners += &chain.listener(port, &config)?;
        chains.push((chain, port));
    }
    let envoy = BenchEnvoy::start(&listeners, envoy::orchestrator).await?;
    let rows = measure(&envoy, &chains, size).await?;

    println!("Warm request, one Envoy worker, HTTP/1.1, {} requests per round", size.requests);
    let columns = Columns::new(TITLE_WIDTH, ["CPU µs", "above plain", "requests/s"]);
    println!("{}", columns.heading("filter chain"));
    let plain_us = rows.first().map_or(f64::NAN, |(_, cost)| cost.cpu_us);
    for (chain, cost) in &rows {
        let above_plain = cost.cpu_us - plain_us;
        let cells = [
            format!("{:.1}", cost.cpu_us),
            format!("{above_plain:+.1}"),
            format!("{:.0}", cost.per_s),
        ];
        let row = columns.row(chain.title(), &cells);
        match chain {
            FilterChain::Filter => println!("{row}  {}", compare_with_goal(above_plain, GOAL_US)),
            _ => println!("{row}"),
        }
    }
    print_hostcalls(&envoy, &chains).await
}

/// Measures each filter chain and returns the medians over the rounds.
async fn measure(
    envoy: &BenchEnvoy,
    chains: &[(FilterChain, u16)],
    size: &BenchSize,
) -> Result<Vec<(FilterChain, LoadCost)>> {
    let requests = size.requests / CONNECTIONS * CONNECTIONS;
    for (_, port) in chains {
        envoy.warm_up(*port).await?;
    }
    let mut costs: Vec<Vec<LoadCost>> = chains.iter().map(|_| Vec::new()).collect();
    for _ in 0..size.rounds {
        for ((_, port), costs) in chains.iter().zip(&mut costs) {
            costs.push(envoy.load(*port, requests).await?);
        }
    }
    let rows = chains.iter().zip(&costs).map(|((chain, _), costs)| {
        let cpu_us = median(costs.iter().map(|cost| cost.cpu_us));
        let per_s = median(costs.iter().map(|cost| cost.per_s));
        (*chain, LoadCost { cpu_us, per_s })
    });
    Ok(rows.collect())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    percentile(&values.collect::<Vec<_>>(), 50).unwrap_or(f64::NAN)
}

async fn print_hostcalls(envoy: &BenchEnvoy, chains: &[(FilterChain, u16)]) -> Result<()> {
    let filter = chains.iter().find(|(chain, _)| *chain == FilterChain::Filter);
    let port = filter.map(|(_, port)| *port).unwrap_or_default();
    let calls = envoy.hostcalls(port).await?;
    let http_calls: f64 = calls
        .by_name
        .iter()
        .filter(|(name, _)| name.ends_with("proxy_http_call"))
        .map(|(_, count)| count)
        .sum();
    ensure!(
        http_calls < MAX_WARM_CALLS,
        "not warm: {http_calls:.2} calls to relay or orchestrator per request"
    );
    println!("hostcalls of a warm request: {:.2}", calls.per_request);
    for (name, count) in calls.by_name {
        println!("    {count:>6.2} {name}");
    }
    Ok(())
}
