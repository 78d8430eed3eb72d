//! The time that a client waits for a dozing tenant.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use harness::{Lifecycle, Runtime, Stack, until};

/// Number of wakes; an odd number, so that there is a median.
pub const ROUNDS: usize = 21;
/// Largest median time that meets the goal.
pub const LIMIT: Duration = Duration::from_millis(25);
/// The goal as it is printed.
pub const GOAL: &str = "goal: 25 ms";
/// Longest wait until the tenant dozes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Wakes a dozing tenant `rounds` times on an open connection. Returns the median time from the
/// request to the complete response.
pub async fn median_wake(runtime: Runtime, rounds: usize) -> Result<Duration> {
    let lifecycle = Lifecycle::default()
        .duration_ms("lease", 200)
        .duration_ms("grace", 300)
        .duration_ms("doze_after", 1_000)
        .duration_ms("sleep_after", 3_600_000);
    let stack = Stack::builder().runtime(runtime).lifecycle(lifecycle).tenant("alice");
    let stack = stack.start().await?;
    let alice = stack.tenant("alice")?;
    let mut times = Vec::new();
    for round in 0..=rounds {
        let start = Instant::now();
        let response = alice.get("/api/v2/toc?p=index").await?.expect_ok()?;
        // The request of round 0 starts the tenant; all others end a doze.
        if round > 0 {
            let timing = response.header("server-timing");
            ensure!(timing.contains("desc=doze"), "the tenant did not doze: {timing}");
            times.push(start.elapsed());
        }
        until("alice to doze", PATIENCE, || async {
            (stack.orchestrator.state_of("alice").await.ok()?? == "dozing").then_some(())
        })
        .await?;
    }
    times.sort_unstable();
    Ok(times.get(times.len() / 2).copied().unwrap_or_default())
}
