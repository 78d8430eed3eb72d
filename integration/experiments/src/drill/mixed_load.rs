//! Reads and writes on many tenants. Each response is compared with the earlier writes of its
//! client.
//!
//! A client behaves as its library does when there is no response at all: it retries a read, and a
//! write only if it was never sent. Every retry is counted.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use hyper_util::client::legacy;
use tokio::task::JoinSet;

use super::PATIENCE;
use super::outcomes::ClientOutcomes;
use super::scroll_history::{FaultPeriod, ReadCheck, ScrollHistory};
use harness::{Client, Response, Stack, until};

/// Scrolls per tenant. Not a multiple of [`WRITE_EVERY`], so that each is both read and written.
const SCROLLS: u64 = 10;
/// Size of a scroll that does not change. It makes writes slow enough that a kill can truncate one.
const BULK_BYTES: usize = 1_000_000;
/// One of this number of requests is a write.
const WRITE_EVERY: u64 = 3;
/// Pause between two requests of one client, so that twenty clients do not saturate the machine.
const PAUSE: Duration = Duration::from_millis(10);
/// Tenants that are woken concurrently at the start: two cores start a few dozen in time.
const CONCURRENT_WAKES: usize = 4;

/// Shared between the drill and its clients.
#[derive(Debug)]
struct Control {
    stop: AtomicBool,
    pause: AtomicBool,
    paused_clients: AtomicUsize,
    /// Number of times that the drill has requested a check of all scrolls.
    requested_checks: AtomicUsize,
    fault: Mutex<Option<FaultPeriod>>,
    progress: Vec<Progress>,
}

/// The progress of one client.
#[derive(Debug, Default)]
struct Progress {
    requests: AtomicU64,
    checks: AtomicUsize,
}

impl Control {
    fn new(clients: usize) -> Self {
        Self {
            stop: AtomicBool::new(false),
            pause: AtomicBool::new(false),
            paused_clients: AtomicUsize::new(0),
            requested_checks: AtomicUsize::new(0),
            fault: Mutex::new(None),
            progress: (0..clients).map(|_| Progress::default()).collect(),
        }
    }

    fn fault(&self) -> Option<FaultPeriod> {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_fault(&self, fault: FaultPeriod) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
    }

    /// Waits while the drill pauses its clients.
    async fn wait_while_paused(&self) {
        if !self.pause.load(Ordering::SeqCst) {
            return;
        }
        self.paused_clients.fetch_add(1, Ordering::SeqCst);
        while self.pause.load(Ordering::SeqCst) {
            tokio::time::sleep(PAUSE).await;
        }
        self.paused_clients.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A running load with one client per tenant.
pub(super) struct MixedLoad {
    control: Arc<Control>,
    tasks: JoinSet<ClientOutcomes>,
}

impl MixedLoad {
    /// Creates every tenant's phext and starts the clients.
    pub(super) async fn start(stack: &Stack) -> Result<Self> {
        let clients = stack.keys.keys().map(|name| stack.tenant(name));
        let clients: Vec<Client> = clients.collect::<Result<_>>()?;
        create_phexts(&clients).await?;
        let control = Arc::new(Control::new(clients.len()));
        let mut tasks = JoinSet::new();
        for (number, client) in clients.into_iter().enumerate() {
            let now = Instant::now();
            let client = TenantClient {
                number,
                client,
                control: control.clone(),
                scrolls: (0..SCROLLS).map(|_| ScrollHistory::new(now)).collect(),
                outcomes: ClientOutcomes::default(),
            };
            tasks.spawn(client.run());
        }
        Ok(Self { control, tasks })
    }

    /// Waits until each client has sent `requests` more requests and all tenants are awake, so that
    /// the next fault finds a running SQ.
    pub(super) async fn wait_for_requests(&self, requests: u64, stack: &Stack) -> Result<()> {
        let count = |progress: &Progress| progress.requests.load(Ordering::Relaxed);
        let progress = &self.control.progress;
        let targets: Vec<u64> = progress.iter().map(|one| count(one) + requests).collect();
        until("more requests of each client", PATIENCE, || async {
            let reached = progress.iter().zip(&targets).all(|(one, target)| count(one) >= *target);
            reached.then_some(())
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

    /// Marks the start of a fault: from now on an SQ may die.
    pub(super) fn begin_fault(&self) {
        self.control.set_fault(FaultPeriod { begun: Instant::now(), ended: None });
    }

    /// Marks the end of the fault: from now on no SQ dies.
    pub(super) fn end_fault(&self) {
        if let Some(fault) = self.control.fault() {
            self.control.set_fault(FaultPeriod { ended: Some(Instant::now()), ..fault });
        }
    }

    /// Waits until each client has read and checked all scrolls that it wrote.
    pub(super) async fn check_all_scrolls(&self) -> Result<()> {
        let requested = self.control.requested_checks.fetch_add(1, Ordering::SeqCst) + 1;
        until("a check of all scrolls", PATIENCE, || async {
            let is_done = |one: &Progress| one.checks.load(Ordering::SeqCst) >= requested;
            self.control.progress.iter().all(is_done).then_some(())
        })
        .await
    }

    /// Pauses all clients and waits until no request is in flight.
    pub(super) async fn pause(&self) -> Result<()> {
        self.control.pause.store(true, Ordering::SeqCst);
        until("all clients to pause", PATIENCE, || async {
            let paused = self.control.paused_clients.load(Ordering::SeqCst);
            (paused == self.tasks.len()).then_some(())
        })
        .await
    }

    /// Lets all clients continue at the same time.
    pub(super) fn resume(&self) {
        self.control.pause.store(false, Ordering::SeqCst);
    }

    /// Completes requests in flight, checks all scrolls once more, and returns the outcomes.
    pub(super) async fn finish(mut self) -> Result<ClientOutcomes> {
        self.control.stop.store(true, Ordering::Relaxed);
        let mut sum = ClientOutcomes::default();
        while let Some(outcomes) = self.tasks.join_next().await {
            sum = sum.merge(outcomes?);
        }
        Ok(sum)
    }
}

/// Writes a large scroll to each tenant's phext, a few tenants at a time: waking all of them
/// concurrently is a separate drill.
async fn create_phexts(clients: &[Client]) -> Result<()> {
    for group in clients.chunks(CONCURRENT_WAKES) {
        let mut writes = JoinSet::new();
        for client in group {
            let client = client.clone();
            let path = format!("/api/v2/insert?{}", scroll_query(SCROLLS));
            writes.spawn(async move { client.post(&path, "x".repeat(BULK_BYTES)).await });
        }
        while let Some(response) = writes.join_next().await {
            response??.expect_ok()?;
        }
    }
    Ok(())
}

/// The only client of one tenant.
struct TenantClient {
    number: usize,
    client: Client,
    control: Arc<Control>,
    scrolls: Vec<ScrollHistory>,
    outcomes: ClientOutcomes,
}

/// A request without the expected text.
enum RequestFailure {
    /// An error response.
    Response(Response),
    /// No response within the client's retries; the text of the last error.
    NoResponse(String),
}

impl TenantClient {
    async fn run(mut self) -> ClientOutcomes {
        let control = self.control.clone();
        let progress = &control.progress[self.number];
        let mut number = 0;
        while !control.stop.load(Ordering::Relaxed) {
            control.wait_while_paused().await;
            let requested_checks = control.requested_checks.load(Ordering::SeqCst);
            if requested_checks > progress.checks.load(Ordering::SeqCst) {
                self.check_all_scrolls().await;
                progress.checks.store(requested_checks, Ordering::SeqCst);
            }
            let scroll = number % SCROLLS;
            if number % WRITE_EVERY == 0 {
                self.write(scroll, &format!("text-{number}")).await;
            } else {
                self.read(scroll).await;
            }
            number += 1;
            progress.requests.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(PAUSE).await;
        }
        self.check_all_scrolls().await;
        self.outcomes
    }

    /// Reads all scrolls. A wrong text found here counts as a lost write.
    async fn check_all_scrolls(&mut self) {
        let wrong_before = self.outcomes.wrong_reads;
        for scroll in 0..SCROLLS {
            self.read(scroll).await;
        }
        self.outcomes.lost_writes += self.outcomes.wrong_reads - wrong_before;
        self.outcomes.wrong_reads = wrong_before;
    }

    /// Sends a request and returns the body of its response. An idempotent request is retried even
    /// if it may have reached SQ.
    async fn send(&mut self, path: &str, is_idempotent: bool) -> Result<String, RequestFailure> {
        let start = Instant::now();
        let result = loop {
            self.outcomes.requests += 1;
            let error = match self.client.get(path).await {
                Ok(response) if response.ok() => break Ok(response.text()),
                Ok(response) => break Err(RequestFailure::Response(response)),
                Err(error) => error,
            };
            self.outcomes.unanswered += 1;
            let may_retry = is_idempotent || was_never_sent(&error);
            if !may_retry || start.elapsed() > PATIENCE {
                break Err(RequestFailure::NoResponse(format!("{error:#}")));
            }
            tokio::time::sleep(PAUSE).await;
        };
        self.outcomes.longest = self.outcomes.longest.max(start.elapsed());
        result
    }

    async fn write(&mut self, number: u64, text: &str) {
        let path = format!("/api/v2/update?{}&s={text}", scroll_query(number));
        self.scroll(number).record_write(text, Instant::now());
        match self.send(&path, false).await {
            Ok(_) => self.scroll(number).acknowledge(Instant::now()),
            Err(RequestFailure::Response(response)) if response.status == 507 => {
                self.outcomes.refused_writes += 1;
                self.scroll(number).remove_refused();
            }
            Err(RequestFailure::Response(response)) => {
                self.outcomes.failed_writes += 1;
                if !response.header("content-type").contains("problem+json") {
                    self.outcomes.silent_writes += 1;
                }
                self.add_error(&format!("{path}: {} {}", response.status, response.text()));
            }
            Err(RequestFailure::NoResponse(error)) => {
                self.outcomes.failed_writes += 1;
                self.outcomes.silent_writes += 1;
                self.add_error(&error);
            }
        }
    }

    async fn read(&mut self, number: u64) {
        let path = format!("/api/v2/select?{}", scroll_query(number));
        match self.send(&path, true).await {
            Ok(text) => self.check_read(number, &text),
            Err(RequestFailure::Response(response)) => {
                self.outcomes.failed_reads += 1;
                self.add_error(&format!("{path}: {} {}", response.status, response.text()));
            }
            Err(RequestFailure::NoResponse(error)) => {
                self.outcomes.failed_reads += 1;
                self.add_error(&error);
            }
        }
    }

    fn check_read(&mut self, number: u64, text: &str) {
        let fault = self.control.fault();
        let expected = self.scroll(number).expected();
        match self.scroll(number).check_read(text, fault) {
            ReadCheck::Expected => {}
            ReadCheck::LostInWindow(writes) => self.outcomes.lost_in_window += writes,
            ReadCheck::Unexpected => {
                self.outcomes.wrong_reads += 1;
                self.add_error(&format!("scroll {number} is {text:?}, expected {expected}"));
            }
        }
    }

    /// Records an error with the time since the last fault, which points to its cause.
    fn add_error(&mut self, text: &str) {
        let time = match self.control.fault() {
            None => "before any fault".to_owned(),
            Some(fault) => format!("{} ms after the fault", fault.begun.elapsed().as_millis()),
        };
        self.outcomes.add_error(format!("{time}: {text}"));
    }

    fn scroll(&mut self, number: u64) -> &mut ScrollHistory {
        let index = usize::try_from(number).unwrap_or_default();
        &mut self.scrolls[index]
    }
}

/// Formats the phext and coordinate of a scroll as query parameters.
fn scroll_query(number: u64) -> String {
    format!("p=drill&c=1.1.1/1.1.1/1.1.{}", number + 1)
}

/// Returns whether the connection failed, so that the request cannot have reached Envoy.
fn was_never_sent(error: &anyhow::Error) -> bool {
    error
        .chain()
        .find_map(|cause| cause.downcast_ref::<legacy::Error>())
        .is_some_and(legacy::Error::is_connect)
}
