//! `integration bench`: what the gateway costs, each figure beside its goal, all in one run.
//!
//! Four parts: CPU and rate of one Envoy worker with different gates in front of the same
//! upstream; hostcalls of a warm request, counted in Envoy's own trace; what limits and metering
//! are of that; the first request to a sleeping tenant against a bare start of the same SQ, alone and
//! twenty a second.

pub mod cpu;
pub mod generator;
pub mod hostcalls;
pub mod limits;
pub mod listeners;
pub mod stub;
pub mod wake;
pub mod warm;

use anyhow::Result;
use harness::Runtime;

/// Runs all of it and prints the tables. An error means that a figure could not be taken; a missed
/// goal is shown and is no error.
pub async fn run(runtime: Option<Runtime>, quick: bool, only: Option<Part>) -> Result<()> {
    let scale = if quick { Scale::QUICK } else { Scale::FULL };
    for part in Part::ALL.into_iter().filter(|part| only.is_none_or(|only| only == *part)) {
        match part {
            Part::Warm => warm::print(&scale).await?,
            Part::Limits => limits::print(&scale).await?,
            Part::Wake => wake::print(runtime, &scale).await?,
        }
        println!();
    }
    Ok(())
}

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// A warm request: CPU, rate, hostcalls.
    Warm,
    /// What limits and metering are of that.
    Limits,
    /// The first request to a sleeping tenant.
    Wake,
}

impl Part {
    const ALL: [Self; 3] = [Self::Warm, Self::Limits, Self::Wake];
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Rounds over all gates; the median round counts.
    pub rounds: usize,
    /// Requests per gate and round.
    pub requests: u64,
    /// Wakes, of ours and of the bare start each.
    pub wakes: usize,
    /// Tenants that are woken twenty a second.
    pub rush: usize,
}

impl Scale {
    /// About seven minutes on two cores, most of them for the wakes: of less than two hundred the 99th
    /// percentile would be the slowest one.
    pub const FULL: Self = Self { rounds: 5, requests: 20_000, wakes: 200, rush: 100 };
    /// Some seconds: shows that the benchmark works.
    pub const QUICK: Self = Self { rounds: 1, requests: 2_000, wakes: 5, rush: 10 };
}

/// The value below which `percent` of the values lie.
pub fn percentile<T: Copy + PartialOrd>(values: &[T], percent: usize) -> Option<T> {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    let last = sorted.len().checked_sub(1)?;
    sorted.get((sorted.len() * percent / 100).min(last)).copied()
}

/// `goal ≤ 8.0` and whether it is met.
pub fn judged(measured: f64, goal: f64) -> String {
    format!("goal ≤ {goal:.2}: {}", if measured <= goal { "met" } else { "MISSED" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        assert_eq!(percentile(&[3, 1, 2], 50), Some(2));
        assert_eq!(percentile(&[3, 1, 2], 99), Some(3));
        assert_eq!(percentile::<u8>(&[], 50), None);
    }
}
