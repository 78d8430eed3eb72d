//! Constant load in the background, with a summary of what its clients saw.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::client::response::Response;

/// Errors whose text is kept; further ones are only counted.
const MAX_ERROR_TEXTS: usize = 5;

/// A load that runs until [`Load::finish`]. Dropping it aborts it.
pub struct Load {
    stop: Arc<AtomicBool>,
    counters: Arc<Counters>,
    tasks: JoinSet<()>,
}

#[derive(Default)]
struct Counters {
    requests: AtomicU64,
    errors: AtomicU64,
    longest_us: AtomicU64,
    first_errors: Mutex<Vec<String>>,
}

/// Summary of a load, as its clients saw it.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Number of completed requests, errors included.
    pub requests: u64,
    /// Number of requests that failed or got a status other than 200.
    pub errors: u64,
    /// Duration of the slowest request.
    pub longest: Duration,
    /// Texts of the first errors.
    pub first_errors: Vec<String>,
}

impl Load {
    /// Starts `clients` tasks that each call `request` repeatedly, with `pause` between two calls.
    /// The arguments of `request` are the number of the client and of its request.
    pub fn start<F, Fut>(clients: u64, pause: Duration, request: F) -> Self
    where
        F: Fn(u64, u64) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Response>> + Send,
    {
        let stop = Arc::new(AtomicBool::new(false));
        let counters = Arc::new(Counters::default());
        let request = Arc::new(request);
        let mut tasks = JoinSet::new();
        for client in 0..clients {
            let stop = stop.clone();
            let counters = counters.clone();
            let request = request.clone();
            tasks.spawn(async move {
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    let result = request(client, number).await;
                    counters.record(start.elapsed(), result);
                    number += 1;
                    tokio::time::sleep(pause).await;
                }
            });
        }
        Self { stop, counters, tasks }
    }

    /// Number of requests completed so far.
    pub fn requests(&self) -> u64 {
        self.counters.requests.load(Ordering::Relaxed)
    }

    /// Waits for the requests in flight and returns the summary.
    pub async fn finish(mut self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        Outcome {
            requests: self.requests(),
            errors: self.counters.errors.load(Ordering::Relaxed),
            longest: Duration::from_micros(self.counters.longest_us.load(Ordering::Relaxed)),
            first_errors: self.counters.first_errors.lock().clone(),
        }
    }
}

impl Counters {
    fn record(&self, elapsed: Duration, result: Result<Response>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let elapsed_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        self.longest_us.fetch_max(elapsed_us, Ordering::Relaxed);
        let Err(error) = result.and_then(Response::expect_ok) else { return };
        self.errors.fetch_add(1, Ordering::Relaxed);
        let mut first_errors = self.first_errors.lock();
        if first_errors.len() < MAX_ERROR_TEXTS {
            first_errors.push(format!("{error:#}"));
        }
    }
}
