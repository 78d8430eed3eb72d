//! Reads and writes on many tenants, each answer compared with what its client wrote before.
//!
//! A client behaves as its library would: where nobody answers at all it asks a read again, and a
//! write only when it was never sent. Every such time is counted.

use harness::{Client, Response, Stack, until};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use hyper_util::client::legacy;
use tokio::task::JoinSet;

use super::PATIENCE;
use super::scroll::{Blow, Reads, Scroll};
use super::tally::Tally;

/// Scrolls per tenant. No multiple of [`WRITE_EVERY`], so that each of them is read and written.
const SCROLLS: u64 = 10;
/// A scroll that nobody changes, so that a write takes long enough for a death to cut it.
const BULK_BYTES: usize = 1_000_000;
/// One request in so many is a write.
const WRITE_EVERY: u64 = 3;
/// Between two requests of one client: twenty clients leave the machine some air.
const PAUSE: Duration = Duration::from_millis(10);
/// Clients that are woken at the same time: a machine of two cores starts some tens in time.
const AT_ONCE: usize = 4;

/// What the clients are told.
#[derive(Debug)]
struct Orders {
    stop: AtomicBool,
    rest: AtomicBool,
    /// Clients that ask nothing at present.
    resting: AtomicUsize,
    /// How often all is to have been read.
    looks: AtomicUsize,
    blow: Mutex<Option<Blow>>,
    done: Vec<Done>,
}

/// How far one client is.
#[derive(Debug, Default)]
struct Done {
    requests: AtomicU64,
    looks: AtomicUsize,
}

impl Orders {
    fn blow(&self) -> Option<Blow> {
        *self.blow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_blow(&self, blow: Blow) {
        *self.blow.lock().unwrap_or_else(PoisonError::into_inner) = Some(blow);
    }
}

/// A running mixed load.
pub struct Mixed {
    orders: Arc<Orders>,
    tasks: JoinSet<Tally>,
}

impl Mixed {
    /// One client per tenant of the stack, whose phext is there.
    pub async fn start(stack: &Stack) -> Result<Self> {
        let clients: Vec<_> =
            stack.keys.keys().map(|name| stack.tenant(name)).collect::<Result<_>>()?;
        // Waking so many at once is another matter.
        for some in clients.chunks(AT_ONCE) {
            let mut wakes = JoinSet::new();
            for client in some {
                let client = client.clone();
                let path = format!("/api/v2/insert?{}", at(SCROLLS));
                wakes.spawn(async move { client.post(&path, "x".repeat(BULK_BYTES)).await });
            }
            while let Some(answer) = wakes.join_next().await {
                answer??.expect_ok()?;
            }
        }
        let orders = Arc::new(Orders {
            stop: AtomicBool::new(false),
            rest: AtomicBool::new(false),
            resting: AtomicUsize::new(0),
            looks: AtomicUsize::new(0),
            blow: Mutex::new(None),
            done: clients.iter().map(|_| Done::default()).collect(),
        });
        let mut tasks = JoinSet::new();
        for (number, client) in clients.into_iter().enumerate() {
            let now = Instant::now();
            let scrolls = (0..SCROLLS).map(|_| Scroll::new(now)).collect();
            let (orders, tally) = (orders.clone(), Tally::default());
            tasks.spawn(Tenant { number, client, orders, scrolls, tally }.work());
        }
        Ok(Self { orders, tasks })
    }

    /// Waits until each client has sent so many more requests, and all tenants are awake: what is
    /// to be struck is there.
    pub async fn each_sends(&self, requests: u64, stack: &Stack) -> Result<()> {
        let count = |done: &Done| done.requests.load(Ordering::Relaxed);
        let enough: Vec<u64> = self.orders.done.iter().map(|done| count(done) + requests).collect();
        until("more load of each client", PATIENCE, || async {
            let all = self.orders.done.iter().zip(&enough).all(|(done, n)| count(done) >= *n);
            all.then_some(())
        })
        .await?;
        until("all tenants to be awake", PATIENCE, || async {
            for name in stack.keys.keys() {
                (stack.orchestrator.state_of(name).await.ok()?? == "awake").then_some(())?;
            }
            Some(())
        })
        .await
    }

    /// From here on an SQ may die.
    pub fn blow_begins(&self) {
        self.orders.set_blow(Blow { begun: Instant::now(), ended: None });
    }

    /// From here on none dies.
    pub fn blow_has_ended(&self) {
        if let Some(blow) = self.orders.blow() {
            self.orders.set_blow(Blow { ended: Some(Instant::now()), ..blow });
        }
    }

    /// Waits until each client has read all that it wrote.
    pub async fn look(&self) -> Result<()> {
        let look = self.orders.looks.fetch_add(1, Ordering::SeqCst) + 1;
        until("all to be read", PATIENCE, || async {
            let looked = |done: &Done| done.looks.load(Ordering::SeqCst) >= look;
            self.orders.done.iter().all(looked).then_some(())
        })
        .await
    }

    /// Has all clients pause, and waits until no request is under way.
    pub async fn rest(&self) -> Result<()> {
        self.orders.rest.store(true, Ordering::SeqCst);
        until("clients to rest", PATIENCE, || async {
            (self.orders.resting.load(Ordering::SeqCst) == self.tasks.len()).then_some(())
        })
        .await
    }

    /// All at once.
    pub fn go_on(&self) {
        self.orders.rest.store(false, Ordering::SeqCst);
    }

    /// Lets requests in flight end, looks at all data once more, and tells what was seen.
    pub async fn finish(mut self) -> Result<Tally> {
        self.orders.stop.store(true, Ordering::Relaxed);
        let mut sum = Tally::default();
        while let Some(tally) = self.tasks.join_next().await {
            sum = sum.add(tally?);
        }
        Ok(sum)
    }
}

/// One tenant with its only client.
struct Tenant {
    number: usize,
    client: Client,
    orders: Arc<Orders>,
    scrolls: Vec<Scroll>,
    tally: Tally,
}

/// Why there is no text.
enum Failed {
    /// This was answered instead.
    Answered(Response),
    /// Nothing was, for as long as a client tries.
    Silence(String),
}

impl Tenant {
    async fn work(mut self) -> Tally {
        let orders = self.orders.clone();
        let done = &orders.done[self.number];
        let mut number = 0;
        while !orders.stop.load(Ordering::Relaxed) {
            if orders.rest.load(Ordering::SeqCst) {
                orders.resting.fetch_add(1, Ordering::SeqCst);
                while orders.rest.load(Ordering::SeqCst) {
                    tokio::time::sleep(PAUSE).await;
                }
                orders.resting.fetch_sub(1, Ordering::SeqCst);
            }
            let looks = orders.looks.load(Ordering::SeqCst);
            if looks > done.looks.load(Ordering::SeqCst) {
                self.look().await;
                done.looks.store(looks, Ordering::SeqCst);
            }
            let scroll = number % SCROLLS;
            if number % WRITE_EVERY == 0 {
                self.write(scroll, &format!("text-{number}")).await;
            } else {
                self.read(scroll).await;
            }
            number += 1;
            done.requests.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(PAUSE).await;
        }
        self.look().await;
        self.tally
    }

    /// Reads everything: what is wrong now is lost.
    async fn look(&mut self) {
        let wrong = self.tally.wrong;
        for scroll in 0..SCROLLS {
            self.read(scroll).await;
        }
        self.tally.lost += self.tally.wrong - wrong;
        self.tally.wrong = wrong;
    }

    /// The body, or why there is none. `reads`: it may be asked again after it was sent.
    async fn ask(&mut self, path: &str, reads: bool) -> Result<String, Failed> {
        let start = Instant::now();
        let answered = loop {
            self.tally.requests += 1;
            let error = match self.client.get(path).await {
                Ok(answer) if answer.ok() => break Ok(answer.text()),
                Ok(answer) => break Err(Failed::Answered(answer)),
                Err(error) => error,
            };
            self.tally.unanswered += 1;
            let again = reads || never_sent(&error);
            if !again || start.elapsed() > PATIENCE {
                break Err(Failed::Silence(format!("{error:#}")));
            }
            tokio::time::sleep(PAUSE).await;
        };
        self.tally.longest = self.tally.longest.max(start.elapsed());
        answered
    }

    async fn write(&mut self, number: u64, text: &str) {
        let path = format!("/api/v2/update?{}&s={text}", at(number));
        self.scroll(number).sent(text, Instant::now());
        match self.ask(&path, false).await {
            Ok(_) => self.scroll(number).acked(Instant::now()),
            Err(Failed::Answered(answer)) if answer.status == 507 => {
                self.tally.refused_writes += 1;
                self.scroll(number).refused();
            }
            Err(Failed::Answered(answer)) => {
                self.tally.failed_writes += 1;
                if !answer.header("content-type").contains("problem+json") {
                    self.tally.mute_writes += 1;
                }
                self.error(&format!("{path}: {} {}", answer.status, answer.text()));
            }
            Err(Failed::Silence(error)) => {
                self.tally.failed_writes += 1;
                self.tally.mute_writes += 1;
                self.error(&error);
            }
        }
    }

    async fn read(&mut self, number: u64) {
        let path = format!("/api/v2/select?{}", at(number));
        match self.ask(&path, true).await {
            Ok(text) => {
                let (blow, expected) = (self.orders.blow(), self.scroll(number).expected());
                match self.scroll(number).read(&text, blow) {
                    Reads::Right => {}
                    Reads::Young(writes) => self.tally.young += writes,
                    Reads::Wrong => {
                        self.tally.wrong += 1;
                        self.error(&format!("scroll {number} is {text:?}, not {expected}"));
                    }
                }
            }
            Err(Failed::Answered(answer)) => {
                self.tally.failed_reads += 1;
                self.error(&format!("{path}: {} {}", answer.status, answer.text()));
            }
            Err(Failed::Silence(error)) => {
                self.tally.failed_reads += 1;
                self.error(&error);
            }
        }
    }

    /// Keeps an error with its time, which tells what caused it.
    fn error(&mut self, text: &str) {
        let since = self.orders.blow().map_or("before any blow".to_owned(), |blow| {
            format!("{} ms after the blow", blow.begun.elapsed().as_millis())
        });
        self.tally.error(format!("{since}: {text}"));
    }

    fn scroll(&mut self, number: u64) -> &mut Scroll {
        let index = usize::try_from(number).unwrap_or_default();
        &mut self.scrolls[index]
    }
}

/// Phext and coordinate of a scroll.
fn at(number: u64) -> String {
    format!("p=drill&c=1.1.1/1.1.1/1.1.{}", number + 1)
}

/// Whether the request can't have reached anybody.
fn never_sent(error: &anyhow::Error) -> bool {
    error
        .chain()
        .find_map(|cause| cause.downcast_ref::<legacy::Error>())
        .is_some_and(legacy::Error::is_connect)
}
