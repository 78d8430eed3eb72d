//! The largest phext that SQ survives in the memory of each tier.
//!
//! Real SQ runs in a container with the orchestrator's limits and environment, a phext and bodies
//! of the size that the tier permits, and the number of clients that the tier admits concurrently.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use protocol::Limits;
use protocol::limits::{MB, MIB};

use crate::columns::Columns;
use harness::bare_sq::{KEY, exchange, request};
use harness::host::docker;

/// Longest wait for one response: a `toc` of many small scrolls takes seconds.
const PATIENCE: Duration = Duration::from_mins(1);
/// Concurrent requests: the tier's four, and one more that the second worker of Envoy may admit.
const CONCURRENT: usize = 5;
/// Number of requests that each client sends.
const REQUESTS: usize = 36;
/// Sizes of a scroll's text in bytes. Each scroll also costs SQ a fixed amount of memory.
const SCROLLS: [usize; 4] = [1_000, 100, 20, 1];
/// One of this number of requests of a client has the largest body, in trials with bodies.
const BODY_EVERY: usize = 6;
/// The allocator settings of the orchestrator's containers.
const MALLOC: [&str; 3] =
    ["MALLOC_ARENA_MAX=1", "MALLOC_MMAP_THRESHOLD_=65536", "MALLOC_TRIM_THRESHOLD_=65536"];
/// Room for SQ's version.
const TITLE_WIDTH: usize = 8;
/// Sizes in percent of the cap. Those above 100 show the safety margin.
const STEPS: [u64; 8] = [25, 50, 75, 100, 125, 150, 200, 300];

/// The parameters of one row of the table.
#[derive(Debug, Clone, Copy)]
struct MemoryTrial {
    /// SQ's version.
    version: &'static str,
    /// The container's memory limit.
    memory_mib: u64,
    /// Concurrent clients.
    clients: usize,
    /// Size of the phext.
    bytes: u64,
    /// Size of large bodies; 0 for trials without them.
    body_bytes: u64,
    /// Size of each scroll's text.
    scroll_bytes: usize,
}

/// The outcome of a trial at all sizes.
struct Outcome {
    /// The largest size that SQ survived, in percent of the cap.
    survived_percent: u64,
    /// Peak memory at the cap.
    peak_bytes: u64,
}

/// Runs all trials and prints the table, if a Docker daemon responds. Returns the caps that did not
/// hold.
pub(super) async fn run(quick: bool) -> Result<Vec<String>> {
    if let Err(error) = docker::daemon() {
        println!("MEMORY CAPS WERE NOT TESTED: no Docker daemon responds ({error:#})");
        return Ok(vec!["memory caps: not tested".to_owned()]);
    }
    tokio::task::spawn_blocking(move || run_trials(quick)).await?
}

fn run_trials(quick: bool) -> Result<Vec<String>> {
    println!(
        "Largest phext (and body) that SQ survives, in percent of the cap that its memory gives"
    );
    let columns = Columns::new(
        TITLE_WIDTH,
        ["memory", "clients", "cap MB", "bodies MB", "scroll bytes", "survives %", "peak RSS MB"],
    );
    println!("{}  (at the cap)", columns.heading("SQ"));
    let mut broken = Vec::new();
    for trial in trials(quick) {
        let outcome = run_trial(trial, if quick { &[100] } else { &STEPS })?;
        let cells = [
            trial.memory_mib.to_string(),
            trial.clients.to_string(),
            format!("{}.{:02}", trial.bytes / MB, trial.bytes % MB / 10_000),
            (trial.body_bytes / MB).to_string(),
            trial.scroll_bytes.to_string(),
            outcome.survived_percent.to_string(),
            (outcome.peak_bytes / MB).to_string(),
        ];
        println!("{}", columns.row(trial.version, &cells));
        if outcome.survived_percent < 100 {
            broken.push(format!("the cap of {} MiB on SQ {}", trial.memory_mib, trial.version));
        }
    }
    Ok(broken)
}

/// Increases the sizes until SQ dies.
fn run_trial(trial: MemoryTrial, percents: &[u64]) -> Result<Outcome> {
    let mut outcome = Outcome { survived_percent: 0, peak_bytes: 0 };
    for percent in percents {
        let step = MemoryTrial {
            bytes: trial.bytes * percent / 100,
            body_bytes: trial.body_bytes * percent / 100,
            ..trial
        };
        let Some(peak_bytes) = survive(step)? else { break };
        outcome.survived_percent = *percent;
        if *percent == 100 {
            outcome.peak_bytes = peak_bytes;
        }
    }
    Ok(outcome)
}

fn trials(quick: bool) -> Vec<MemoryTrial> {
    let mut all = Vec::new();
    let memories: &[u64] = if quick { &[64] } else { &[64, 128, 256, 512] };
    for &memory_mib in memories {
        for (version, clients) in [("0.6.0", CONCURRENT), ("0.5.0", 1)] {
            let limits = Limits { memory_bytes: memory_mib * MIB, ..Limits::default() };
            let body_bytes = limits.body_max_bytes();
            for scroll_bytes in SCROLLS {
                all.push(MemoryTrial {
                    version,
                    memory_mib,
                    clients,
                    bytes: largest(limits.phext_max_bytes(), scroll_bytes),
                    body_bytes,
                    scroll_bytes,
                });
            }
        }
    }
    if !quick {
        // Tiers with more concurrent requests set smaller caps themselves.
        for (memory_mib, bytes) in [(256, 8 * MB), (512, 16 * MB)] {
            for scroll_bytes in SCROLLS {
                all.push(MemoryTrial {
                    version: "0.6.0",
                    memory_mib,
                    clients: 8,
                    bytes: largest(bytes, scroll_bytes),
                    body_bytes: bytes / 2,
                    scroll_bytes,
                });
            }
        }
    }
    all
}

/// Returns the size of the largest phext within `cap`, to which a scroll counts at least 80 bytes.
fn largest(cap: u64, scroll_bytes: usize) -> u64 {
    let scroll = scroll_bytes as u64 + 1;
    cap / scroll.max(80) * scroll
}

/// Sends all requests of a trial. Returns SQ's peak memory, or `None` if SQ died.
fn survive(trial: MemoryTrial) -> Result<Option<u64>> {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("big.phext"), phext(trial.bytes, trial.scroll_bytes)?)?;
    let container = LimitedContainer::start(&trial, dir.path())?;
    let dead = AtomicBool::new(false);
    thread::scope(|scope| {
        for client in 0..trial.clients {
            let container = &container;
            let dead = &dead;
            scope.spawn(move || {
                for number in 0..REQUESTS {
                    let bytes = nth_request(&trial, client, number);
                    let response = exchange(container.address, &bytes, PATIENCE);
                    let failed = !response.is_ok_and(|response| response.status == 200);
                    if failed || dead.load(Ordering::Relaxed) {
                        dead.store(true, Ordering::Relaxed);
                        return;
                    }
                }
            });
        }
    });
    let alive = container.is_running()? && !dead.load(Ordering::Relaxed);
    alive.then(|| container.peak_bytes()).transpose()
}

/// Builds a request of a client. Most endpoints of SQ occur, writes about as often as reads.
fn nth_request(trial: &MemoryTrial, client: usize, number: usize) -> Vec<u8> {
    let scroll = format!("c=1.1.1/1.1.{}/1.1.{}", client + 1, number + 1);
    let small = "s".repeat(200);
    let get = |path: String| request("GET", &format!("/api/v2/{path}"), None);
    let post = |path: String, body: &[u8]| request("POST", &format!("/api/v2/{path}"), Some(body));
    if trial.body_bytes > 0 && number % BODY_EVERY == BODY_EVERY - 1 {
        let body = vec![b'b'; usize::try_from(trial.body_bytes).unwrap_or(usize::MAX)];
        return post("update?p=body&c=1.1.1/1.1.1/1.1.1".into(), &body);
    }
    match (number * 7 + client) % 12 {
        0 | 3 | 7 => post(format!("update?p=big&{scroll}"), small.as_bytes()),
        2 | 6 => post(format!("insert?p=big&{scroll}"), small.as_bytes()),
        4 => get("get?p=big".into()),
        5 => get("delta?p=big".into()),
        9 => get("checksum?p=big".into()),
        10 if number < 12 && client == 0 => get("toc?p=big".into()),
        11 if trial.version != "0.5.0" => {
            let ends = "from=1.1.1/1.1.1/1.1.1&to=999.999.999/999.999.999/999.999.999";
            get(format!("query?p=big&{ends}&limit=10000"))
        }
        _ => get(format!("select?p=big&{scroll}")),
    }
}

fn phext(bytes: u64, scroll_bytes: usize) -> Result<Vec<u8>> {
    let bytes = usize::try_from(bytes)?;
    let mut file = Vec::with_capacity(bytes + 1_000);
    let mut scrolls = 0;
    while file.len() < bytes {
        if scrolls > 0 {
            file.push(if scrolls % 900 == 0 { 0x18 } else { 0x17 });
        }
        file.extend(std::iter::repeat_n(b'x', scroll_bytes));
        scrolls += 1;
    }
    Ok(file)
}

/// SQ in a container with a memory limit, removed on drop.
struct LimitedContainer {
    id: String,
    address: SocketAddr,
}

impl LimitedContainer {
    fn start(trial: &MemoryTrial, data: &std::path::Path) -> Result<Self> {
        let memory = format!("{}m", trial.memory_mib);
        let volume = format!("{}:/data", data.display());
        let image = format!("wbic16/sq:{}", trial.version);
        let mut args = vec!["run", "--detach", "--memory", &memory, "--memory-swap", &memory];
        args.extend(["--pids-limit", "600", "--read-only", "--cap-drop", "ALL"]);
        args.extend(["--security-opt", "no-new-privileges", "--volume", &volume]);
        args.extend(MALLOC.iter().flat_map(|set| ["--env", set]));
        args.extend(["--entrypoint", "/exo/sq", &image, "host", "1337", "--key", KEY]);
        args.extend(["--data-dir", "/data"]);
        let id = docker::run(&args)?;
        let placeholder = SocketAddr::from(([0, 0, 0, 0], 1337));
        let mut container = Self { id, address: placeholder };
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let ip = docker::run(&["inspect", "--format", format, &container.id])?;
        container.address.set_ip(ip.parse::<IpAddr>().context("the container has no IP address")?);
        let probe = b"GET /ready HTTP/1.1\r\nHost: sq\r\n\r\n";
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            // SQ responds with 401, because the probe has no key.
            if exchange(container.address, probe, PATIENCE).is_ok_and(|r| r.status == 401) {
                return Ok(container);
            }
            thread::sleep(Duration::from_millis(10));
        }
        bail!("SQ {} does not respond in its container", trial.version)
    }

    fn is_running(&self) -> Result<bool> {
        Ok(docker::run(&["inspect", "--format", "{{.State.Running}}", &self.id])? == "true")
    }

    /// Returns the peak resident memory of SQ, without page cache.
    fn peak_bytes(&self) -> Result<u64> {
        let pid = docker::run(&["inspect", "--format", "{{.State.Pid}}", &self.id])?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kb: u64 = line.context("/proc has no VmHWM")?.trim().trim_end_matches(" kB").parse()?;
        ensure!(kb > 0, "SQ has exited");
        Ok(kb * 1024)
    }
}

impl Drop for LimitedContainer {
    fn drop(&mut self) {
        let _ = docker::run(&["rm", "--force", "--volumes", &self.id]);
    }
}
