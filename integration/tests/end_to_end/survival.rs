//! A part that is killed comes back, and clients hardly notice.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use harness::client::TOC;
use harness::host::docker::{self, Engine};
use harness::host::tools;
use harness::{Http, Load, Stack, StackBuilder, until};
use rustix::process::Signal;

use crate::shared_stack::MAIN;
use crate::suite::{Case, On, case};

const PATIENCE: Duration = Duration::from_secs(20);
/// The header that makes a test build of the filter panic.
const TRIGGER: (&str, &str) = ("x-sq-test-panic", "now");
/// Length of an outage. Without a bound, Envoy's back-off would exceed [`FOUND_AGAIN`] by its end.
const OUTAGE: Duration = Duration::from_secs(25);
/// Promised time from an orchestrator that is ready to a tenant that is woken, on a busy machine.
const FOUND_AGAIN: Duration = Duration::from_secs(4);
/// Promised time from an orchestrator that is ready to a tenant that had a lease, whatever it was
/// killed in: two seconds, and two more on a busy machine.
const SERVED_AGAIN: Duration = Duration::from_secs(4);
/// Promised time to a response after a connection has died silently: four seconds to notice it,
/// then a start of SQ on a busy machine.
const RETRIED: Duration = Duration::from_secs(12);

fn two_tenants() -> StackBuilder {
    Stack::builder().tenant("alice").tenant("bob")
}

fn panicking() -> StackBuilder {
    let stack = Stack::builder().workers(1).tenant("alice");
    // If the build is missing, the start of the stack fails.
    let wasm = tools::panicking_filter();
    stack.filter(wasm.unwrap_or_else(|_| "target/filter-test-panic.wasm".into()))
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(On::Own(two_tenants), killed_orchestrator_disturbs_no_request),
        case!(On::Own(two_tenants), sq_killed_during_orchestrator_outage_is_restarted),
        case!(On::Own(two_tenants), orchestrator_killed_amid_a_restart_starts_it_again),
        case!(On::Own(two_tenants), orchestrator_killed_amid_a_forced_sleep_wakes_its_clients),
        case!(On::Own(two_tenants), returned_orchestrator_is_found_again_at_once),
        case!(On::Own(two_tenants), orderly_orchestrator_restarts_lose_no_request),
        case!(On::Own(two_tenants), hang_up_ends_no_daemon),
        case!(On::Own(two_tenants), killed_sq_is_hidden_by_retries),
        case!(On::Own(two_tenants), read_is_retried_when_sq_loses_its_network).docker_only(),
        case!(MAIN, shipped_filter_ignores_the_panic_header),
        case!(On::Own(panicking), request_after_a_filter_panic_works),
    ]
}

/// Starts four clients that read the first scroll of `index`.
fn start_reads(stack: &Stack, tenant: &str) -> Result<Load> {
    let client = stack.tenant(tenant)?;
    Ok(Load::start(4, Duration::from_millis(20), move |_, _| {
        let client = client.clone();
        async move { client.select("index").await }
    }))
}

/// Writes the tenant's name into the first scroll of `index`.
async fn write(stack: &Stack, tenant: &str) -> Result<()> {
    stack.tenant(tenant)?.update("index", tenant).await?.expect_ok()?;
    Ok(())
}

/// Waits until a load has sent another hundred requests.
async fn more_requests(load: &Load) -> Result<()> {
    let enough = load.requests() + 100;
    until("more requests", PATIENCE, || async { (load.requests() >= enough).then_some(()) }).await
}

/// Ends a load, none of whose requests may have failed.
async fn finish_without_errors(load: Load) -> Result<()> {
    let outcome = load.finish().await;
    ensure!(outcome.errors == 0, "{outcome:?}");
    Ok(())
}

async fn until_woken(stack: &Stack, tenant: &str) -> Result<()> {
    let condition = format!("{tenant} to be woken");
    until(condition, PATIENCE, || async { write(stack, tenant).await.ok() }).await
}

async fn killed_orchestrator_disturbs_no_request(stack: Arc<Stack>) -> Result<()> {
    write(&stack, "alice").await?;
    let load = start_reads(&stack, "alice")?;
    more_requests(&load).await?;
    let instance = stack.sq_instance("alice")?;
    stack.orchestrator.service().kill();
    more_requests(&load).await?;
    stack.orchestrator.start().await?;
    more_requests(&load).await?;
    // The new orchestrator wakes tenants, too.
    until_woken(&stack, "bob").await?;
    finish_without_errors(load).await?;
    ensure!(stack.sq_instance("alice")? == instance, "alice's SQ was started again");
    Ok(())
}

async fn sq_killed_during_orchestrator_outage_is_restarted(stack: Arc<Stack>) -> Result<()> {
    write(&stack, "alice").await?;
    let load = start_reads(&stack, "alice")?;
    more_requests(&load).await?;
    let instance = stack.sq_instance("alice")?;
    stack.orchestrator.service().kill();
    stack.kill_sq_instance(&instance)?;
    stack.orchestrator.start().await?;
    more_requests(&load).await?;
    finish_without_errors(load).await
}

/// Kills the orchestrator at different moments of a restart of SQ: from before it has learned of the
/// death until after SQ runs again. A kill once hit the moment at which the dead instance was
/// forgotten and the next one not recorded, and the tenant was away until its leases had ended.
async fn orchestrator_killed_amid_a_restart_starts_it_again(stack: Arc<Stack>) -> Result<()> {
    write(&stack, "alice").await?;
    for moment_ms in [0, 1, 2, 5, 10, 20, 50, 100] {
        stack.kill_sq_instance(&stack.sq_instance("alice")?)?;
        absence_after_a_kill(&stack, Duration::from_millis(moment_ms)).await?;
    }
    Ok(())
}

/// The same in a forced sleep, which stops SQ although leases on it are live.
async fn orchestrator_killed_amid_a_forced_sleep_wakes_its_clients(
    stack: Arc<Stack>,
) -> Result<()> {
    for moment_ms in [0, 2, 5, 10, 20, 50, 100] {
        until_woken(&stack, "alice").await?;
        let sleep = stack.orchestrator.admin().post("/v1/tenants/alice/sleep?force=true", "").await;
        sleep?.expect_status(202)?;
        absence_after_a_kill(&stack, Duration::from_millis(moment_ms)).await?;
    }
    Ok(())
}

/// Kills the orchestrator after `moment`, and starts it again half a second later. From when it is
/// ready, alice is served within [`SERVED_AGAIN`].
async fn absence_after_a_kill(stack: &Stack, moment: Duration) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < moment {
        std::hint::spin_loop();
    }
    stack.orchestrator.service().kill();
    let killed = Instant::now();
    let outage = Duration::from_millis(500);
    until("the outage to end", PATIENCE, || async { (killed.elapsed() > outage).then_some(()) })
        .await?;
    stack.orchestrator.start().await?;
    let ready = Instant::now();
    let client = stack.tenant("alice")?;
    until("alice to be served", PATIENCE, || async {
        let response = client.select("index").await.ok()?;
        response.ok().then_some(())
    })
    .await?;
    let took = ready.elapsed();
    println!("killed after {moment:?}: served {took:.1?} after the orchestrator was back");
    ensure!(took < SERVED_AGAIN, "killed after {moment:?}: away for {took:?}");
    Ok(())
}

async fn returned_orchestrator_is_found_again_at_once(stack: Arc<Stack>) -> Result<()> {
    stack.orchestrator.service().kill();
    let killed = Instant::now();
    until("the outage to end", 2 * OUTAGE, || async { (killed.elapsed() > OUTAGE).then_some(()) })
        .await?;
    stack.orchestrator.start().await?;
    let returned = Instant::now();
    until_woken(&stack, "bob").await?;
    let took = returned.elapsed();
    println!("a wake after {OUTAGE:?} without an orchestrator: {took:.1?}");
    ensure!(took < FOUND_AGAIN, "it took {took:?}");
    Ok(())
}

async fn orderly_orchestrator_restarts_lose_no_request(stack: Arc<Stack>) -> Result<()> {
    let client = stack.tenant("alice")?;
    let load = Load::start(4, Duration::ZERO, move |_, number| {
        let client = client.clone();
        async move { client.update("index", &number.to_string()).await }
    });
    for _ in 0..3 {
        more_requests(&load).await?;
        let process = stack.orchestrator.service().process()?;
        process.signal(Signal::TERM);
        let status =
            until("the orchestrator to end", PATIENCE, || async { process.ended() }).await?;
        ensure!(status.code() == Some(0), "{status}");
        more_requests(&load).await?;
        stack.orchestrator.start().await?;
    }
    finish_without_errors(load).await
}

/// Operators and log rotation send SIGHUP to daemons.
async fn hang_up_ends_no_daemon(stack: Arc<Stack>) -> Result<()> {
    write(&stack, "alice").await?;
    for service in [stack.orchestrator.service(), stack.relay.service()] {
        let process = service.process()?;
        process.signal(Signal::HUP);
        // The second signal is handled after the first.
        process.signal(Signal::TERM);
        let status =
            until("the daemon to end in order", PATIENCE, || async { process.ended() }).await?;
        ensure!(status.code() == Some(0), "{status}");
    }
    Ok(())
}

async fn killed_sq_is_hidden_by_retries(stack: Arc<Stack>) -> Result<()> {
    write(&stack, "alice").await?;
    let load = start_reads(&stack, "alice")?;
    more_requests(&load).await?;
    stack.kill_sq_instance(&stack.sq_instance("alice")?)?;
    until("alice's SQ to run again", PATIENCE, || async {
        let alice = stack.orchestrator.tenant("alice").await.ok()??;
        (alice.deaths == 1 && alice.state == "awake").then_some(())
    })
    .await?;
    more_requests(&load).await?;
    finish_without_errors(load).await?;
    stack.tenant("alice")?.select("index").await?.expect_text(200, "alice")?;
    Ok(())
}

/// An orderly end of Docker's daemon does the same: the network namespace ends at once and SQ a second
/// later, so no end of a connection reaches Envoy.
async fn read_is_retried_when_sq_loses_its_network(stack: Arc<Stack>) -> Result<()> {
    write(&stack, "alice").await?;
    let sq = stack.sq_instance("alice")?;
    let network = docker::run(&["inspect", "--format", "{{.HostConfig.NetworkMode}}", &sq])?;
    let namespace =
        network.strip_prefix("container:").context("alice has joined no prepared network")?;
    // SQ has received the request but cannot respond.
    Engine::post(&format!("/containers/{sq}/pause")).await?;
    let alice = stack.tenant("alice")?;
    let began = Instant::now();
    let read = tokio::spawn(async move { alice.select("index").await });
    until("the read to be with SQ", PATIENCE, || async {
        let clusters = stack.envoy.admin().get("/clusters").await.ok()?.text();
        let active =
            |line: &str| line.starts_with("sq/alice::") && line.ends_with("::rq_active::1");
        clusters.lines().any(active).then_some(())
    })
    .await?;
    Engine::post(&format!("/containers/{namespace}/kill")).await?;
    Engine::post(&format!("/containers/{sq}/unpause")).await?;
    Engine::post(&format!("/containers/{sq}/kill")).await?;
    read.await??.expect_text(200, "alice")?;
    ensure!(began.elapsed() < RETRIED, "it took {:?}", began.elapsed());
    Ok(())
}

async fn shipped_filter_ignores_the_panic_header(stack: Arc<Stack>) -> Result<()> {
    stack.tenant("alice")?.get_with_headers(TOC, &[TRIGGER]).await?.expect_ok()?;
    Ok(())
}

async fn request_after_a_filter_panic_works(stack: Arc<Stack>) -> Result<()> {
    let path = "/api/v2/select?p=index&c=1.1.1/1.1.1/1.1.1";
    let alice = stack.tenant("alice")?;
    let anonymous = stack.client(Http::One)?;
    write(&stack, "alice").await?;
    for _ in 0..3 {
        let response = alice.get_with_headers(path, &[TRIGGER]).await?.expect_status(500)?;
        ensure!(response.text().contains("urn:sq:problem:internal"), "{}", response.text());
        // The VM comes back after its back-off. Until then no request without a key is served.
        until("the next request to work", Duration::from_secs(5), || async {
            let response = anonymous.get(path).await.ok()?;
            assert!(response.status == 401 || response.status >= 500, "served: {response:?}");
            alice.get(path).await.ok()?.ok().then_some(())
        })
        .await?;
    }
    Ok(())
}
