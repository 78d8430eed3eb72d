//! `integration bench`: the cost of the gateway, each figure beside its goal.
//!
//! | part | measurement |
//! |---|---|
//! | `warm` | CPU and rate of one Envoy worker with each filter chain; hostcalls of a warm request |
//! | `limits` | the share of limits and metering in the cost of a warm request |
//! | `wake` | the first request to a sleeping tenant, compared with a bare start of SQ |

mod bare_start;
pub(crate) mod cpu;
mod envoy;
mod filter_chains;
mod generator;
mod hostcalls;
mod limits;
mod stub_server;
mod wake;
mod warm;

use anyhow::Result;
use harness::Runtime;

/// Runs the selected parts and prints their tables. An error means that a figure could not be
/// measured. A missed goal is printed and is not an error.
pub async fn run(runtime: Option<Runtime>, quick: bool, only: Option<BenchPart>) -> Result<()> {
    let size = if quick { BenchSize::QUICK } else { BenchSize::FULL };
    for part in BenchPart::ALL.into_iter().filter(|part| only.is_none_or(|only| only == *part)) {
        match part {
            BenchPart::Warm => warm::print(&size).await?,
            BenchPart::Limits => limits::print(&size).await?,
            BenchPart::Wake => wake::print(runtime, &size).await?,
        }
        println!();
    }
    Ok(())
}

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum BenchPart {
    /// A warm request: CPU, rate, hostcalls.
    Warm,
    /// Limits and metering of a warm request.
    Limits,
    /// The first request to a sleeping tenant.
    Wake,
}

impl BenchPart {
    const ALL: [Self; 3] = [Self::Warm, Self::Limits, Self::Wake];
}

/// The number of samples.
#[derive(Debug, Clone, Copy)]
struct BenchSize {
    /// Rounds over all filter chains. The median round counts.
    rounds: usize,
    /// Requests per filter chain and round.
    requests: u64,
    /// Wakes through the gateway, and the same number of bare starts.
    wakes: usize,
    /// Tenants that are woken at twenty per second.
    rush: usize,
}

impl BenchSize {
    /// The size of `make bench`. Takes about seven minutes on two cores, most of them for the
    /// wakes: of fewer than two hundred, the 99th percentile would be the slowest one.
    const FULL: Self = Self { rounds: 5, requests: 20_000, wakes: 200, rush: 100 };
    /// Takes some seconds and shows that the benchmark works.
    const QUICK: Self = Self { rounds: 1, requests: 2_000, wakes: 5, rush: 10 };
}

/// Returns the value at a percentile of a sample; `None` without values.
pub(crate) fn percentile<T: Copy + PartialOrd>(values: &[T], percent: usize) -> Option<T> {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    let last = sorted.len().checked_sub(1)?;
    sorted.get((sorted.len() * percent / 100).min(last)).copied()
}

/// Formats an upper goal and whether the figure meets it, such as `goal ≤ 8.00: met`.
fn compare_with_goal(figure: f64, goal: f64) -> String {
    format!("goal ≤ {goal:.2}: {}", if figure <= goal { "met" } else { "MISSED" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentile_is_a_value_of_the_sample() {
        assert_eq!(percentile(&[3, 1, 2], 50), Some(2));
        assert_eq!(percentile(&[3, 1, 2], 99), Some(3));
        assert_eq!(percentile::<u8>(&[], 50), None);
    }
}
