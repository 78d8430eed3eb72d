//! What a client waits for a tenant that dozes.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use harness::poll::until;
use harness::{Lifecycle, Runtime, Stack};

/// The middle one is told.
pub const ROUNDS: usize = 21;
/// The goal.
pub const LIMIT: Duration = Duration::from_millis(25);
/// The goal in words.
pub const GOAL: &str = "goal: 25 ms";
/// Longest wait for a doze.
const PATIENCE: Duration = Duration::from_secs(20);

/// Wakes a dozing tenant so many times; the middle of the times from the request to the whole
/// answer, connection standing.
pub async fn wakes(runtime: Runtime, rounds: usize) -> Result<Duration> {
    let lifecycle = Lifecycle::default().duration_ms("lease", 200).duration_ms("grace", 300);
    let lifecycle =
        lifecycle.duration_ms("doze_after", 1_000).duration_ms("sleep_after", 3_600_000);
    let stack = Stack::builder().runtime(runtime).lifecycle(lifecycle).tenant("alice").start();
    let stack = stack.await?;
    let alice = stack.tenant("alice")?;
    let mut took = Vec::new();
    for round in 0..=rounds {
        let start = Instant::now();
        let answer = alice.get("/api/v2/toc?p=index").await?.expect_ok()?;
        // The first one starts it.
        if round > 0 {
            let timing = answer.header("server-timing");
            ensure!(timing.contains("desc=doze"), "it did not doze: {timing}");
            took.push(start.elapsed());
        }
        until("alice to doze", PATIENCE, || async {
            (stack.orchestrator.state_of("alice").await.ok()?? == "dozing").then_some(())
        })
        .await?;
    }
    took.sort_unstable();
    Ok(took.get(took.len() / 2).copied().unwrap_or_default())
}
