//! Keep-alive HTTP/1.1 connections that send the same request over and over.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Bytes of an answer's head at most: ours are below 1 KiB.
const HEAD_BYTES: usize = 16 * 1024;

/// A run that takes longer than this is stuck.
const PATIENCE: Duration = Duration::from_mins(2);

/// Sends `requests` in all over `connections`, each waiting for its answer before the next, and
/// gives the time it took. Fails on the first answer that is not 200.
pub async fn run(
    address: SocketAddr,
    request: &str,
    connections: u64,
    requests: u64,
) -> Result<Duration> {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let request = request.to_owned();
        let share = requests / connections;
        tasks.spawn(async move { connection(address, request.as_bytes(), share).await });
    }
    let all = async {
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, all).await.context("the load got stuck")??;
    Ok(start.elapsed())
}

async fn connection(address: SocketAddr, request: &[u8], requests: u64) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(HEAD_BYTES);
    for _ in 0..requests {
        stream.write_all(request).await?;
        answer(&mut stream, &mut buffer).await?;
    }
    Ok(())
}

/// Reads one answer that says its length.
async fn answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<()> {
    buffer.clear();
    let mut whole = None;
    while whole.is_none_or(|whole| buffer.len() < whole) {
        if stream.read_buf(buffer).await? == 0 {
            bail!("closed in the middle of an answer");
        }
        if whole.is_none()
            && let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n")
        {
            whole = Some(end + 4 + checked_length(&buffer[..end])?);
        }
        if whole.is_none() && buffer.len() > HEAD_BYTES {
            bail!("an endless head");
        }
    }
    Ok(())
}

fn checked_length(head: &[u8]) -> Result<usize> {
    let head = String::from_utf8_lossy(head);
    if !head.starts_with("HTTP/1.1 200") {
        bail!("not 200: {head}");
    }
    for line in head.lines() {
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            return Ok(value.trim().parse()?);
        }
    }
    bail!("no content-length: {head}")
}
