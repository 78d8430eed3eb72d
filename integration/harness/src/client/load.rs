//! Constant load in the background, with what its clients saw.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::JoinSet;

use crate::client::response::Response;

/// Errors that are kept to be shown; the rest is counted.
const ERRORS_KEPT: usize = 5;

/// A load that runs until it is asked for its result. Dropping it ends it.
pub struct Load {
    stop: Arc<AtomicBool>,
    seen: Arc<Seen>,
    tasks: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    requests: AtomicU64,
    errors: AtomicU64,
    longest_us: AtomicU64,
    kept: Mutex<Vec<String>>,
}

/// What the clients of a load saw.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Requests sent and answered, errors included.
    pub requests: u64,
    /// Requests that failed or were answered with anything but 200.
    pub errors: u64,
    /// The longest that one request took.
    pub longest: Duration,
    /// The first errors.
    pub first_errors: Vec<String>,
}

impl Load {
    /// `clients` tasks that each call `request` over and over, `pause` apart. `request` is given
    /// the client's number and the request's number.
    pub fn start<F, Fut>(clients: u64, pause: Duration, request: F) -> Self
    where
        F: Fn(u64, u64) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Response>> + Send,
    {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Seen::default()));
        let request = Arc::new(request);
        let mut tasks = JoinSet::new();
        for client in 0..clients {
            let (stop, seen, request) = (stop.clone(), seen.clone(), request.clone());
            tasks.spawn(async move {
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    let answer = request(client, number).await;
                    seen.note(start.elapsed(), answer);
                    number += 1;
                    tokio::time::sleep(pause).await;
                }
            });
        }
        Self { stop, seen, tasks }
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.seen.requests.load(Ordering::Relaxed)
    }

    /// Lets requests in flight end and tells what was seen.
    pub async fn finish(mut self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        Outcome {
            requests: self.requests(),
            errors: self.seen.errors.load(Ordering::Relaxed),
            longest: Duration::from_micros(self.seen.longest_us.load(Ordering::Relaxed)),
            first_errors: self.seen.kept().clone(),
        }
    }
}

impl Seen {
    fn note(&self, took: Duration, answer: Result<Response>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.longest_us.fetch_max(took, Ordering::Relaxed);
        let error = match answer {
            Ok(answer) if answer.ok() => return,
            Ok(answer) => format!("{} {}", answer.status, answer.text()),
            Err(error) => format!("{error:#}"),
        };
        self.errors.fetch_add(1, Ordering::Relaxed);
        let mut kept = self.kept();
        if kept.len() < ERRORS_KEPT {
            kept.push(error);
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
