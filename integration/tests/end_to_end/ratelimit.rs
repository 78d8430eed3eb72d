//! `envoy/ratelimit.yaml` as an operator starts it: an Envoy beside a stack whose relay it uses, with
//! a rate limit service that lets three requests of each tenant through.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_response::Code;
use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_service_server::{
    RateLimitService, RateLimitServiceServer,
};
use envoy_types::pb::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use harness::bare_sq::{self, BareSq};
use harness::client::TOC;
use harness::host::ports;
use harness::host::tools;
use harness::parts::process::Process;
use harness::{Client, Stack, StackBuilder, until};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::suite::{Case, On, case};

/// Deadline for Envoy to be ready; it compiles the filter first.
const START_TIMEOUT: Duration = Duration::from_mins(1);
/// Deadline for the filter's counters, which it flushes once a second.
const COUNTED: Duration = Duration::from_secs(10);
/// Requests of a tenant that the service allows.
const ALLOWED: u32 = 3;

fn one_tenant() -> StackBuilder {
    Stack::builder().tenant("alice")
}

pub(crate) fn cases() -> Vec<Case> {
    vec![case!(On::Own(one_tenant), global_rate_limit_refuses_excess_requests)]
}

/// A rate limit service that counts requests by domain and descriptor. It can be made to fail.
#[derive(Clone, Default)]
struct Service {
    counts: Arc<Mutex<BTreeMap<String, u32>>>,
    fails: Arc<AtomicBool>,
}

impl Service {
    fn counts(&self) -> BTreeMap<String, u32> {
        self.counts.lock().unwrap().clone()
    }
}

#[tonic::async_trait]
impl RateLimitService for Service {
    async fn should_rate_limit(
        &self,
        request: Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        if self.fails.load(Ordering::Relaxed) {
            return Err(Status::unavailable("Redis is unreachable"));
        }
        let RateLimitRequest { domain, descriptors, .. } = request.into_inner();
        let entries = descriptors.iter().flat_map(|descriptor| &descriptor.entries);
        let entries: Vec<_> = entries.map(|e| format!("{}={}", e.key, e.value)).collect();
        let mut counts = self.counts.lock().unwrap();
        let count = counts.entry(format!("{domain}: {}", entries.join(" "))).or_default();
        *count += 1;
        let code = if *count > ALLOWED { Code::OverLimit } else { Code::Ok };
        let response = RateLimitResponse { overall_code: code.into(), ..Default::default() };
        Ok(Response::new(response))
    }
}

/// The example with its folder and ports replaced; each port must occur in it.
fn example(etc: &Path, ports: &[(&str, u16)]) -> Result<String> {
    let mut text = fs::read_to_string(tools::root().join("envoy/ratelimit.yaml"))?;
    for (from, to) in ports {
        let from = format!("port_value: {from} ");
        ensure!(text.contains(&from), "{from:?} is not in the example");
        // The mark keeps a new port from being replaced again as one of the example's.
        text = text.replace(&from, &format!("port_value: {to}\u{0} "));
    }
    // On a busy machine the service may be slow, and a time-out lets the request pass.
    let timeout = "timeout: 0.05s";
    ensure!(text.contains(timeout), "{timeout:?} is not in the example");
    let text = text.replace(timeout, "timeout: 20s").replace('\u{0}', "");
    let text = text.replace("/run/sq-envoy", &etc.display().to_string());
    Ok(text.replace("/etc/sq-gateway", &etc.display().to_string()))
}

async fn global_rate_limit_refuses_excess_requests(stack: Arc<Stack>) -> Result<()> {
    let sq = BareSq::start(tools::SQ_VERSION)?;
    let https = ports::free()?;
    let service_port = ports::free()?;
    let etc = stack.envoy.config().parent().context("no folder")?;
    let text = example(
        etc,
        &[
            ("8443", https),
            ("8081", service_port),
            ("1337", sq.address().port()),
            ("7443", stack.listen.relay),
        ],
    )?;
    let config = stack.dir.join("ratelimit.yaml");
    fs::write(&config, text)?;
    let service = Service::default();
    let serving = Server::builder().add_service(RateLimitServiceServer::new(service.clone()));
    tokio::spawn(serving.serve(([127, 0, 0, 1], service_port).into()));
    let mut command = Command::new(tools::envoy()?);
    command.arg("-c").arg(&config).args(["--concurrency", "1", "--disable-hot-restart"]);
    command.env("SQ_ALICE_KEY", bare_sq::KEY);
    let envoy = Process::start("envoy-ratelimit", &stack.dir.join("logs"), &mut command)?;
    let admin = Client::unix(&etc.join("admin.sock"));
    envoy
        .ready(START_TIMEOUT, || async { admin.get("/ready").await.is_ok_and(|a| a.ok()) })
        .await?;

    let gateway = Client::plaintext(&format!("http://127.0.0.1:{https}"))?;
    gateway.get(TOC).await?.expect_status(401)?;
    let alice = gateway.key(stack.key("alice")?);
    for _ in 1..=ALLOWED {
        alice.get(TOC).await?.expect_ok()?;
    }
    alice.get(TOC).await?.expect_status(429)?;
    let expected = BTreeMap::from([("sq: tenant=sq/alice".to_owned(), ALLOWED + 1)]);
    ensure!(service.counts() == expected, "{:?}", service.counts());
    until("the filter to have counted the refusal", COUNTED, || async {
        let stats = admin.get("/stats?filter=refused.rate-limited").await.ok()?.text();
        stats.trim_end().ends_with("sq_gate.refused.rate-limited: 1").then_some(())
    })
    .await?;

    // A service that fails must not stop the tenant.
    service.fails.store(true, Ordering::Relaxed);
    alice.get(TOC).await?.expect_ok()?;
    Ok(())
}
