//! Waiting for a condition, or checking that one holds, by polling instead of fixed sleeps.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Interval of polls. The fastest condition, a wake, takes about 15 ms; a shorter interval would
/// take CPU time from the parts under test.
const INTERVAL: Duration = Duration::from_millis(10);

/// Polls `condition` until it returns a value; an error after `within`. `what` completes the
/// message "timed out after … waiting for".
pub async fn until<T, F, Fut>(what: impl Display, within: Duration, mut condition: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let start = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return Ok(value);
        }
        if start.elapsed() >= within {
            bail!("timed out after {within:?} waiting for {what}");
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Polls `condition` for the whole `duration`; returns its first error.
pub async fn holds<F, Fut>(duration: Duration, mut condition: F) -> Result<()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<()>>,
{
    let start = Instant::now();
    while start.elapsed() < duration {
        condition().await?;
        tokio::time::sleep(INTERVAL).await;
    }
    Ok(())
}
