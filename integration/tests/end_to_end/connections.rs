//! What connections do to SQ alone, and what the gateway makes of the same.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use experiments::proof;
use harness::bare_sq::{BareSq, exchange, request};
use harness::client::raw::Raw;
use harness::{Stack, StackBuilder};
use tokio::io::AsyncWriteExt as _;

use crate::alone::{
    AT, BOTH, NEW, OLD, PATIENCE, alone, alone_0_5_0, deaths, row, sq, status, stored, through,
};
use crate::refusals::MAIN;
use crate::world::{Case, On, case};

/// Longest that a client that asks beside another is waited for, before SQ counts as wedged.
const WEDGED: Duration = Duration::from_secs(2);
/// A phext that no buffer of the kernel's takes whole.
const LARGE: usize = 3_000_000;
/// As much address space as 64 MiB of memory, nearly.
const SMALL_KB: u64 = 60_000;
/// What 64 MiB can't hold, and SQ 0.6.0 reads before it asks for a key.
const BODY: usize = 60_000_000;
/// More than a small address space has room for their threads' stacks.
const MANY: usize = 300;

fn roomy_0_5_0() -> StackBuilder {
    Stack::builder().sq(OLD).tier(proof::tier("roomy", 256)).tenant_in_tier("alice", "roomy")
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(On::Own(alone_0_5_0), sq_alone_dies_of_a_port_scan),
        case!(On::Own(alone_0_5_0), sq_alone_hangs_on_an_idle_connection),
        case!(On::Own(roomy_0_5_0), sq_alone_hangs_on_a_slow_reader),
        case!(MAIN, sq_alone_dies_of_a_body_without_a_key),
        case!(On::Own(alone), sq_alone_dies_of_more_connections_than_threads),
    ]
}

/// What a connection does before it is gone.
#[derive(Debug, Clone, Copy)]
enum Scan {
    Nothing,
    Reset,
    TlsHello,
    HalfAHead,
}

impl Scan {
    const ALL: [Self; 4] = [Self::Nothing, Self::Reset, Self::TlsHello, Self::HalfAHead];

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "connect and close",
            Self::Reset => "RST",
            Self::TlsHello => "TLS hello",
            Self::HalfAHead => "half a head",
        }
    }

    async fn run(self, port: u16) -> Result<()> {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
        match self {
            Self::Nothing => {}
            Self::Reset => stream.set_zero_linger()?,
            Self::TlsHello => {
                stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await?;
            }
            Self::HalfAHead => stream.write_all(b"GET /api/v2/toc?p=a HTT").await?,
        }
        Ok(())
    }
}

async fn sq_alone_dies_of_a_port_scan(stack: Arc<Stack>) -> Result<()> {
    ensure!(stored(&stack, "a").await?.is_empty(), "a first read");
    for scan in Scan::ALL {
        let mut alone = sq(|| BareSq::start(OLD)).await?;
        scan.run(alone.address().port()).await?;
        let exit = sq(move || Ok(alone.ended(PATIENCE))).await?;
        let exit = exit.with_context(|| format!("SQ survives: {}", scan.name()))?;
        for _ in 0..50 {
            scan.run(stack.listen.https).await?;
        }
        ensure!(stored(&stack, "a").await?.is_empty(), "a read");
        ensure!(deaths(&stack).await? == 0, "{} reached SQ", scan.name());
        row(
            "sq_alone_dies_of_a_port_scan",
            scan.name(),
            OLD,
            &exit.to_string(),
            "50 of them: not noticed",
        );
    }
    Ok(())
}

/// Has `hold` keep SQ alone busy; whether others are answered meanwhile, and how SQ ends when it lets
/// go.
fn wedged(sq: &mut BareSq, hold: impl FnOnce(&mut TcpStream) -> Result<()>) -> Result<String> {
    let mut stream = TcpStream::connect(sq.address())?;
    hold(&mut stream)?;
    let asked = exchange(sq.address(), &request("GET", "/api/v2/toc?p=a", None), WEDGED);
    ensure!(asked.is_err(), "SQ answers beside it");
    drop(stream);
    let exit = sq.ended(PATIENCE).context("SQ survives its end")?;
    Ok(format!("no answer for anybody, then {exit}"))
}

async fn sq_alone_hangs_on_an_idle_connection(stack: Arc<Stack>) -> Result<()> {
    let said = sq(|| wedged(&mut BareSq::start(OLD)?, |_| Ok(()))).await?;
    let mut idle = Vec::new();
    for _ in 0..50 {
        idle.push(Raw::connect(stack.listen.https, &stack.certs.ca()).await?);
    }
    stack.tenant("alice")?.get("/api/v2/toc?p=a").await?.expect_ok()?;
    drop(idle);
    stack.tenant("alice")?.get("/api/v2/toc?p=a").await?.expect_ok()?;
    ensure!(deaths(&stack).await? == 0, "SQ died");
    row(
        "sq_alone_hangs_on_an_idle_connection",
        "one idle connection",
        OLD,
        &said,
        "50 of them: not noticed",
    );
    Ok(())
}

async fn sq_alone_hangs_on_a_slow_reader(stack: Arc<Stack>) -> Result<()> {
    let said = sq(|| {
        let mut sq = BareSq::start(OLD)?;
        let path = format!("/api/v2/update?p=a&{AT}");
        sq.send("POST", &path, Some(&vec![b'x'; 2 * LARGE]))?;
        wedged(&mut sq, |stream| {
            stream.write_all(&request("GET", "/api/v2/get?p=a", None))?;
            // It has begun to answer.
            Ok(stream.read_exact(&mut [0; 100])?)
        })
    })
    .await?;
    let alice = stack.tenant("alice")?;

    alice.post(&format!("/api/v2/update?p=a&{AT}"), "x".repeat(LARGE)).await?.expect_ok()?;
    let mut slow = Vec::new();
    for _ in 0..5 {
        let mut raw = Raw::connect(stack.listen.https, &stack.certs.ca()).await?;
        let head = "GET /api/v2/get?p=a HTTP/1.1\r\nhost: x\r\nauthorization: KEY\r\n\r\n";
        raw.write(head.replace("KEY", stack.key("alice")?).as_bytes()).await?;
        raw.read_some(100).await?;
        slow.push(raw);
    }
    let read = tokio::time::timeout(WEDGED, alice.get("/api/v2/toc?p=b")).await;
    ensure!(read.context("slow readers hold up others")??.ok(), "a read");
    drop(slow);
    alice.get("/api/v2/toc?p=b").await?.expect_ok()?;
    ensure!(deaths(&stack).await? == 0, "SQ died");
    row(
        "sq_alone_hangs_on_a_slow_reader",
        "slow reader, client abort",
        OLD,
        &said,
        "5 of them: others are answered",
    );
    Ok(())
}

async fn sq_alone_dies_of_a_body_without_a_key(stack: Arc<Stack>) -> Result<()> {
    for version in BOTH {
        let exit = sq(move || {
            let mut sq = BareSq::start_with_memory_limit(version, SMALL_KB)?;
            let mut stream = TcpStream::connect(sq.address())?;
            let head = "POST /api/v2/update?p=a HTTP/1.1\r\nhost: x\r\n";
            write!(stream, "{head}content-length: {BODY}\r\n\r\n")?;
            // It may end before it has read all.
            let _ = stream.write_all(&vec![b'x'; BODY]);
            sq.ended(PATIENCE).with_context(|| format!("SQ {version} survives"))
        })
        .await?;
        let head = format!("POST /api/v2/update?p=a&{AT} HTTP/1.1\r\nhost: x\r\n");
        let bytes = format!("{head}content-length: {BODY}\r\nconnection: close\r\n\r\n");
        let said = through(&stack, &bytes).await?;
        ensure!(said.contains(" 401 "), "{said}");
        row(
            "sq_alone_dies_of_a_body_without_a_key",
            "body of 60 MB without a key",
            version,
            &exit.to_string(),
            &format!("{} before the body", status(&said)),
        );
    }
    Ok(())
}

async fn sq_alone_dies_of_more_connections_than_threads(stack: Arc<Stack>) -> Result<()> {
    let exit = sq(|| {
        let mut sq = BareSq::start_with_memory_limit(NEW, 220_000)?;
        let to = sq.address();
        let idle: Vec<_> = (0..MANY).map_while(|_| TcpStream::connect(to).ok()).collect();
        let exit = sq.ended(PATIENCE).context("SQ has threads for all");
        drop(idle);
        exit
    })
    .await?;
    let mut idle = Vec::new();
    let head = "GET /api/v2/toc?p=a HTTP/1.1\r\nhost: x\r\nauthorization: KEY\r\n\r\n";
    let head = head.replace("KEY", stack.key("alice")?);
    for _ in 0..MANY {
        let mut raw = Raw::connect(stack.listen.https, &stack.certs.ca()).await?;
        raw.write(head.as_bytes()).await?;
        idle.push(raw);
    }
    for raw in &mut idle {
        raw.read_some(100).await?;
    }
    stack.tenant("alice")?.get("/api/v2/toc?p=a").await?.expect_ok()?;
    ensure!(deaths(&stack).await? == 0, "SQ died");
    row(
        "sq_alone_dies_of_more_connections_than_threads",
        "more connections than it can have threads (memory, pids-limit)",
        NEW,
        &exit.to_string(),
        "300 that ask at once: all answered",
    );
    Ok(())
}
