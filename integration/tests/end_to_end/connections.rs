//! Connections that kill or block SQ alone, and the gateway's behaviour on the same connections.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use experiments::proof;
use harness::bare_sq::{BareSq, exchange, request};
use harness::client::FIRST_SCROLL;
use harness::client::raw::Raw;
use harness::{Stack, StackBuilder};
use tokio::io::AsyncWriteExt as _;

use crate::shared_stack::MAIN;
use crate::sq_alone::{
    BOTH, NEW, OLD, PATIENCE, Row, blocking, deaths, send_to_gateway, status_line, stored_text,
    with_new_sq, with_old_sq,
};
use crate::suite::{Case, On, case};

/// Time after which SQ counts as blocked if another client has no response.
const BLOCKED_AFTER: Duration = Duration::from_secs(2);
/// Size of a phext that does not fit into the kernel's socket buffers.
const LARGE: usize = 3_000_000;
/// Address space of an SQ with little memory, in KiB: slightly less than 64 MiB.
const SMALL_KB: u64 = 60_000;
/// Size of a body that does not fit into 64 MiB; SQ 0.6.0 reads it before it checks the key.
const BODY: usize = 60_000_000;
/// Connections whose threads' stacks do not fit into a small address space.
const MANY: usize = 300;

fn large_old_sq() -> StackBuilder {
    Stack::builder().sq(OLD).tier(proof::tier("large", 256)).tenant_in_tier("alice", "large")
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(On::Own(with_old_sq), sq_alone_dies_of_a_port_scan),
        case!(On::Own(with_old_sq), sq_alone_hangs_on_an_idle_connection),
        case!(On::Own(large_old_sq), sq_alone_hangs_on_a_slow_reader),
        case!(MAIN, sq_alone_dies_of_an_unauthenticated_body),
        case!(On::Own(with_new_sq), sq_alone_dies_of_more_connections_than_threads),
    ]
}

/// A connection as a port scanner makes it.
#[derive(Debug, Clone, Copy)]
enum Scan {
    ConnectAndClose,
    Reset,
    TlsHello,
    PartialHead,
}

impl Scan {
    const ALL: [Self; 4] = [Self::ConnectAndClose, Self::Reset, Self::TlsHello, Self::PartialHead];

    fn name(self) -> &'static str {
        match self {
            Self::ConnectAndClose => "connect and close",
            Self::Reset => "RST",
            Self::TlsHello => "TLS hello",
            Self::PartialHead => "half a head",
        }
    }

    async fn run(self, port: u16) -> Result<()> {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
        match self {
            Self::ConnectAndClose => {}
            Self::Reset => stream.set_zero_linger()?,
            Self::TlsHello => {
                stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await?;
            }
            Self::PartialHead => stream.write_all(b"GET /api/v2/toc?p=a HTT").await?,
        }
        Ok(())
    }
}

async fn sq_alone_dies_of_a_port_scan(stack: Arc<Stack>) -> Result<()> {
    ensure!(stored_text(&stack, "a").await?.is_empty(), "a new phext is not empty");
    for scan in Scan::ALL {
        let mut sq = blocking(|| BareSq::start(OLD)).await?;
        scan.run(sq.address().port()).await?;
        let exit = blocking(move || Ok(sq.ended(PATIENCE))).await?;
        let exit = exit.with_context(|| format!("SQ survives: {}", scan.name()))?;
        for _ in 0..50 {
            scan.run(stack.listen.https).await?;
        }
        ensure!(stored_text(&stack, "a").await?.is_empty(), "the phext has changed");
        ensure!(deaths(&stack).await? == 0, "{} reached SQ", scan.name());
        Row {
            case: "sq_alone_dies_of_a_port_scan",
            rule: scan.name(),
            sq: OLD,
            alone: &exit.to_string(),
            gateway: "50 of them: no effect",
        }
        .print();
    }
    Ok(())
}

/// Keeps SQ busy with one connection, on which `occupy` sends and reads. Checks that SQ does not
/// respond to a second client and dies when the connection closes, and describes both for the
/// table.
fn block(sq: &mut BareSq, occupy: impl FnOnce(&mut TcpStream) -> Result<()>) -> Result<String> {
    let mut stream = TcpStream::connect(sq.address())?;
    occupy(&mut stream)?;
    let toc = request("GET", "/api/v2/toc?p=a", None);
    let second = exchange(sq.address(), &toc, BLOCKED_AFTER);
    ensure!(second.is_err(), "SQ responds to a second client");
    drop(stream);
    let exit = sq.ended(PATIENCE).context("SQ survives the end of the connection")?;
    Ok(format!("no response for other clients, then {exit}"))
}

async fn sq_alone_hangs_on_an_idle_connection(stack: Arc<Stack>) -> Result<()> {
    let alone = blocking(|| block(&mut BareSq::start(OLD)?, |_| Ok(()))).await?;
    let alice = stack.tenant("alice")?;
    let mut idle = Vec::new();
    for _ in 0..50 {
        idle.push(Raw::connect(stack.listen.https, &stack.certs.ca()).await?);
    }
    alice.toc("a").await?.expect_ok()?;
    drop(idle);
    alice.toc("a").await?.expect_ok()?;
    ensure!(deaths(&stack).await? == 0, "SQ died behind the gateway");
    Row {
        case: "sq_alone_hangs_on_an_idle_connection",
        rule: "one idle connection",
        sq: OLD,
        alone: &alone,
        gateway: "50 of them: no effect",
    }
    .print();
    Ok(())
}

fn hang_on_slow_reader() -> Result<String> {
    let mut sq = BareSq::start(OLD)?;
    let path = format!("/api/v2/update?p=a&{FIRST_SCROLL}");
    sq.send("POST", &path, Some(&vec![b'x'; 2 * LARGE]))?;
    block(&mut sq, |stream| {
        stream.write_all(&request("GET", "/api/v2/get?p=a", None))?;
        // Read until SQ has begun to respond, and no further.
        Ok(stream.read_exact(&mut [0; 100])?)
    })
}

async fn sq_alone_hangs_on_a_slow_reader(stack: Arc<Stack>) -> Result<()> {
    let alone = blocking(hang_on_slow_reader).await?;
    let alice = stack.tenant("alice")?;
    let path = format!("/api/v2/update?p=a&{FIRST_SCROLL}");
    alice.post(&path, "x".repeat(LARGE)).await?.expect_ok()?;
    let head = "GET /api/v2/get?p=a HTTP/1.1\r\nhost: x\r\nauthorization: KEY\r\n\r\n";
    let head = head.replace("KEY", stack.key("alice")?);
    let mut slow = Vec::new();
    for _ in 0..5 {
        let mut raw = Raw::connect(stack.listen.https, &stack.certs.ca()).await?;
        raw.write(head.as_bytes()).await?;
        raw.read_some(100).await?;
        slow.push(raw);
    }
    let other = tokio::time::timeout(BLOCKED_AFTER, alice.toc("b")).await;
    other.context("slow readers block other requests")??.expect_ok()?;
    drop(slow);
    alice.toc("b").await?.expect_ok()?;
    ensure!(deaths(&stack).await? == 0, "SQ died behind the gateway");
    Row {
        case: "sq_alone_hangs_on_a_slow_reader",
        rule: "slow reader, client abort",
        sq: OLD,
        alone: &alone,
        gateway: "5 of them: others get responses",
    }
    .print();
    Ok(())
}

async fn sq_alone_dies_of_an_unauthenticated_body(stack: Arc<Stack>) -> Result<()> {
    for version in BOTH {
        let exit = blocking(move || {
            let mut sq = BareSq::start_with_memory_limit(version, SMALL_KB)?;
            let mut stream = TcpStream::connect(sq.address())?;
            let head = "POST /api/v2/update?p=a HTTP/1.1\r\nhost: x\r\n";
            write!(stream, "{head}content-length: {BODY}\r\n\r\n")?;
            // The write fails if SQ dies before it has read everything.
            let _ = stream.write_all(&vec![b'x'; BODY]);
            sq.ended(PATIENCE).with_context(|| format!("SQ {version} survives"))
        })
        .await?;
        let head = format!("POST /api/v2/update?p=a&{FIRST_SCROLL} HTTP/1.1\r\nhost: x\r\n");
        let bytes = format!("{head}content-length: {BODY}\r\nconnection: close\r\n\r\n");
        let response = send_to_gateway(&stack, &bytes).await?;
        ensure!(response.contains(" 401 "), "{response}");
        Row {
            case: "sq_alone_dies_of_an_unauthenticated_body",
            rule: "body of 60 MB without a key",
            sq: version,
            alone: &exit.to_string(),
            gateway: &format!("{} before the body", status_line(&response)),
        }
        .print();
    }
    Ok(())
}

async fn sq_alone_dies_of_more_connections_than_threads(stack: Arc<Stack>) -> Result<()> {
    let exit = blocking(|| {
        let mut sq = BareSq::start_with_memory_limit(NEW, 220_000)?;
        let address = sq.address();
        let idle: Vec<_> = (0..MANY).map_while(|_| TcpStream::connect(address).ok()).collect();
        let exit = sq.ended(PATIENCE).context("SQ has a thread for each connection");
        drop(idle);
        exit
    })
    .await?;
    let head = "GET /api/v2/toc?p=a HTTP/1.1\r\nhost: x\r\nauthorization: KEY\r\n\r\n";
    let head = head.replace("KEY", stack.key("alice")?);
    let mut connections = Vec::new();
    for _ in 0..MANY {
        let mut raw = Raw::connect(stack.listen.https, &stack.certs.ca()).await?;
        raw.write(head.as_bytes()).await?;
        connections.push(raw);
    }
    for raw in &mut connections {
        raw.read_some(100).await?;
    }
    stack.tenant("alice")?.toc("a").await?.expect_ok()?;
    ensure!(deaths(&stack).await? == 0, "SQ died behind the gateway");
    Row {
        case: "sq_alone_dies_of_more_connections_than_threads",
        rule: "more connections than it can have threads (memory, pids-limit)",
        sq: NEW,
        alone: &exit.to_string(),
        gateway: "300 concurrent requests: a response to each",
    }
    .print();
    Ok(())
}
