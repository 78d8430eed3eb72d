//! `integration reconcile`: mixed requests through everything that may lose or repeat a report, and
//! then three counts side by side: the clients', Envoy's and the ledger's.
//!
//! ```text
//! load ∥ orchestrator kill -9 ×2: reports are dropped
//!   ─► load ∥ orchestrator stopped for longer than a report waits: answers are dropped
//!   ─► quiet: Envoy = ledger + nobody's, exactly
//!   ─► for each of SIGTERM, SIGKILL: load ∥ Envoy ended, started ─► load ─► quiet: exactly again
//! ```
//! In the end the ledger has at most what clients sent, and at least what was answered to them but
//! for what Envoy's workers had not reported yet when it ended: [`UNREPORTED`].

pub mod deck;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use deck::{Deck, Sent};
use harness::host::processes;
use harness::host::tools;
use harness::{Lifecycle, Runtime, Stack, StackBuilder, until};

/// Longest wait for anything to come about.
const PATIENCE: Duration = Duration::from_mins(2);
/// Longer than a report waits for its answer (2 s): it is given up, taken later, and repeated.
const STOPPED: Duration = Duration::from_secs(3);
/// What an Envoy that ends takes with it at most. A worker reports a second after its last report was
/// answered; another second is for the way of a report on a machine that this load keeps busy (the
/// filter itself waits two for an answer).
const UNREPORTED: Duration = Duration::from_secs(2);
/// How often the orchestrator is killed.
const KILLS: usize = 2;

/// The ledger against the clients, over all lives of Envoy.
#[derive(Debug, Clone, Copy, Default)]
pub struct Balance {
    /// Requests of tenants that were answered.
    pub answered: u64,
    /// Requests of tenants without an answer: their client left, or Envoy was ended.
    pub unanswered: u64,
    /// Of these, sent to no Envoy: from when it was told to end to its start.
    pub nowhere: u64,
    /// In the ledger.
    pub ledger: u64,
    /// Ended within [`UNREPORTED`] before Envoy was told to end, or later; over all its ends.
    pub unreported: u64,
    /// Load of the second before Envoy was told to end, over all its ends.
    pub per_second: u64,
}

impl Balance {
    /// More in the ledger than was sent.
    pub fn doubled(&self) -> u64 {
        self.ledger.saturating_sub(self.answered + self.unanswered)
    }

    /// Sent to an Envoy, and not in the ledger.
    pub fn lost(&self) -> u64 {
        (self.answered + self.unanswered - self.nowhere).saturating_sub(self.ledger)
    }
}

/// The stack that is needed.
pub fn builder(runtime: Runtime) -> StackBuilder {
    let lifecycle = Lifecycle::default().duration_ms("lease", 5000).duration_ms("grace", 6000);
    deck::tenants(Stack::builder().runtime(runtime).workers(2).lifecycle(lifecycle))
}

/// Runs it and prints what was found; an error when the books don't balance.
pub async fn run(runtime: Option<Runtime>, requests: u64) -> Result<()> {
    let stack = builder(Runtime::resolve(runtime)?).start().await?;
    let balance = on(&stack, requests).await.with_context(|| stack.log_tails())?;
    let Balance { answered, unanswered, nowhere, ledger, unreported, per_second } = balance;
    println!(
        "clients: {answered} of tenants' requests answered, {unanswered} without an answer \
         ({nowhere} of them sent while there was no Envoy)"
    );
    println!("ledger:  {ledger}");
    println!("doubled  {}  goal 0: met", balance.doubled());
    println!(
        "lost     {}  goal at most the {unreported} of the last {} s before Envoy's {} ends: met",
        balance.lost(),
        UNREPORTED.as_secs(),
        Ending::ALL.len()
    );
    let ms = (balance.lost() * 1_000).checked_div(per_second).unwrap_or(0);
    println!("         that is {ms} ms of the load at each end");
    Ok(())
}

/// How Envoy ends.
#[derive(Debug, Clone, Copy)]
enum Ending {
    Term,
    Kill,
}

impl Ending {
    const ALL: [Self; 2] = [Self::Term, Self::Kill];
}

/// All of it on a fresh stack.
pub async fn on(stack: &Stack, requests: u64) -> Result<Balance> {
    let part = requests / 5;
    let mut deck = Deck::start(stack).await?;
    for _ in 0..KILLS {
        deck.more(part / 2).await?;
        stack.orchestrator.service().kill();
        deck.more(part / 10).await?;
        stack.orchestrator.start().await?;
    }
    deck.more(part / 2).await?;
    stop_for_a_while(stack).await?;
    deck.more(part / 2).await?;
    let mut sent = deck.pause().await?;
    balanced(stack, &sent, "orchestrator killed twice and stopped once").await?;

    let mut balance = Balance::default();
    for ending in Ending::ALL {
        deck.resume(stack)?;
        deck.more(part * 3 / 4).await?;
        let told = Instant::now();
        match ending {
            Ending::Term => stack.envoy.stop(),
            Ending::Kill => stack.envoy.kill(),
        }
        let ended = Instant::now();
        let at_end = deck.pause().await?;
        let before = |s| told.checked_sub(s).unwrap_or(told);
        balance.nowhere += at_end.unanswered_since(told);
        balance.unreported += at_end.ended_between(before(UNREPORTED), ended);
        balance.per_second += at_end.ended_between(before(Duration::from_secs(1)), told);
        stack.envoy.start().await?;
        deck.resume(stack)?;
        deck.more(part * 3 / 4).await?;
        sent = deck.pause().await?;
        balanced(stack, &sent.since(&at_end), &format!("Envoy ended by {ending:?}")).await?;
    }
    balance.answered = sent.answered;
    balance.unanswered = sent.unanswered;
    balance.ledger = ledger(stack).await?;
    ensure!(balance.doubled() == 0, "billed twice: {balance:?}");
    ensure!(balance.lost() <= balance.unreported, "more is lost than was unreported: {balance:?}");
    Ok(balance)
}

/// The orchestrator hangs, but its sockets take reports all the while.
async fn stop_for_a_while(stack: &Stack) -> Result<()> {
    let pid = stack.orchestrator.service().process()?.pid();
    processes::signal(pid, Signal::STOP);
    tokio::time::sleep(STOPPED).await;
    processes::signal(pid, Signal::CONT);
    Ok(())
}

/// Compares Envoy's life with the ledger until all reports are in: what Envoy has more must be
/// exactly what was nobody's.
async fn balanced(stack: &Stack, sent: &Sent, what: &str) -> Result<()> {
    let looked = Instant::now();
    loop {
        let (good, text) = reconcile(stack)?;
        ensure!(good, "{what}: {text}");
        if row(&text, "total").is_some_and(|[_, _, nobodys, _]| nobodys == sent.nobodys) {
            println!("{what}: {} nobody's sent\n{text}", sent.nobodys);
            return Ok(());
        }
        // Nothing of it may change any more once reports are in; they take two seconds.
        let over = looked.elapsed() > Duration::from_secs(20);
        ensure!(!over, "{what}: {} nobody's were sent, but\n{text}", sent.nobodys);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// `orchestrator usage reconcile`: whether it is content, and what it prints.
fn reconcile(stack: &Stack) -> Result<(bool, String)> {
    let output = Command::new(tools::workspace_binary("orchestrator")?)
        .args(["usage", "reconcile", "--envoy-admin", stack.envoy.admin_url()])
        .args(["--admin", stack.orchestrator.admin_url()])
        .output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

/// The numbers of a row: Envoy's, the ledger's, nobody's, doubled.
fn row(text: &str, class: &str) -> Option<[u64; 4]> {
    let line = text.lines().find_map(|line| line.strip_prefix(class))?;
    let numbers: Vec<u64> = line.split_whitespace().map_while(|n| n.parse().ok()).collect();
    numbers.try_into().ok()
}

/// Requests in the ledger's month.
async fn ledger(stack: &Stack) -> Result<u64> {
    let look = || async { Some(stack.orchestrator.month_usage().await.ok()?.total.requests()) };
    until("the month", PATIENCE, look).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_row_of_a_class_is_found() {
        let text = "class envoy ledger nobody's doubled\n2xx  7 5 2 0\ntotal  9 6 3 0\n";
        assert_eq!(row(text, "total"), Some([9, 6, 3, 0]));
        assert_eq!(row(text, "4xx"), None);
    }
}
