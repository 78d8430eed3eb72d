//! `integration reconcile`: mixed requests during every failure that could lose or repeat a usage
//! report, followed by a comparison of three counts: the clients', Envoy's and the ledger's.
//!
//! ```text
//! load ∥ orchestrator kill -9 ×2: reports are dropped
//!   ─► load ∥ orchestrator stopped for longer than a report waits: responses are dropped
//!   ─► quiet: Envoy = ledger + requests that belong to no tenant, exactly
//!   ─► for each of SIGTERM, SIGKILL: load ∥ Envoy ended, started ─► load ─► quiet: exactly again
//! ```
//! At the end the ledger has at most the requests that clients sent. It has at least those that
//! were answered, less those that Envoy's workers had not yet reported when it ended: `UNREPORTED`.

mod workload;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use harness::host::processes;
use harness::host::tools;
use harness::{Lifecycle, Runtime, Stack, StackBuilder, until};
use workload::{RequestCounts, Workload};

/// Longest wait for a response of the ledger.
const PATIENCE: Duration = Duration::from_mins(2);
/// Longest wait for the last reports to arrive. A report takes two seconds.
const REPORTS_PATIENCE: Duration = Duration::from_secs(20);
/// Interval between two comparisons of Envoy and the ledger.
const POLL: Duration = Duration::from_millis(200);
/// Longer than a report waits for its response (2 s): the filter gives up, the orchestrator accepts
/// the report later, and the filter repeats it.
const STOPPED: Duration = Duration::from_secs(3);
/// Longest time before Envoy's end for which its requests may be unreported. A worker reports one
/// second after the response to its last report. Another second is for the transfer of a report on
/// a machine that this load keeps busy; the filter itself waits two seconds for a response.
const UNREPORTED: Duration = Duration::from_secs(2);
/// Number of times that the orchestrator is killed.
const KILLS: usize = 2;

/// The ledger compared with the clients, over all runs of Envoy.
#[derive(Debug, Clone, Copy, Default)]
pub struct Balance {
    /// Requests of tenants that were answered.
    pub answered: u64,
    /// Requests of tenants without a response: the client disconnected, or Envoy was ended.
    pub unanswered: u64,
    /// Unanswered requests that were sent while no Envoy ran.
    pub sent_without_envoy: u64,
    /// Requests in the ledger.
    pub ledger: u64,
    /// Requests that ended within `UNREPORTED` before the signal to Envoy, or later; summed over
    /// all its ends.
    pub unreported: u64,
    /// Requests of the last second before the signal to Envoy, summed over all its ends.
    pub per_second: u64,
}

impl Balance {
    /// Returns the requests that the ledger has in excess of those that were sent.
    pub fn doubled(&self) -> u64 {
        self.ledger.saturating_sub(self.answered + self.unanswered)
    }

    /// Returns the requests that were sent to an Envoy and are not in the ledger.
    pub fn lost(&self) -> u64 {
        let sent_to_envoy = self.answered + self.unanswered - self.sent_without_envoy;
        sent_to_envoy.saturating_sub(self.ledger)
    }

    fn print(&self) {
        println!(
            "clients: {} requests of tenants answered, {} unanswered ({} of them sent while no \
             Envoy ran)",
            self.answered, self.unanswered, self.sent_without_envoy
        );
        println!("ledger:  {}", self.ledger);
        println!("doubled  {}  goal 0: met", self.doubled());
        println!(
            "lost     {}  goal at most the {} requests of the last {} s before each of the {} ends \
             of Envoy: met",
            self.lost(),
            self.unreported,
            UNREPORTED.as_secs(),
            EnvoyEnd::ALL.len()
        );
        let lost_ms = (self.lost() * 1_000).checked_div(self.per_second).unwrap_or(0);
        println!("         equal to {lost_ms} ms of the load at each end");
    }
}

/// Builds the stack that [`compare_counts`] needs.
pub fn builder(runtime: Runtime) -> StackBuilder {
    let lifecycle = Lifecycle::default().duration_ms("lease", 5000).duration_ms("grace", 6000);
    workload::add_tenants(Stack::builder().runtime(runtime).workers(2).lifecycle(lifecycle))
}

/// Runs the experiment and prints its result. Fails if the counts do not agree.
pub async fn run(runtime: Option<Runtime>, requests: u64) -> Result<()> {
    let stack = builder(Runtime::resolve(runtime)?).start().await?;
    let balance = compare_counts(&stack, requests).await.with_context(|| stack.log_tails())?;
    balance.print();
    Ok(())
}

/// The signal that ends Envoy.
#[derive(Debug, Clone, Copy)]
enum EnvoyEnd {
    Sigterm,
    Sigkill,
}

impl EnvoyEnd {
    const ALL: [Self; 2] = [Self::Sigterm, Self::Sigkill];
}

/// Runs the whole experiment on a stack that has served no request yet.
pub async fn compare_counts(stack: &Stack, requests: u64) -> Result<Balance> {
    let part = requests / 5;
    let mut workload = Workload::start(stack).await?;
    for _ in 0..KILLS {
        workload.wait_for(part / 2).await?;
        stack.orchestrator.service().kill();
        workload.wait_for(part / 10).await?;
        stack.orchestrator.start().await?;
    }
    workload.wait_for(part / 2).await?;
    stop_orchestrator_temporarily(stack).await?;
    workload.wait_for(part / 2).await?;
    let sent = workload.pause().await?;
    expect_agreement(stack, &sent, "orchestrator killed twice and stopped once").await?;

    let mut balance = Balance::default();
    for end in EnvoyEnd::ALL {
        let sent = end_envoy_under_load(stack, &mut workload, end, part, &mut balance).await?;
        balance.answered = sent.answered;
        balance.unanswered = sent.unanswered;
    }
    balance.ledger = requests_in_ledger(stack).await?;
    ensure!(balance.doubled() == 0, "requests were billed twice: {balance:?}");
    ensure!(
        balance.lost() <= balance.unreported,
        "more requests are lost than were unreported: {balance:?}"
    );
    Ok(balance)
}

/// Ends and restarts Envoy under load, and compares the counts of the new Envoy with the ledger.
/// Returns all requests that clients have sent so far.
async fn end_envoy_under_load(
    stack: &Stack,
    workload: &mut Workload,
    end: EnvoyEnd,
    part: u64,
    balance: &mut Balance,
) -> Result<RequestCounts> {
    workload.resume(stack)?;
    workload.wait_for(part * 3 / 4).await?;
    let signalled = Instant::now();
    match end {
        EnvoyEnd::Sigterm => stack.envoy.stop(),
        EnvoyEnd::Sigkill => stack.envoy.kill(),
    }
    let ended = Instant::now();
    let at_end = workload.pause().await?;
    let before_signal = |time| signalled.checked_sub(time).unwrap_or(signalled);
    balance.sent_without_envoy += at_end.unanswered_since(signalled);
    balance.unreported += at_end.ended_between(before_signal(UNREPORTED), ended);
    balance.per_second += at_end.ended_between(before_signal(Duration::from_secs(1)), signalled);

    stack.envoy.start().await?;
    workload.resume(stack)?;
    workload.wait_for(part * 3 / 4).await?;
    let sent = workload.pause().await?;
    expect_agreement(stack, &sent.since(&at_end), &format!("Envoy ended by {end:?}")).await?;
    Ok(sent)
}

/// Stops the orchestrator with SIGSTOP. Its sockets still accept reports.
async fn stop_orchestrator_temporarily(stack: &Stack) -> Result<()> {
    let pid = stack.orchestrator.service().process()?.pid();
    processes::signal(pid, Signal::STOP);
    tokio::time::sleep(STOPPED).await;
    processes::signal(pid, Signal::CONT);
    Ok(())
}

/// Compares the current Envoy with the ledger until all reports have arrived. The difference must
/// then be exactly the requests that belong to no tenant.
async fn expect_agreement(stack: &Stack, sent: &RequestCounts, title: &str) -> Result<()> {
    let started = Instant::now();
    loop {
        let (agrees, text) = run_usage_reconcile(stack)?;
        ensure!(agrees, "{title}: {text}");
        if row(&text, "total").is_some_and(|row| row.unattributed == sent.unattributed) {
            println!("{title}: {} requests that belong to no tenant\n{text}", sent.unattributed);
            return Ok(());
        }
        ensure!(
            started.elapsed() <= REPORTS_PATIENCE,
            "{title}: clients sent {} requests that belong to no tenant, but\n{text}",
            sent.unattributed
        );
        tokio::time::sleep(POLL).await;
    }
}

/// Runs `orchestrator usage reconcile`. Returns whether it succeeded, and its output.
fn run_usage_reconcile(stack: &Stack) -> Result<(bool, String)> {
    let output = Command::new(tools::workspace_binary("orchestrator")?)
        .args(["usage", "reconcile", "--envoy-admin"])
        .arg(stack.envoy.admin_socket())
        .arg("--admin")
        .arg(stack.orchestrator.socket("admin"))
        .output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

/// One row of the table that `orchestrator usage reconcile` prints.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    envoy: u64,
    ledger: u64,
    unattributed: u64,
    doubled: u64,
}

fn row(text: &str, class: &str) -> Option<Row> {
    let line = text.lines().find_map(|line| line.strip_prefix(class))?;
    let numbers: Vec<u64> = line.split_whitespace().map_while(|n| n.parse().ok()).collect();
    let [envoy, ledger, unattributed, doubled] = numbers.try_into().ok()?;
    Some(Row { envoy, ledger, unattributed, doubled })
}

/// Returns the requests that the ledger has for this month.
async fn requests_in_ledger(stack: &Stack) -> Result<u64> {
    until("the usage of this month", PATIENCE, || async {
        Some(stack.orchestrator.month_usage().await.ok()?.total.requests())
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_of_a_status_class_is_parsed() {
        let text = "class envoy ledger unattributed doubled\n2xx  7 5 2 0\ntotal  9 6 3 0\n";
        let expected = Row { envoy: 9, ledger: 6, unattributed: 3, doubled: 0 };
        assert_eq!(row(text, "total"), Some(expected));
        assert_eq!(row(text, "4xx"), None);
    }
}
