//! What SQ survives in the memory of each tier: real SQ in a container with the product's own
//! limits and environment, a phext and bodies of the size that the tier allows, as many clients as
//! the tier lets in at once.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use protocol::Limits;
use protocol::limits::{MB, MIB};

use harness::bare_sq::{KEY, exchange, request};
use harness::host::docker;

/// Longest wait for one answer: a `toc` of many small scrolls takes seconds.
const PATIENCE: Duration = Duration::from_mins(1);
/// Requests at once: the tier's four, and one that the second of two workers of Envoy may add.
const PLACES: usize = 5;
/// Requests of each client.
const REQUESTS: usize = 36;
/// Texts of scrolls that are tried; each scroll costs SQ memory of its own.
const SCROLLS: [usize; 4] = [1_000, 100, 20, 1];
/// Every so many requests of a client one carries the largest body, where bodies are tried.
const BODY_EVERY: usize = 6;
/// As the orchestrator sets it.
const MALLOC: [&str; 3] =
    ["MALLOC_ARENA_MAX=1", "MALLOC_MMAP_THRESHOLD_=65536", "MALLOC_TRIM_THRESHOLD_=65536"];
/// Steps around the cap, in percent, to show how much air there is.
const STEPS: [u64; 8] = [25, 50, 75, 100, 125, 150, 200, 300];

/// One line of the table.
#[derive(Debug, Clone, Copy)]
pub struct Trial {
    /// Which SQ.
    pub version: &'static str,
    /// The container's memory.
    pub memory_mib: u64,
    /// Clients at once.
    pub clients: usize,
    /// Size of the phext.
    pub bytes: u64,
    /// Size of large bodies; 0: none come.
    pub body_bytes: u64,
    /// Text of each scroll.
    pub scroll_bytes: usize,
}

/// Prints the table; gives the caps that did not hold.
pub fn table(quick: bool) -> Result<Vec<String>> {
    println!(
        "Largest phext (and body) that SQ survives, in percent of the cap that its memory gives"
    );
    println!(
        "SQ      memory  clients  cap MB  scrolls of  bodies  survives %  peak RSS MB at the cap"
    );
    let mut broken = Vec::new();
    for trial in trials(quick) {
        let (mut best, mut peak) = (0, 0);
        for percent in if quick { &[100] } else { &STEPS[..] } {
            let of = |cap: u64| cap * percent / 100;
            let step = Trial { bytes: of(trial.bytes), body_bytes: of(trial.body_bytes), ..trial };
            let Some(used) = survives(step)? else { break };
            best = *percent;
            if *percent == 100 {
                peak = used;
            }
        }
        println!(
            "{:<8}{:>3}{:>9}{:>10}{:>9}{:>12}{best:>12}{:>24}",
            trial.version,
            trial.memory_mib,
            trial.clients,
            format!("{}.{:02}", trial.bytes / MB, trial.bytes % MB / 10_000),
            trial.body_bytes / MB,
            trial.scroll_bytes,
            peak / MB,
        );
        if best < 100 {
            broken.push(format!("the cap of {} MiB on SQ {}", trial.memory_mib, trial.version));
        }
    }
    Ok(broken)
}

/// [`table`], where a daemon answers.
pub async fn run(quick: bool) -> Result<Vec<String>> {
    if let Err(error) = docker::daemon() {
        println!("CAPS BY MEMORY WERE NOT TRIED: no Docker daemon answers ({error:#})");
        return Ok(vec!["caps by memory: not tried".to_owned()]);
    }
    tokio::task::spawn_blocking(move || table(quick)).await?
}

fn trials(quick: bool) -> Vec<Trial> {
    let mut all = Vec::new();
    let memories: &[u64] = if quick { &[64] } else { &[64, 128, 256, 512] };
    for &memory_mib in memories {
        for (version, clients) in [("0.6.0", PLACES), ("0.5.0", 1)] {
            let limits = Limits { memory_bytes: memory_mib * MIB, ..Limits::default() };
            let body_bytes = limits.body_max_bytes();
            for scroll_bytes in SCROLLS {
                let bytes = largest(limits.phext_max_bytes(), scroll_bytes);
                all.push(Trial { version, memory_mib, clients, bytes, body_bytes, scroll_bytes });
            }
        }
    }
    if !quick {
        // Tiers that let more in at once say smaller caps themselves.
        for (memory_mib, bytes) in [(256, 8 * MB), (512, 16 * MB)] {
            for scroll_bytes in SCROLLS {
                let (version, clients, body_bytes) = ("0.6.0", 8, bytes / 2);
                let bytes = largest(bytes, scroll_bytes);
                all.push(Trial { version, memory_mib, clients, bytes, body_bytes, scroll_bytes });
            }
        }
    }
    all
}

/// The largest phext of scrolls of this size that weighs `cap`: a scroll counts 80 bytes at least.
fn largest(cap: u64, scroll_bytes: usize) -> u64 {
    let scroll = scroll_bytes as u64 + 1;
    cap / scroll.max(80) * scroll
}

/// The most memory that was seen in use; `None`: SQ died.
pub fn survives(trial: Trial) -> Result<Option<u64>> {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("big.phext"), phext(trial.bytes, trial.scroll_bytes)?)?;
    let container = Container::start(&trial, dir.path())?;
    let dead = AtomicBool::new(false);
    thread::scope(|scope| {
        for client in 0..trial.clients {
            let (container, dead) = (&container, &dead);
            scope.spawn(move || {
                for number in 0..REQUESTS {
                    let bytes = nth(&trial, client, number);
                    let answer = exchange(container.address, &bytes, PATIENCE);
                    let failed = !answer.is_ok_and(|answer| answer.status == 200);
                    if failed || dead.load(Ordering::Relaxed) {
                        dead.store(true, Ordering::Relaxed);
                        return;
                    }
                }
            });
        }
    });
    let alive = container.alive()? && !dead.load(Ordering::Relaxed);
    alive.then(|| container.peak()).transpose()
}

/// The request number `number` of a client: most of what SQ can do, writes as often as reads.
fn nth(trial: &Trial, client: usize, number: usize) -> Vec<u8> {
    let at = format!("c=1.1.1/1.1.{}/1.1.{}", client + 1, number + 1);
    let small = "s".repeat(200);
    let get = |path: String| request("GET", &format!("/api/v2/{path}"), None);
    let post = |path: String, body: &[u8]| request("POST", &format!("/api/v2/{path}"), Some(body));
    if trial.body_bytes > 0 && number % BODY_EVERY == BODY_EVERY - 1 {
        let body = vec![b'b'; usize::try_from(trial.body_bytes).unwrap_or(usize::MAX)];
        return post("update?p=body&c=1.1.1/1.1.1/1.1.1".into(), &body);
    }
    match (number * 7 + client) % 12 {
        0 | 3 | 7 => post(format!("update?p=big&{at}"), small.as_bytes()),
        2 | 6 => post(format!("insert?p=big&{at}"), small.as_bytes()),
        4 => get("get?p=big".into()),
        5 => get("delta?p=big".into()),
        9 => get("checksum?p=big".into()),
        10 if number < 12 && client == 0 => get("toc?p=big".into()),
        11 if trial.version != "0.5.0" => {
            let ends = "from=1.1.1/1.1.1/1.1.1&to=999.999.999/999.999.999/999.999.999";
            get(format!("query?p=big&{ends}&limit=10000"))
        }
        _ => get(format!("select?p=big&{at}")),
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

struct Container {
    id: String,
    address: SocketAddr,
}

impl Container {
    fn start(trial: &Trial, data: &std::path::Path) -> Result<Self> {
        let memory = format!("{}m", trial.memory_mib);
        let (volume, image) =
            (format!("{}:/data", data.display()), format!("wbic16/sq:{}", trial.version));
        let mut args = vec!["run", "--detach", "--memory", &memory, "--memory-swap", &memory];
        args.extend(["--pids-limit", "600", "--read-only", "--cap-drop", "ALL"]);
        args.extend(["--security-opt", "no-new-privileges", "--volume", &volume]);
        args.extend(MALLOC.iter().flat_map(|set| ["--env", set]));
        args.extend(["--entrypoint", "/exo/sq", &image, "host", "1337", "--key", KEY]);
        args.extend(["--data-dir", "/data"]);
        let id = docker::run(&args)?;
        let unknown = SocketAddr::from(([0, 0, 0, 0], 1337));
        let mut container = Self { id, address: unknown };
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let ip = docker::run(&["inspect", "--format", format, &container.id])?;
        container.address.set_ip(ip.parse::<IpAddr>().context("its address")?);
        let probe = b"GET /ready HTTP/1.1\r\nHost: sq\r\n\r\n";
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if exchange(container.address, probe, PATIENCE).is_ok_and(|a| a.status == 401) {
                return Ok(container);
            }
            thread::sleep(Duration::from_millis(10));
        }
        bail!("SQ {} does not answer in its container", trial.version)
    }

    fn alive(&self) -> Result<bool> {
        Ok(docker::run(&["inspect", "--format", "{{.State.Running}}", &self.id])? == "true")
    }

    /// The most that SQ itself had in memory, page cache not counted.
    fn peak(&self) -> Result<u64> {
        let pid = docker::run(&["inspect", "--format", "{{.State.Pid}}", &self.id])?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kb: u64 = line.context("no VmHWM")?.trim().trim_end_matches(" kB").parse()?;
        ensure!(kb > 0, "SQ has ended");
        Ok(kb * 1024)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = docker::run(&["rm", "--force", "--volumes", &self.id]);
    }
}
