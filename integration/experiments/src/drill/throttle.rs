//! One tenant at full throttle within its limits, and what another tenant sees of it.
//!
//! ```text
//! neighbour: one request after the other, on two connections
//!   quiet phase ───────► loud phase: five connections of a loud tenant at its full rate
//! ```
//!
//! Each attack has another tenant, because its cost is still owed when the next attack begins.

use std::fmt::Write as _;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use harness::client::FIRST_SCROLL;
use harness::{Client, Http, Response, Runtime, Stack, StackBuilder, Tier};
use tokio::task::JoinSet;

use crate::bench::percentile;
use crate::columns::Columns;

/// The title of the drill.
pub const TITLE: &str = "one tenant at full throttle";
/// Largest ratio of the neighbour's 99th percentile to its quiet value that meets the goal.
pub const RATIO_MAX: f64 = 3.0;
/// Shortest 99th percentile that can miss the goal: below it, a ratio measures the host's scheduler.
pub const NOISE: Duration = Duration::from_millis(5);

const NEIGHBOUR: &str = "neighbour";
const TIER: &str = "loud";
const CONNECTIONS: u64 = 5;
/// The loud tenant's sustained rate and burst: those of the free tier.
const RATE: u64 = 10;
const BURST: u64 = 50;
/// Time between two requests of one connection at the full rate.
const PAUSE: Duration = Duration::from_millis(1_000 * CONNECTIONS / RATE);
/// Pause of the neighbour between two requests.
const NEIGHBOUR_PAUSE: Duration = Duration::from_millis(5);

/// What the loud tenant does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    /// Exports control bytes, six bytes of JSON for each.
    JsonExport,
    /// Compares 33,000 scrolls.
    Delta,
    /// Asks for the coordinate of a long text.
    Where,
    /// Lists 25 MB of small scrolls.
    Toc,
    /// Inserts one byte into a full phext.
    Insert,
    /// Downloads a full phext.
    Download,
}

/// The neighbour's latencies in both phases, and what the loud tenant got.
#[derive(Debug, Clone)]
pub struct Neighbourhood {
    /// Latencies without the loud tenant.
    pub quiet: Vec<Duration>,
    /// Latencies beside the loud tenant.
    pub loud: Vec<Duration>,
    /// Requests of the loud tenant that were served.
    pub served: u64,
    /// Requests of the loud tenant that were refused with 429.
    pub refused: u64,
    /// Bytes of the responses to the loud tenant.
    pub bytes: u64,
}

impl Attack {
    /// All attacks, in the order in which they run.
    pub const ALL: [Self; 6] =
        [Self::JsonExport, Self::Delta, Self::Where, Self::Toc, Self::Insert, Self::Download];

    fn title(self) -> &'static str {
        match self {
            Self::JsonExport => "json-export of control bytes",
            Self::Delta => "delta of 33,000 scrolls",
            Self::Where => "where with 1.9 MB",
            Self::Toc => "toc of 25 MB",
            Self::Insert => "insert into 3.9 MB",
            Self::Download => "get of 3.9 MB",
        }
    }

    fn tenant(self) -> &'static str {
        match self {
            Self::JsonExport => "loud-export",
            Self::Delta => "loud-delta",
            Self::Where => "loud-where",
            Self::Toc => "loud-toc",
            Self::Insert => "loud-insert",
            Self::Download => "loud-get",
        }
    }

    fn phext(self) -> Vec<u8> {
        match self {
            Self::JsonExport => vec![0x02; 3_800_000],
            Self::Delta => scrolls(33_000),
            Self::Where => b"text".to_vec(),
            Self::Toc => scrolls(1_190_000),
            Self::Insert | Self::Download => vec![b'x'; 3_900_000],
        }
    }

    fn request(self) -> Request {
        match self {
            Self::JsonExport => Request::get("json-export?p=loud".to_owned()),
            Self::Toc => Request::get("toc?p=loud".to_owned()),
            Self::Download => Request::get("get?p=loud".to_owned()),
            Self::Insert => Request::get(format!("insert?p=loud&{FIRST_SCROLL}&s=x")),
            Self::Delta => Request { path: "delta?p=loud".to_owned(), body: Some(lines(33_000)) },
            Self::Where => Request {
                path: "where?p=loud".to_owned(),
                body: Some(vec![b'x'; 1_900_000].into()),
            },
        }
    }
}

#[derive(Debug, Clone)]
struct Request {
    path: String,
    body: Option<Bytes>,
}

impl Request {
    fn get(path: String) -> Self {
        Self { path, body: None }
    }

    async fn send(&self, client: &Client) -> Result<Response> {
        let path = format!("/api/v2/{}", self.path);
        match &self.body {
            Some(body) => client.post(&path, body.clone()).await,
            None => client.get(&path).await,
        }
    }
}

/// The coordinate of scroll `number`, counted in order from 0: 999 scrolls to a section, 999 sections
/// to a chapter.
fn coordinate(number: u32) -> [u32; 3] {
    [number / 999 / 999 + 1, number / 999 % 999 + 1, number % 999 + 1]
}

/// A phext of scrolls of 20 bytes.
fn scrolls(count: u32) -> Vec<u8> {
    let mut phext = Vec::new();
    for number in 0..count {
        if number > 0 {
            let [_, section, scroll] = coordinate(number);
            phext.push(match (section, scroll) {
                (1, 1) => 0x19,
                (_, 1) => 0x18,
                _ => 0x17,
            });
        }
        phext.extend_from_slice(b"twenty bytes of text");
    }
    phext
}

/// The body of a `delta` that names each scroll with a checksum that differs.
fn lines(count: u32) -> Bytes {
    let mut text = String::new();
    for number in 0..count {
        let [chapter, section, scroll] = coordinate(number);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "1.1.1/1.1.1/{chapter}.{section}.{scroll}: {number:032x}");
    }
    text.into()
}

/// The stack of the drill: a neighbour without limits, and a tenant with those of the free tier for
/// each attack. The quotas are lifted, because a drill takes a minute and a quota ends a day.
pub fn stack() -> StackBuilder {
    let tier = Tier::new(TIER)
        .set("requests-per-s", RATE)
        .set("burst", BURST)
        .set("storage", "60 MB")
        .set("memory", "512 MiB")
        .set("phext-max", "4 MB")
        .set("body-max", "2 MB")
        .set("requests-per-day", "unlimited")
        .set("requests-per-month", "unlimited")
        .set("writes-per-day", "unlimited")
        .set("egress-per-day", "unlimited");
    let builder = Stack::builder().workers(2).tier(tier).tenant(NEIGHBOUR);
    Attack::ALL
        .iter()
        .fold(builder, |builder, attack| builder.tenant_in_tier(attack.tenant(), TIER))
}

/// Runs one attack on a stack from [`stack`]. Each phase takes `phase`.
pub async fn run_attack(stack: &Stack, attack: Attack, phase: Duration) -> Result<Neighbourhood> {
    write_phext(stack, attack)?;
    // Both are awake before anything is measured.
    let neighbour = stack.tenant(NEIGHBOUR)?;
    neighbour.update("index", "text").await?.expect_ok()?;
    let loud = stack.tenant(attack.tenant())?;
    loud.toc("index").await?.expect_ok()?;
    let quiet = measure(stack, phase).await?;
    let attacker = Arc::new(LoudTenant::default());
    let mut tasks = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let client = stack.client(Http::One)?.key(stack.key(attack.tenant())?);
        tasks.spawn(attacker.clone().run(client, attack.request()));
    }
    let loud = measure(stack, phase).await?;
    attacker.stop.store(true, Ordering::Relaxed);
    // Responses in flight may take long. Only the earlier ones count.
    tasks.abort_all();
    while tasks.join_next().await.is_some() {}
    let [served, refused, bytes] = attacker.counts();
    if let Some(failure) = attacker.failure().take() {
        bail!("a request of the loud tenant failed: {failure}");
    }
    ensure!(served + refused > 0, "the loud tenant got no response");
    Ok(Neighbourhood { quiet, loud, served, refused, bytes })
}

/// Writes the loud tenant's phext before its SQ starts: some attacks need one that takes days to
/// write within the limits.
fn write_phext(stack: &Stack, attack: Attack) -> Result<()> {
    let folder = stack.orchestrator.data().join(attack.tenant());
    fs::create_dir_all(&folder)?;
    let file = folder.join("loud.phext");
    // The start of SQ gives both to the tenant's user.
    fs::write(&file, attack.phext())?;
    Ok(())
}

/// What the loud tenant got so far.
#[derive(Default)]
struct LoudTenant {
    stop: AtomicBool,
    served: AtomicU64,
    refused: AtomicU64,
    bytes: AtomicU64,
    /// The first response that is neither the phext's nor a refusal for load.
    failure: Mutex<Option<String>>,
}

impl LoudTenant {
    /// Empties the bucket, then sends one request per [`PAUSE`].
    async fn run(self: Arc<Self>, client: Client, request: Request) {
        let mut is_empty = false;
        while !self.stop.load(Ordering::Relaxed) {
            let start = Instant::now();
            match request.send(&client).await {
                Ok(response) if response.ok() => {
                    self.served.fetch_add(1, Ordering::Relaxed);
                    let bytes = u64::try_from(response.body.len()).unwrap_or(u64::MAX);
                    self.bytes.fetch_add(bytes, Ordering::Relaxed);
                }
                Ok(response) if response.status == 429 => {
                    is_empty = true;
                    self.refused.fetch_add(1, Ordering::Relaxed);
                }
                // SQ serves a slow request for longer than others wait for it.
                Ok(response) if matches!(response.status, 503 | 504) => {
                    is_empty = true;
                    self.refused.fetch_add(1, Ordering::Relaxed);
                }
                Ok(response) => {
                    self.failure().get_or_insert(response.text());
                }
                Err(error) => {
                    self.failure().get_or_insert(format!("{error:#}"));
                }
            }
            if is_empty {
                tokio::time::sleep(PAUSE.saturating_sub(start.elapsed())).await;
            }
        }
    }

    fn failure(&self) -> MutexGuard<'_, Option<String>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counts(&self) -> [u64; 3] {
        [&self.served, &self.refused, &self.bytes].map(|counter| counter.load(Ordering::Relaxed))
    }
}

/// Sends the neighbour's requests for a time, reads and writes in turn. Returns their latencies.
async fn measure(stack: &Stack, phase: Duration) -> Result<Vec<Duration>> {
    let mut tasks = JoinSet::new();
    for number in 0..2 {
        let client = stack.client(Http::Two)?.key(stack.key(NEIGHBOUR)?);
        tasks.spawn(async move {
            let phext = format!("phext-{number}");
            client.update(&phext, "text").await?.expect_ok()?;
            let mut times = Vec::new();
            let begin = Instant::now();
            while begin.elapsed() < phase {
                let start = Instant::now();
                if times.len().is_multiple_of(2) {
                    client.select(&phext).await?.expect_ok()?;
                } else {
                    client.update(&phext, "text").await?.expect_ok()?;
                }
                times.push(start.elapsed());
                tokio::time::sleep(NEIGHBOUR_PAUSE).await;
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(task) = tasks.join_next().await {
        times.extend(task??);
    }
    Ok(times)
}

impl Neighbourhood {
    /// A percentile of the neighbour's latencies, quiet and loud.
    pub fn percentile(&self, percent: usize) -> [Duration; 2] {
        [&self.quiet, &self.loud].map(|times| percentile(times, percent).unwrap_or_default())
    }

    /// The factor by which the loud tenant has lengthened a percentile.
    pub fn ratio(&self, percent: usize) -> f64 {
        let [quiet, loud] = self.percentile(percent);
        loud.as_secs_f64() / quiet.max(Duration::from_micros(1)).as_secs_f64()
    }

    fn meets_goal(&self) -> bool {
        self.ratio(99) <= RATIO_MAX || self.percentile(99)[1] <= NOISE
    }
}

/// Runs all attacks and prints the table. Returns the attacks that missed the goal.
pub(super) async fn run(runtime: Runtime, quick: bool) -> Result<Vec<String>> {
    let phase = Duration::from_secs(if quick { 3 } else { 15 });
    let columns = Columns::new(
        34,
        ["p50 quiet", "p50 loud", "p99 quiet", "p99 loud", "ratio", "served", "refused", "MB/s"],
    );
    println!("{}", columns.heading(TITLE));
    let mut missed = Vec::new();
    for attack in Attack::ALL {
        let stack = stack().runtime(runtime).start().await?;
        let result = run_attack(&stack, attack, phase).await;
        let outcome =
            result.with_context(|| format!("{}\n{}", attack.title(), stack.log_tails()))?;
        let ms = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1e3);
        let [[p50_quiet, p50_loud], [p99_quiet, p99_loud]] =
            [50, 99].map(|percent| outcome.percentile(percent).map(ms));
        #[allow(clippy::cast_precision_loss)] // far below 2^52
        let mb_per_s = outcome.bytes as f64 / 1e6 / phase.as_secs_f64();
        let cells = [
            p50_quiet,
            p50_loud,
            p99_quiet,
            p99_loud,
            format!("{:.1}", outcome.ratio(99)),
            outcome.served.to_string(),
            outcome.refused.to_string(),
            format!("{mb_per_s:.1}"),
        ];
        let met = if outcome.meets_goal() { "met" } else { "MISSED" };
        println!("{}  {met}", columns.row(attack.title(), &cells));
        if !outcome.meets_goal() {
            missed.push(format!("{TITLE}: {}: p99 × {:.1}", attack.title(), outcome.ratio(99)));
        }
    }
    println!("goal: p99 of the other tenant at most {RATIO_MAX} × its quiet value, or {NOISE:?}");
    Ok(missed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phext_has_its_scrolls_in_order() {
        let phext = scrolls(1_000);
        assert_eq!(phext.split(|byte| *byte == 0x17).count() - 1, 998);
        assert_eq!(phext.split(|byte| *byte == 0x18).count() - 1, 1);
        assert_eq!(coordinate(999), [1, 2, 1]);
        assert_eq!(lines(1_000).split(|byte| *byte == b'\n').count() - 1, 1_000);
    }
}
