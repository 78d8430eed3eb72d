//! Load over keep-alive HTTP/1.1 connections that repeat one request.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Longest head of a response. The gateway's are shorter than 1 KiB.
const HEAD_BYTES: usize = 16 * 1024;

/// Time after which a run counts as stuck.
const PATIENCE: Duration = Duration::from_mins(2);

/// Sends `requests` in total over `connections`. Each connection waits for a response before its
/// next request. Fails on the first response that is not 200.
pub(super) async fn run(
    address: SocketAddr,
    request: &str,
    connections: u64,
    requests: u64,
) -> Result<()> {
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let request = request.to_owned();
        let share = requests / connections;
        tasks.spawn(async move { run_connection(address, request.as_bytes(), share).await });
    }
    let all_done = async {
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, all_done).await.context("the load is stuck")?
}

async fn run_connection(address: SocketAddr, request: &[u8], requests: u64) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(HEAD_BYTES);
    for _ in 0..requests {
        stream.write_all(request).await?;
        read_response(&mut stream, &mut buffer).await?;
    }
    Ok(())
}

/// Reads one response, which must have a `content-length`.
async fn read_response(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<()> {
    buffer.clear();
    let mut length = None;
    while length.is_none_or(|length| buffer.len() < length) {
        if stream.read_buf(buffer).await? == 0 {
            bail!("the connection was closed during a response");
        }
        if length.is_none()
            && let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n")
        {
            length = Some(end + 4 + content_length(&buffer[..end])?);
        }
        if length.is_none() && buffer.len() > HEAD_BYTES {
            bail!("the head of a response is too long");
        }
    }
    Ok(())
}

/// Returns the length of the body of a response with status 200.
fn content_length(head: &[u8]) -> Result<usize> {
    let head = String::from_utf8_lossy(head);
    if !head.starts_with("HTTP/1.1 200") {
        bail!("expected status 200: {head}");
    }
    for line in head.lines() {
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            return Ok(value.trim().parse()?);
        }
    }
    bail!("the response has no content-length: {head}")
}
