//! SQ alone, without the gateway, compared with the gateway: helpers of the cases `sq_alone_…`.
//!
//! Each of these cases shows a fault of SQ and the gateway's response to the same requests, and
//! prints them as rows of the table that `make table` shows. Further rows come from
//! `tests/guard.rs`, which needs no Envoy.

use std::time::Duration;

use anyhow::Result;
use harness::client::raw::Raw;
use harness::{Stack, StackBuilder};
use tokio::task::spawn_blocking;

/// Deadline for a change of state on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const NEW: &str = "0.6.0";
pub(crate) const OLD: &str = "0.5.0";
pub(crate) const BOTH: [&str; 2] = [OLD, NEW];

pub(crate) fn with_new_sq() -> StackBuilder {
    Stack::builder().tenant("alice")
}

pub(crate) fn with_old_sq() -> StackBuilder {
    with_new_sq().sq(OLD)
}

/// A row of the table: one rule, SQ's behaviour without the gateway and the gateway's.
pub(crate) struct Row<'a> {
    /// Name of the case.
    pub(crate) case: &'a str,
    pub(crate) rule: &'a str,
    /// Version of SQ.
    pub(crate) sq: &'a str,
    pub(crate) alone: &'a str,
    pub(crate) gateway: &'a str,
}

impl Row<'_> {
    pub(crate) fn print(&self) {
        let alone = one_line(self.alone);
        let gateway = one_line(self.gateway);
        println!("| {} | {} | {} | {alone} | {gateway} |", self.case, self.rule, self.sq);
    }
}

fn one_line(text: &str) -> String {
    text.replace(['\r', '\n'], " ")
}

/// Talks to an SQ on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    talk: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    spawn_blocking(talk).await?
}

/// Sends raw bytes to the gateway, with alice's key in place of `KEY`, and returns the whole
/// response.
pub(crate) async fn send_to_gateway(stack: &Stack, bytes: &str) -> Result<String> {
    let bytes = bytes.replace("KEY", stack.key("alice")?);
    Raw::exchange(stack.listen.https, &stack.certs.ca(), bytes.as_bytes()).await
}

/// The first line of a raw response.
pub(crate) fn status_line(response: &str) -> &str {
    response.lines().next().unwrap_or("closed")
}

/// Alice's text in the first scroll of a phext.
pub(crate) async fn stored_text(stack: &Stack, phext: &str) -> Result<String> {
    Ok(stack.tenant("alice")?.select(phext).await?.expect_ok()?.text())
}

/// Number of deaths of alice's SQ.
pub(crate) async fn deaths(stack: &Stack) -> Result<u64> {
    Ok(stack.orchestrator.tenant_status("alice").await?.deaths)
}
