//! Deaths of SQ and pauses of the orchestrator during writes: what is within the window may be
//! missing, but never half.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use experiments::proof::{self, TENANT};
use harness::client::FIRST_SCROLL;
use harness::{Client, Load, Runtime, Stack, StackBuilder, until};
use rustix::process::Signal;

use crate::sq_alone::{PATIENCE, blocking};
use crate::suite::{Case, On, case};

/// Deaths, each in one of the first small writes to a new phext.
const DEATHS: usize = 12;
/// Size of the first scroll of a new phext: large enough that a write takes a millisecond or two.
const SCROLL_BYTES: usize = 8_000_000;
/// Time for which the orchestrator stands still. It is longer than a write may be without a copy.
const STANDSTILL: Duration = Duration::from_secs(4);
/// Bound on the age of a copy once the orchestrator runs again, on a busy machine.
const COPIED_WITHIN: Duration = Duration::from_secs(2);

fn killed_often() -> StackBuilder {
    proof::gateway(Runtime::Process, 512)
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(On::Own(killed_often), new_phext_never_loses_half_a_scroll).exclusive(),
        case!(On::Own(killed_often), writes_of_a_standstill_are_copied_after_it).exclusive(),
    ]
}

/// The moment of a write at which SQ dies.
#[derive(Clone, Copy)]
enum Moment {
    /// The file is empty, or a part of it is written.
    Begun,
    /// A part is written.
    HalfWay,
}

/// Kills SQ when the write of `file`, which had `bytes` before it, has come that far.
fn kill_within_a_write(
    stack: &Stack,
    instance: &str,
    file: &Path,
    bytes: u64,
    moment: Moment,
) -> Result<()> {
    let started = Instant::now();
    loop {
        let length = fs::metadata(file)?.len();
        let is_moment = match moment {
            Moment::Begun => length < bytes,
            Moment::HalfWay => length > 0 && length < bytes,
        };
        if is_moment {
            return stack.kill_sq_instance(instance);
        }
        ensure!(started.elapsed() < PATIENCE, "{} is not being written", file.display());
    }
}

/// Has SQ die within a write to a new phext that holds one large scroll.
async fn die_in_a_first_write(
    stack: &Arc<Stack>,
    client: &Client,
    phext: &str,
    moment: Moment,
) -> Result<()> {
    let path = format!("/api/v2/update?p={phext}&{FIRST_SCROLL}");
    client.post(&path, vec![b'a'; SCROLL_BYTES]).await?.expect_ok()?;
    let instance = stack.sq_instance(TENANT)?;
    let file = stack.orchestrator.data().join(TENANT).join(format!("{phext}.phext"));
    let bytes = fs::metadata(&file)?.len();
    let killer = {
        let stack = stack.clone();
        tokio::spawn(blocking(move || kill_within_a_write(&stack, &instance, &file, bytes, moment)))
    };
    let second = format!("/api/v2/update?p={phext}&c=1.1.1/1.1.1/1.1.2");
    // A write may be over before it is noticed.
    while !killer.is_finished() {
        // Its response is of no interest: SQ dies in one of them.
        let _ = client.post(&second, "b").await;
    }
    killer.await?
}

async fn text(client: &Client, phext: &str, scroll: u32) -> Result<String> {
    let path = format!("/api/v2/select?p={phext}&c=1.1.1/1.1.1/1.1.{scroll}");
    until("a response after the death", PATIENCE, || async {
        let response = client.get(&path).await.ok()?;
        response.ok().then(|| response.text())
    })
    .await
}

async fn new_phext_never_loses_half_a_scroll(stack: Arc<Stack>) -> Result<()> {
    let client = stack.tenant(TENANT)?;
    let mut missing = 0;
    for death in 0..DEATHS {
        let phext = format!("new-{death}");
        let moment = if death % 3 == 0 { Moment::Begun } else { Moment::HalfWay };
        die_in_a_first_write(&stack, &client, &phext, moment).await?;
        let first = text(&client, &phext, 1).await?.len();
        let second = text(&client, &phext, 2).await?;
        ensure!([0, SCROLL_BYTES].contains(&first), "{phext}: {first} of {SCROLL_BYTES} bytes");
        ensure!(["", "b"].contains(&second.as_str()), "{phext}: {second:?}");
        missing += u32::from(first == 0);
    }
    let restored = stack.orchestrator.tenant_status(TENANT).await?.restored;
    println!("{DEATHS} deaths in a first write: {missing} scrolls missing, {restored} repaired");
    ensure!(restored > 0, "no death came in the middle of a write");
    Ok(())
}

/// While the orchestrator stands still, nothing is copied. Afterwards the copies come at once, so
/// that the window grows by the standstill and no more.
async fn writes_of_a_standstill_are_copied_after_it(stack: Arc<Stack>) -> Result<()> {
    let client = stack.tenant(TENANT)?;
    client.update("notes", "begin").await?.expect_ok()?;
    let good = stack.orchestrator.state().join("vault").join(TENANT).join("good/notes.phext");
    until("the first copy", PATIENCE, || async { good.exists().then_some(()) }).await?;
    let load = {
        let client = client.clone();
        Load::start(2, Duration::ZERO, move |worker, n| {
            let client = client.clone();
            async move {
                let scroll = 10 + worker;
                let path = format!("/api/v2/update?p=notes&c=1.1.1/1.1.1/1.1.{scroll}");
                client.post(&path, format!("write {n}")).await
            }
        })
    };
    let orchestrator = stack.orchestrator.service().process()?;
    orchestrator.signal(Signal::STOP);
    tokio::time::sleep(STANDSTILL).await;
    let path = "/api/v2/update?p=notes&c=1.1.1/1.1.1/1.1.5";
    let last = client.post(path, "last of the standstill").await;
    orchestrator.signal(Signal::CONT);
    let resumed = Instant::now();
    last?.expect_ok()?;
    until("a copy of the last write", COPIED_WITHIN, || async {
        fs::read_to_string(&good).is_ok_and(|copy| copy.contains("last of the")).then_some(())
    })
    .await?;
    println!("standstill of {STANDSTILL:?}: copied {:?} after it", resumed.elapsed());
    let outcome = load.finish().await;
    ensure!(outcome.errors == 0, "{outcome:?}");
    Ok(())
}
