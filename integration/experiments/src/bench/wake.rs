//! The first request to a sleeping tenant, through the whole gateway, against a bare start of the
//! same SQ by the same runtime until its first HTTP answer, each while the daemon has nothing else to
//! do; then those of many tenants, twenty a second.

use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{Scale, judged, percentile};
use harness::host::docker::{self, Engine};
use harness::host::ports;
use harness::host::tools;
use harness::host::tools::SQ_VERSION;
use harness::{Lifecycle, Runtime, Stack, until};

/// Ours against bare, at the median and at p99.
const GOAL: f64 = 1.15;
/// The same with prepared network slots, at the median.
const GOAL_SLOTS: f64 = 0.5;
/// What the 99th percentile of twenty a second may be of the median of one at a time.
const GOAL_RUSH: f64 = 3.0;
/// Time between two wakes of twenty a second.
const RUSH: Duration = Duration::from_millis(50);
/// Network slots that are kept ready, by the orchestrator's default.
const SLOTS: usize = 4;
/// Longest wait for one start.
const PATIENCE: Duration = Duration::from_secs(30);
/// Whom a tenant's container runs as.
const UID: u32 = 10001;

/// Measures and prints the table.
pub async fn print(runtime: Option<Runtime>, scale: &Scale) -> Result<()> {
    let runtime = Runtime::resolve(runtime)?;
    let one =
        Stack::builder().runtime(runtime).tenant("bench").lifecycle(Lifecycle::short_leases());
    let many = (0..scale.rush).fold(one, |stack, n| stack.tenant(&format!("rush-{n}")));
    let stack = Arc::new(many.start().await?);
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    let mut yardstick = Bare::new(runtime, &stack)?;
    wake(&stack, "bench").await?; // the container is created, the verdict is known
    for _ in 0..scale.wakes {
        stack.orchestrator.put_to_sleep("bench", PATIENCE).await?;
        at_rest(&stack).await?;
        ours.push(wake(&stack, "bench").await?);
        at_rest(&stack).await?;
        bare.push(yardstick.start().await?);
    }
    println!(
        "First request to a sleeping tenant, {} runtime, {} wakes",
        runtime.name(),
        ours.len()
    );
    println!("{:<34}{:>12}{:>14}{:>12}", "", "p50 ms", "p99 ms", "max ms");
    let line = |title: &str, values: &[f64]| {
        let (p50, p99) = (percentile(values, 50)?, percentile(values, 99)?);
        println!("{title:<34}{p50:>12.1}{p99:>14.1}{:>12.1}", percentile(values, 100)?);
        Some((p50, p99))
    };
    let start = match runtime {
        Runtime::Docker => "docker start → first HTTP answer",
        Runtime::Process => "exec → first HTTP answer",
    };
    let bare = line(start, &bare).context("no bare start")?;
    let ours = line("through the gateway", &ours).context("no wake")?;
    println!("p50 is {:.2} × bare  {}", ours.0 / bare.0, judged(ours.0 / bare.0, GOAL));
    println!("p99 is {:.2} × bare  {}", ours.1 / bare.1, judged(ours.1 / bare.1, GOAL));
    if runtime == Runtime::Docker {
        println!("p50 with network slots: {}", judged(ours.0 / bare.0, GOAL_SLOTS));
    }
    let rush = rush(&stack, scale.rush).await;
    let refused = scale.rush - rush.len();
    let (_, p99) = line("many tenants, 20 wakes a second", &rush).context("no wake of many")?;
    let times = if refused == 0 { p99 / ours.0 } else { f64::INFINITY };
    println!("{refused} of {} were told to come back later", scale.rush);
    println!("p99 of 20 a second is {times:.2} × p50 of one  {}", judged(times, GOAL_RUSH));
    Ok(())
}

/// Waits until the daemon has nothing to do: the used network slot is gone and a new one there.
async fn at_rest(stack: &Stack) -> Result<()> {
    if stack.runtime == Runtime::Process {
        return Ok(());
    }
    until("the network slots to be complete", PATIENCE, || async {
        let joined = docker::containers(&stack.labels()).ok()?.len();
        let slots = docker::running_containers(&stack.prepared_network_labels()).ok()?.len();
        (slots == joined + SLOTS).then_some(())
    })
    .await
}

/// One request; its time in ms.
async fn wake(stack: &Stack, tenant: &str) -> Result<f64> {
    let client = stack.tenant(tenant)?;
    let start = Instant::now();
    client.get("/api/v2/toc?p=bench").await?.expect_ok()?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// The first requests of as many tenants, whether or not those before are answered; the times of
/// those that their tenant answered.
async fn rush(stack: &Arc<Stack>, tenants: usize) -> Vec<f64> {
    let (mut wakes, mut due) = (JoinSet::new(), tokio::time::interval(RUSH));
    for n in 0..tenants {
        due.tick().await;
        let stack = stack.clone();
        wakes.spawn(async move { wake(&stack, &format!("rush-{n}")).await });
    }
    wakes.join_all().await.into_iter().filter_map(Result::ok).collect()
}

/// The same SQ without any gateway: a created container on a bridge like the tenants', or a folder.
struct Bare {
    with: With,
}

enum With {
    Docker { name: String, address: String },
    Process { sq: PathBuf, data: PathBuf, port: u16, child: Option<Child> },
}

impl Bare {
    fn new(runtime: Runtime, stack: &Stack) -> Result<Self> {
        let data = stack.dir.join("bare");
        fs::create_dir_all(&data)?;
        if runtime == Runtime::Process {
            let (sq, port) = (tools::sq(SQ_VERSION)?, ports::free()?);
            return Ok(Self { with: With::Process { sq, data, port, child: None } });
        }
        chown(&data, Some(UID), Some(UID))?;
        let name = format!("sq-bench-{}", std::process::id());
        docker::run(&[
            "network",
            "create",
            "--internal",
            "--opt",
            "com.docker.network.bridge.enable_icc=false",
            &name,
        ])?;
        let bare = Self { with: With::Docker { name: name.clone(), address: String::new() } };
        let volume = format!("{}:/data", data.display());
        let image = format!("wbic16/sq:{SQ_VERSION}");
        docker::run(&[
            "create",
            "--name",
            &name,
            "--network",
            &name,
            "--volume",
            &volume,
            "--memory",
            "64m",
            "--memory-swap",
            "64m",
            "--pids-limit",
            "600",
            "--read-only",
            "--cap-drop",
            "ALL",
            "--security-opt",
            "no-new-privileges",
            "--user",
            "10001:10001",
            "--entrypoint",
            "./sq",
            &image,
            "host",
            "1337",
            "--key",
            "bare",
            "--data-dir",
            "/data",
        ])?;
        Ok(bare)
    }

    /// Starts it, waits for its first answer, ends it; the time in ms from start to answer.
    async fn start(&mut self) -> Result<f64> {
        let start = Instant::now();
        match &mut self.with {
            With::Docker { name, address } => {
                Engine::post(&format!("/containers/{name}/start")).await?;
                if address.is_empty() {
                    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
                    *address = docker::run(&["inspect", "--format", format, name])?;
                }
                answers(&format!("{address}:1337")).await?;
            }
            With::Process { sq, data, port, child } => {
                let mut command = Command::new(sq);
                command.args(["host", &port.to_string(), "--key", "bare", "--data-dir"]).arg(data);
                *child = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
                answers(&format!("127.0.0.1:{port}")).await?;
            }
        }
        let took = start.elapsed().as_secs_f64() * 1e3;
        self.end().await?;
        Ok(took)
    }

    async fn end(&mut self) -> Result<()> {
        match &mut self.with {
            With::Docker { name, .. } => {
                Engine::post(&format!("/containers/{name}/stop?t=0")).await
            }
            With::Process { child, .. } => {
                if let Some(mut child) = child.take() {
                    child.kill()?;
                    child.wait()?;
                }
                Ok(())
            }
        }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        match &mut self.with {
            With::Docker { name, .. } => {
                let _ = docker::run(&["rm", "--force", name]);
                let _ = docker::run(&["network", "rm", name]);
            }
            With::Process { child, .. } => {
                if let Some(child) = child {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        }
    }
}

/// Asks until SQ answers at all: 401, since no key is sent.
async fn answers(address: &str) -> Result<()> {
    let what = format!("an answer from {address}");
    let asking = async {
        while ask(address).await.is_err() {
            // Finer than `until`: a process answers after some 3 ms.
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.context(what)
}

async fn ask(address: &str) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /api/v2/version HTTP/1.1\r\nhost: sq\r\n\r\n").await?;
    let mut first = [0; 8];
    stream.read_exact(&mut first).await?;
    Ok(())
}
