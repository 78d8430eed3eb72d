//! The load: requests of every kind in fixed proportions, sent by clients that count the outcomes.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hyper::Method;
use tokio::task::JoinSet;

use harness::client::raw::Raw;
use harness::{Client, Http, Stack, StackBuilder, Tier, until};

/// Longest wait for more requests: for half a minute they may get 503 because no orchestrator runs.
const PATIENCE: Duration = Duration::from_mins(3);
/// Concurrent clients.
const CLIENTS: u64 = 8;
/// Tenants that the clients share.
const TENANTS: u64 = 4;
/// A tenant with a small bucket, so that many of its requests are refused.
const LIMITED: &str = "limited";

/// Adds the tenants of the workload to a stack.
pub(super) fn add_tenants(builder: StackBuilder) -> StackBuilder {
    let builder = (1..=TENANTS).fold(builder, |builder, n| builder.tenant(&format!("t{n}")));
    builder
        .tier(Tier::new("few").set("burst", 5).set("requests-per-s", 2))
        .tenant_in_tier(LIMITED, "few")
}

/// Requests by their outcome.
#[derive(Debug, Clone, Default)]
pub(super) struct RequestCounts {
    /// Requests of tenants that were answered.
    pub(super) answered: u64,
    /// Requests of tenants that were not answered.
    pub(super) unanswered: u64,
    /// Answered requests that belong to no tenant and are billed to none.
    pub(super) unattributed: u64,
    /// The end of each request of a tenant, and whether it ended with a response.
    ends: Vec<(Instant, bool)>,
}

impl RequestCounts {
    fn add(&mut self, other: Self) {
        self.answered += other.answered;
        self.unanswered += other.unanswered;
        self.unattributed += other.unattributed;
        self.ends.extend(other.ends);
    }

    /// Subtracts earlier counts. The result has no times of ends.
    #[must_use]
    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            answered: self.answered - before.answered,
            unanswered: self.unanswered - before.unanswered,
            unattributed: self.unattributed - before.unattributed,
            ends: Vec::new(),
        }
    }

    /// Counts the tenants' requests that ended in this interval.
    pub(super) fn ended_between(&self, from: Instant, to: Instant) -> u64 {
        self.ends.iter().filter(|(at, _)| (from..=to).contains(at)).count() as u64
    }

    /// Counts the tenants' requests that ended without a response at or after `from`.
    pub(super) fn unanswered_since(&self, from: Instant) -> u64 {
        self.ends.iter().filter(|(at, answered)| *at >= from && !answered).count() as u64
    }
}

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Read,
    Write,
    Delete,
    /// Refused because there is no such endpoint.
    UnknownEndpoint,
    /// Refused because of an invalid parameter.
    InvalidParameter,
    /// Often refused because the tenant's bucket is small.
    RateLimited,
    /// Sent by a client that disconnects at once.
    Disconnected,
    // The following requests belong to no tenant.
    Keyless,
    UnknownKey,
    Usage,
    Preflight,
}

/// One round of operations, in the proportions of the load.
const ROUND: [Operation; 20] = [
    Operation::Read,
    Operation::Read,
    Operation::Write,
    Operation::Keyless,
    Operation::Read,
    Operation::UnknownEndpoint,
    Operation::Read,
    Operation::RateLimited,
    Operation::Write,
    Operation::Usage,
    Operation::Read,
    Operation::Read,
    Operation::Delete,
    Operation::UnknownKey,
    Operation::Read,
    Operation::InvalidParameter,
    Operation::Read,
    Operation::Disconnected,
    Operation::Write,
    Operation::Preflight,
];

impl Operation {
    fn belongs_to_no_tenant(self) -> bool {
        matches!(self, Self::Keyless | Self::UnknownKey | Self::Usage | Self::Preflight)
    }

    fn path(self, number: u64) -> String {
        let scroll = format!("p=book&c=1.1.1/1.1.1/1.1.{}", number % 9 + 1);
        match self {
            Self::Write => format!("/api/v2/update?{scroll}&s=text-{number}"),
            Self::Delete => format!("/api/v2/delete?{scroll}"),
            Self::UnknownEndpoint => "/api/v2/nonsense".to_owned(),
            Self::InvalidParameter => "/api/v2/select?p=book&c=0".to_owned(),
            Self::Usage => "/api/v2/usage".to_owned(),
            _ => format!("/api/v2/select?{scroll}"),
        }
    }
}

/// Concurrent clients that send [`ROUND`] repeatedly.
pub(super) struct Workload {
    stop: Arc<AtomicBool>,
    requests: Arc<AtomicU64>,
    tasks: JoinSet<RequestCounts>,
    counts: RequestCounts,
}

impl Workload {
    /// Starts the clients and waits for their first requests, which wake every tenant.
    pub(super) async fn start(stack: &Stack) -> Result<Self> {
        let mut workload = Self {
            stop: Arc::default(),
            requests: Arc::default(),
            tasks: JoinSet::new(),
            counts: RequestCounts::default(),
        };
        workload.resume(stack)?;
        workload.wait_for(CLIENTS).await?;
        Ok(workload)
    }

    /// Continues after [`Workload::pause`], with new connections.
    pub(super) fn resume(&mut self, stack: &Stack) -> Result<()> {
        self.stop.store(false, Ordering::Relaxed);
        for number in 0..CLIENTS {
            let http = if number % 2 == 0 { Http::One } else { Http::Two };
            let client = WorkloadClient {
                client: stack.client(http)?,
                key: stack.key(&format!("t{}", number % TENANTS + 1))?.to_owned(),
                limited_key: stack.key(LIMITED)?.to_owned(),
                port: stack.listen.https,
                ca: stack.certs.ca(),
                number,
            };
            self.tasks.spawn(client.run(self.stop.clone(), self.requests.clone()));
        }
        Ok(())
    }

    /// Waits until the clients have sent this number of further requests.
    pub(super) async fn wait_for(&self, requests: u64) -> Result<()> {
        let enough = self.requests.load(Ordering::Relaxed) + requests;
        until("more requests", PATIENCE, || async {
            (self.requests.load(Ordering::Relaxed) >= enough).then_some(())
        })
        .await
    }

    /// Stops the clients after their current requests. Returns the counts since the start.
    pub(super) async fn pause(&mut self) -> Result<RequestCounts> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(counts) = self.tasks.join_next().await {
            self.counts.add(counts.context("a client failed")?);
        }
        Ok(self.counts.clone())
    }
}

struct WorkloadClient {
    client: Client,
    key: String,
    limited_key: String,
    port: u16,
    ca: PathBuf,
    number: u64,
}

impl WorkloadClient {
    async fn run(self, stop: Arc<AtomicBool>, requests: Arc<AtomicU64>) -> RequestCounts {
        let mut counts = RequestCounts::default();
        // Clients begin at different operations of the round.
        let mut number = self.number * 3;
        while !stop.load(Ordering::Relaxed) {
            let index = usize::try_from(number).unwrap_or_default() % ROUND.len();
            let operation = ROUND[index];
            let answered = self.send(operation, number).await.is_ok_and(|answered| answered);
            if operation.belongs_to_no_tenant() {
                counts.unattributed += u64::from(answered);
            } else {
                counts.answered += u64::from(answered);
                counts.unanswered += u64::from(!answered);
                counts.ends.push((Instant::now(), answered));
            }
            number += 1;
            requests.fetch_add(1, Ordering::Relaxed);
        }
        counts
    }

    /// Sends one request. Returns whether there was a response.
    async fn send(&self, operation: Operation, number: u64) -> Result<bool> {
        let path = operation.path(number);
        if operation == Operation::Disconnected {
            return self.send_and_disconnect(&path).await.map(|()| false);
        }
        // A hundred requests have the same unknown key, so that some hit the negative cache.
        let unknown_key = format!("pmb-v1-{:032x}", number / 100);
        let key = match operation {
            Operation::Keyless | Operation::Preflight => None,
            Operation::UnknownKey => Some(unknown_key.as_str()),
            Operation::RateLimited => Some(self.limited_key.as_str()),
            _ => Some(self.key.as_str()),
        };
        let mut headers: Vec<(&str, &str)> = key.iter().map(|k| ("authorization", *k)).collect();
        let mut method = Method::GET;
        if operation == Operation::Preflight {
            method = Method::OPTIONS;
            headers.push(("origin", "https://notepad.example"));
            headers.push(("access-control-request-method", "GET"));
        }
        self.client.send(method, &path, &headers, "".into()).await?;
        Ok(true)
    }

    /// Sends a complete request and closes the connection without reading.
    async fn send_and_disconnect(&self, path: &str) -> Result<()> {
        let mut connection = Raw::connect(self.port, &self.ca).await?;
        let key = &self.key;
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: {key}\r\n\r\n");
        connection.write(request.as_bytes()).await
    }
}
