//! SQ alone beside the gateway: what the tests share whose name begins with `sq_alone`. Each prints
//! rows of the table that `make table` shows; the rest of it is in `tests/guard.rs`, where no Envoy is
//! needed.

use std::time::Duration;

use anyhow::Result;
use harness::client::raw::Raw;
use harness::{Stack, StackBuilder};
use tokio::task::spawn_blocking;

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const NEW: &str = "0.6.0";
pub(crate) const OLD: &str = "0.5.0";
pub(crate) const BOTH: [&str; 2] = [OLD, NEW];
pub(crate) const AT: &str = "c=1.1.1/1.1.1/1.1.1";

pub(crate) fn alone() -> StackBuilder {
    Stack::builder().tenant("alice")
}

pub(crate) fn alone_0_5_0() -> StackBuilder {
    alone().sq(OLD)
}

pub(crate) fn row(test: &str, rule: &str, sq: &str, alone: &str, gateway: &str) {
    let line = |text: &str| text.replace(['\r', '\n'], " ");
    println!("| {test} | {rule} | {sq} | {} | {} |", line(alone), line(gateway));
}

/// Asks SQ off the async threads.
pub(crate) async fn sq<T: Send + 'static>(
    ask: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    spawn_blocking(ask).await?
}

/// Raw bytes to the gateway with alice's key in place of KEY; the whole answer.
pub(crate) async fn through(stack: &Stack, bytes: &str) -> Result<String> {
    let bytes = bytes.replace("KEY", stack.key("alice")?);
    Raw::exchange(stack.listen.https, &stack.certs.ca(), bytes.as_bytes()).await
}

/// The first line of an answer.
pub(crate) fn status(answer: &str) -> String {
    answer.lines().next().unwrap_or("closed").to_owned()
}

/// Alice's scroll at [`AT`].
pub(crate) async fn stored(stack: &Stack, phext: &str) -> Result<String> {
    let answer =
        stack.tenant("alice")?.get(&format!("/api/v2/select?p={phext}&{AT}")).await?.expect_ok()?;
    Ok(answer.text())
}

/// How often alice's SQ has died.
pub(crate) async fn deaths(stack: &Stack) -> Result<u64> {
    let tenant = stack.orchestrator.tenant("alice").await?;
    Ok(tenant.map(|tenant| tenant.deaths).unwrap_or_default())
}
