//! Prints how long a sleeping tenant takes to its first HTTP answer, side by side in one run:
//! a stopped container started, a container made for the start, one in a prepared network slot,
//! a process, and a paused container thawed.
//!
//!     cargo run --release -p orchestrator --example cold_start [rounds]

// It measures and ends: whatever goes wrong is shown as it is.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use orchestrator::config::{Config, DockerConfig, ProcessConfig};
use orchestrator::runtime::docker::DockerRuntime;
use orchestrator::runtime::folder::Owner;
use orchestrator::runtime::probe::wait_until_ready;
use orchestrator::runtime::process::ProcessRuntime;
use orchestrator::runtime::{Endpoint, Runtime, Spec};
use protocol::{Limits, TenantId, TierName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const OWNER: Owner = Owner { uid: 10001, gid: 10001 };
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() {
    let rounds = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(20);
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    std::fs::create_dir(root.join("plain")).unwrap();
    std::fs::create_dir(root.join("slot")).unwrap();
    std::fs::create_dir(root.join("process")).unwrap();
    // Two networks: a slot must not take the address of the container that is started again.
    let network = |kind| format!("sq-measure-{}-{kind}", std::process::id());
    let plain = docker(&root.join("plain"), &network("plain"), 0).await;
    let slots = docker(&root.join("slot"), &network("slot"), 2).await;
    let sq = concat!(env!("CARGO_MANIFEST_DIR"), "/../.tools/sq-{version}/bin/sq").to_owned();
    let process = ProcessRuntime::new(
        &root.join("process"),
        &root.join("state"),
        OWNER,
        &ProcessConfig { sq },
    )
    .unwrap();

    let mut times: [(&str, Vec<Duration>); 6] = [
        ("stopped container, started", vec![]),
        ("container made and started", vec![]),
        ("the same in a network slot", vec![]),
        ("process", vec![]),
        ("paused container, thawed", vec![]),
        ("container removed", vec![]),
    ];
    for _ in 0..rounds {
        let (took, endpoint) = start(&plain).await;
        times[1].1.push(took);
        plain.pause(&tenant()).await.unwrap();
        let began = Instant::now();
        plain.resume(&tenant()).await.unwrap();
        times[4].1.push(began.elapsed());
        times[0].1.push(restart(&endpoint).await);
        let began = Instant::now();
        plain.stop(&tenant()).await.unwrap();
        times[5].1.push(began.elapsed());
        while slots.free_networks() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        times[2].1.push(start(&slots).await.0);
        slots.stop(&tenant()).await.unwrap();
        times[3].1.push(start(&process).await.0);
        process.stop(&tenant()).await.unwrap();
    }
    println!("{rounds} rounds, ms to the first HTTP answer{:>14}{:>8}{:>8}", "p50", "p90", "max");
    for (what, mut times) in times {
        times.sort();
        let at = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1e3;
        println!("{what:<43}{:>8.1}{:>8.1}{:>8.1}", at(50), at(90), at(100));
    }
    drop((plain, slots));
    clear(&network("plain")).await;
    clear(&network("slot")).await;
}

async fn docker(data_root: &Path, network: &str, network_pool: usize) -> DockerRuntime {
    let network = network.to_owned();
    let config = DockerConfig { network, network_pool, ..Config::default().docker };
    DockerRuntime::connect(data_root, OWNER, config).await.unwrap()
}

fn tenant() -> TenantId {
    TenantId::parse("measured").unwrap()
}

async fn start(runtime: &impl Runtime) -> (Duration, Endpoint) {
    let spec = Spec {
        tenant: tenant(),
        tier: TierName::parse("free").unwrap(),
        limits: Limits::default(),
        sq_version: protocol::SqVersion::V0_6_0,
    };
    let began = Instant::now();
    let started = runtime.start(spec).await.unwrap();
    (began.elapsed(), started.endpoint)
}

/// What `docker start` alone costs: stopped, then started by its bare API call.
async fn restart(endpoint: &Endpoint) -> Duration {
    let id = &endpoint.instance.0;
    daemon("POST", &format!("/containers/{id}/stop?t=0")).await;
    let began = Instant::now();
    daemon("POST", &format!("/containers/{id}/start")).await;
    wait_until_ready(endpoint.address, PATIENCE).await.unwrap();
    began.elapsed()
}

/// One request to the daemon, without its client.
async fn daemon(method: &str, path: &str) -> String {
    let mut stream = UnixStream::connect("/var/run/docker.sock").await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Slots stay when a runtime ends: they go with their network here.
async fn clear(network: &str) {
    let shown = daemon("GET", &format!("/networks/{network}")).await;
    let json = &shown[shown.find('{').unwrap()..=shown.rfind('}').unwrap()];
    let json: serde_json::Value = serde_json::from_str(json).unwrap();
    for id in json["Containers"].as_object().into_iter().flatten().map(|(id, _)| id) {
        daemon("DELETE", &format!("/containers/{id}?force=1")).await;
    }
    daemon("DELETE", &format!("/networks/{network}")).await;
}
