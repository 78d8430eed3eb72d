//! The load: a deck of requests of every kind, dealt by clients that note what became of each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hyper::Method;
use tokio::task::JoinSet;

use harness::client::raw::Raw;
use harness::{Client, Http, Stack, StackBuilder, Tier, until};

/// Longest wait for more requests: half a minute of them may be 503s of a missing orchestrator.
const PATIENCE: Duration = Duration::from_mins(3);
/// Clients at once.
const CLIENTS: u64 = 8;
/// Tenants that they share.
const TENANTS: u64 = 4;
/// One whose bucket is small, so that many of its requests are refused.
const LIMITED: &str = "limited";

/// Registers who takes part.
pub fn tenants(builder: StackBuilder) -> StackBuilder {
    let builder = (1..=TENANTS).fold(builder, |builder, n| builder.tenant(&format!("t{n}")));
    builder
        .tier(Tier::new("few").set("burst", 5).set("requests-per-s", 2))
        .tenant_in_tier(LIMITED, "few")
}

/// What was sent and what became of it.
#[derive(Debug, Clone, Default)]
pub struct Sent {
    /// Requests of tenants that were answered.
    pub answered: u64,
    /// Requests of tenants that were not.
    pub unanswered: u64,
    /// Answered requests that nobody is billed for.
    pub nobodys: u64,
    /// When tenants' requests ended, and whether by an answer.
    ends: Vec<(Instant, bool)>,
}

impl Sent {
    fn add(&mut self, other: Self) {
        self.answered += other.answered;
        self.unanswered += other.unanswered;
        self.nobodys += other.nobodys;
        self.ends.extend(other.ends);
    }

    /// What came after `before`; without the times.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            answered: self.answered - before.answered,
            unanswered: self.unanswered - before.unanswered,
            nobodys: self.nobodys - before.nobodys,
            ends: Vec::new(),
        }
    }

    /// Requests of tenants that ended then.
    pub fn ended_between(&self, from: Instant, to: Instant) -> u64 {
        self.ends.iter().filter(|(at, _)| (from..=to).contains(at)).count() as u64
    }

    /// Requests of tenants that ended without an answer from then on.
    pub fn unanswered_since(&self, from: Instant) -> u64 {
        self.ends.iter().filter(|(at, answered)| *at >= from && !answered).count() as u64
    }
}

/// One kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Card {
    Read,
    Write,
    Delete,
    /// Refused: no such endpoint.
    Nonsense,
    /// Refused: a bad parameter.
    Wrong,
    /// Often refused: a small bucket.
    Limited,
    /// Sent by a client that leaves at once.
    Gone,
    /// Nobody's from here on.
    Keyless,
    Unknown,
    Usage,
    Preflight,
}

/// In these proportions.
const DECK: [Card; 20] = [
    Card::Read,
    Card::Read,
    Card::Write,
    Card::Keyless,
    Card::Read,
    Card::Nonsense,
    Card::Read,
    Card::Limited,
    Card::Write,
    Card::Usage,
    Card::Read,
    Card::Read,
    Card::Delete,
    Card::Unknown,
    Card::Read,
    Card::Wrong,
    Card::Read,
    Card::Gone,
    Card::Write,
    Card::Preflight,
];

impl Card {
    fn is_nobodys(self) -> bool {
        matches!(self, Self::Keyless | Self::Unknown | Self::Usage | Self::Preflight)
    }

    fn path(self, n: u64) -> String {
        let at = format!("p=book&c=1.1.1/1.1.1/1.1.{}", n % 9 + 1);
        match self {
            Self::Write => format!("/api/v2/update?{at}&s=text-{n}"),
            Self::Delete => format!("/api/v2/delete?{at}"),
            Self::Nonsense => "/api/v2/nonsense".to_owned(),
            Self::Wrong => "/api/v2/select?p=book&c=0".to_owned(),
            Self::Usage => "/api/v2/usage".to_owned(),
            _ => format!("/api/v2/select?{at}"),
        }
    }
}

/// The clients at work.
pub struct Deck {
    stop: Arc<AtomicBool>,
    requests: Arc<AtomicU64>,
    tasks: JoinSet<Sent>,
    sent: Sent,
}

impl Deck {
    /// Begins; every tenant is awake then.
    pub async fn start(stack: &Stack) -> Result<Self> {
        let mut deck = Self {
            stop: Arc::default(),
            requests: Arc::default(),
            tasks: JoinSet::new(),
            sent: Sent::default(),
        };
        deck.resume(stack)?;
        deck.more(CLIENTS).await?;
        Ok(deck)
    }

    /// Goes on, with new connections.
    pub fn resume(&mut self, stack: &Stack) -> Result<()> {
        self.stop.store(false, Ordering::Relaxed);
        for number in 0..CLIENTS {
            let http = if number % 2 == 0 { Http::One } else { Http::Two };
            let player = Player {
                client: stack.client(http)?,
                own: stack.key(&format!("t{}", number % TENANTS + 1))?.to_owned(),
                limited: stack.key(LIMITED)?.to_owned(),
                port: stack.listen.https,
                ca: stack.certs.ca(),
                number,
            };
            self.tasks.spawn(player.play(self.stop.clone(), self.requests.clone()));
        }
        Ok(())
    }

    /// Waits for so many more requests.
    pub async fn more(&self, requests: u64) -> Result<()> {
        let enough = self.requests.load(Ordering::Relaxed) + requests;
        let there = || async { (self.requests.load(Ordering::Relaxed) >= enough).then_some(()) };
        until("more requests", PATIENCE, there).await
    }

    /// Lets requests under way end; all that was sent so far.
    pub async fn pause(&mut self) -> Result<Sent> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(sent) = self.tasks.join_next().await {
            self.sent.add(sent.context("a client failed")?);
        }
        Ok(self.sent.clone())
    }
}

/// One client.
struct Player {
    client: Client,
    own: String,
    limited: String,
    port: u16,
    ca: std::path::PathBuf,
    number: u64,
}

impl Player {
    async fn play(self, stop: Arc<AtomicBool>, requests: Arc<AtomicU64>) -> Sent {
        let mut sent = Sent::default();
        let mut n = self.number * 3;
        while !stop.load(Ordering::Relaxed) {
            let at = usize::try_from(n).unwrap_or_default() % DECK.len();
            let card = DECK.get(at).copied().unwrap_or(Card::Read);
            let answered = self.send(card, n).await.is_ok_and(|answered| answered);
            if card.is_nobodys() {
                sent.nobodys += u64::from(answered);
            } else {
                sent.answered += u64::from(answered);
                sent.unanswered += u64::from(!answered);
                sent.ends.push((Instant::now(), answered));
            }
            n += 1;
            requests.fetch_add(1, Ordering::Relaxed);
        }
        sent
    }

    /// Whether it was answered.
    async fn send(&self, card: Card, n: u64) -> Result<bool> {
        let path = card.path(n);
        if card == Card::Gone {
            return self.leave(&path).await.map(|()| false);
        }
        // Unknown keys come in a row, so that some are found in the negative cache.
        let unknown = format!("pmb-v1-{:032x}", n / 100);
        let key = match card {
            Card::Keyless | Card::Preflight => None,
            Card::Unknown => Some(unknown.as_str()),
            Card::Limited => Some(self.limited.as_str()),
            _ => Some(self.own.as_str()),
        };
        let mut headers: Vec<(&str, &str)> = key.iter().map(|k| ("authorization", *k)).collect();
        let mut method = Method::GET;
        if card == Card::Preflight {
            method = Method::OPTIONS;
            headers.push(("origin", "https://notepad.example"));
            headers.push(("access-control-request-method", "GET"));
        }
        self.client.send(method, &path, &headers, "".into()).await?;
        Ok(true)
    }

    /// Sends a whole request and closes.
    async fn leave(&self, path: &str) -> Result<()> {
        let mut raw = Raw::connect(self.port, &self.ca).await?;
        let key = &self.own;
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: {key}\r\n\r\n");
        raw.write(request.as_bytes()).await
    }
}
