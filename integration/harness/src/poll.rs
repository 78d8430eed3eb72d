//! Waiting for something to become true, or seeing that it stays so: polled, never slept for.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Between two looks: short against what is waited for (the fastest is a wake of some 15 ms), long
/// enough to leave the two cores to what is waited for.
const TICK: Duration = Duration::from_millis(10);

/// Looks until `look` gives something, at most for `within`. `what` completes the sentence
/// "waited … for".
pub async fn until<T, F, Fut>(what: impl Display, within: Duration, mut look: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let start = Instant::now();
    loop {
        if let Some(found) = look().await {
            return Ok(found);
        }
        if start.elapsed() >= within {
            bail!("waited {within:?} in vain for {what}");
        }
        tokio::time::sleep(TICK).await;
    }
}

/// Looks again and again for so long; fails with the first look that does.
pub async fn holds<F, Fut>(long: Duration, mut look: F) -> Result<()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<()>>,
{
    let start = Instant::now();
    while start.elapsed() < long {
        look().await?;
        tokio::time::sleep(TICK).await;
    }
    Ok(())
}
