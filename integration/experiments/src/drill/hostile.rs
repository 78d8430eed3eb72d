//! Hostile clients that hold what all clients share, and what a probe sees of it.
//!
//! The attacks run one after the other on one stack, with the operators' firewall rules loaded if
//! this process may do so.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use harness::client::TOC;
use harness::host::firewall;
use harness::{Runtime, Stack};
use tokio::time::timeout;

use crate::attack::stalled_streams::{StalledStreams, Withheld};
use crate::attack::{Credentials, idle_connections, watch};

/// The title of the drill.
pub const TITLE: &str = "hostile clients";

/// Connections of the attack on Envoy's memory.
pub const CONNECTIONS: usize = 400;
/// Bound on Envoy's allocated memory during that attack.
pub const MEMORY_BYTES: u64 = 1_000_000_000;
/// Duration of that attack: longer than it takes to connect and to fill Envoy's memory.
pub const ATTACK: Duration = Duration::from_secs(10);
/// Bound on the time in which another address gets a response while one holds all it can.
pub const OTHERS_CONNECT: Duration = Duration::from_secs(1);

const VICTIM: &str = "victim";
const ATTACKER: &str = "mallory";

/// The attack on Envoy's memory, with streams of each kind of credentials.
pub fn stalled_streams(stack: &Stack, withheld: Withheld) -> Result<StalledStreams> {
    let valid = Credentials::Valid(stack.key(ATTACKER)?.to_owned());
    Ok(StalledStreams {
        connections: CONNECTIONS,
        withheld,
        credentials: vec![Credentials::Absent, Credentials::Invented, valid],
        path: "/api/v2/update?p=x&c=1.1.1/1.1.1/1.1.1".to_owned(),
        duration: ATTACK,
    })
}

/// Connections that one address held, and the time in which another one was served.
#[derive(Debug, Clone, Copy)]
pub struct Shared {
    /// Connections of the one address.
    pub held: usize,
    /// The most that the firewall rules allow it.
    pub allowed: usize,
    /// Time to another address's response.
    pub other: Duration,
}

/// One address takes all connections that it can get while the firewall rules are loaded.
pub async fn hold_connections(stack: &Stack) -> Result<Shared> {
    let (_firewall, limits) = idle_connections::firewall(stack)?;
    idle_connections::other_client(stack, VICTIM)?.get(TOC).await?.expect_ok()?;
    let most = limits.open * 2;
    let held = idle_connections::open(stack, idle_connections::ATTACKER, most).await;
    let other = idle_connections::other_client(stack, VICTIM)?;
    let started = Instant::now();
    let response = timeout(OTHERS_CONNECT, other.get(TOC)).await;
    response.context("another address waits")??.expect_ok()?;
    Ok(Shared { held: held.len(), allowed: limits.open, other: started.elapsed() })
}

/// Runs the attacks, prints a line for each, and returns the goals that were missed.
pub async fn run(runtime: Runtime) -> Result<Vec<String>> {
    let builder = Stack::builder().runtime(runtime).tenant(VICTIM);
    let stack = builder.tenant_in_tier(ATTACKER, "free").start().await?;
    let mut missed = Vec::new();
    println!("\n{TITLE}: a probe gets 200 throughout, Envoy at most {MEMORY_BYTES} bytes");
    for withheld in [Withheld::Window, Withheld::Body, Withheld::Head] {
        let attack = stalled_streams(&stack, withheld)?;
        let (sent, seen) = watch::during(&stack, VICTIM, attack.run(&stack)).await?;
        let title = format!("{CONNECTIONS} connections that withhold {withheld:?}");
        println!("  {title}, {} MB sent: {seen}", sent.bytes / 1_000_000);
        if let Err(error) = seen.check(MEMORY_BYTES) {
            missed.push(format!("{title}: {error:#}"));
        }
    }
    if !firewall::is_permitted() {
        println!("NOT RUN: idle connections of one address: loading firewall rules needs root");
        return Ok(missed);
    }
    let title = "idle connections of one address";
    match hold_connections(&stack).await {
        Ok(Shared { held, other, .. }) => {
            println!("  {title}: {held} held; another address got its response in {other:.0?}");
        }
        Err(error) => missed.push(format!("{title}: {error:#}")),
    }
    Ok(missed)
}
