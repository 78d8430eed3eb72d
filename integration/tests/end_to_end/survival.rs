//! What is killed comes back, and clients hardly notice.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use harness::host::docker::{self, Engine};
use harness::host::processes;
use harness::host::tools;
use harness::{Load, Runtime, Stack, StackBuilder, until};
use rustix::process::Signal;

use crate::shared_stack::MAIN;
use crate::suite::{Case, On, case};

const AT: &str = "p=index&c=1.1.1/1.1.1/1.1.1";
const PATIENCE: Duration = Duration::from_secs(20);
/// What makes a test build of the filter panic.
const TRIGGER: (&str, &str) = ("x-sq-test-panic", "now");
/// Long enough for a back-off that grows to be longer than what is allowed.
const AWAY: Duration = Duration::from_secs(25);
/// From an orchestrator that is ready to a tenant that is woken, on a busy machine.
const FOUND_AGAIN: Duration = Duration::from_secs(4);
/// A dead connection is noticed after four seconds; then SQ starts on a busy machine.
const NOTICED: Duration = Duration::from_secs(12);

fn two_tenants() -> StackBuilder {
    Stack::builder().tenant("alice").tenant("bob")
}

fn panicking() -> StackBuilder {
    let stack = Stack::builder().workers(1).tenant("alice");
    // A missing build fails when the stack starts.
    let wasm = tools::panicking_filter();
    stack.filter(wasm.unwrap_or_else(|_| "target/filter-test-panic.wasm".into()))
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(On::Own(two_tenants), an_orchestrator_killed_under_load_disturbs_nobody),
        case!(
            On::Own(two_tenants),
            an_sq_that_died_while_the_orchestrator_was_away_is_back_with_it
        ),
        case!(On::Own(two_tenants), an_orchestrator_that_was_away_for_long_is_found_again_at_once),
        case!(On::Own(two_tenants), an_orchestrator_ends_in_order_and_leaves_no_tenant_frozen),
        case!(On::Own(two_tenants), a_killed_sq_is_hidden_by_retries),
        case!(On::Own(two_tenants), a_read_whose_sq_lost_its_network_is_asked_again_in_time)
            .docker_only(),
        case!(MAIN, the_shipped_filter_has_no_trigger_of_panics),
        case!(On::Own(panicking), after_a_panic_in_the_filter_the_next_request_works),
    ]
}

fn reads(stack: &Stack, tenant: &str) -> Result<Load> {
    let client = stack.tenant(tenant)?;
    Ok(Load::start(4, Duration::from_millis(20), move |_, _| {
        let client = client.clone();
        async move { client.get(&format!("/api/v2/select?{AT}")).await }
    }))
}

async fn write(stack: &Stack, tenant: &str) -> Result<()> {
    let path = format!("/api/v2/update?{AT}&s={tenant}");
    stack.tenant(tenant)?.get(&path).await?.expect_ok()?;
    Ok(())
}

/// Waits until a load has sent some more requests.
async fn some_more(load: &Load) -> Result<()> {
    let enough = load.requests() + 100;
    until("more load", PATIENCE, || async { (load.requests() >= enough).then_some(()) }).await
}

async fn an_orchestrator_killed_under_load_disturbs_nobody(stack: Arc<Stack>) -> Result<()> {
    write(&stack, "alice").await?;
    let load = reads(&stack, "alice")?;
    some_more(&load).await?;
    let sq = instance(&stack, "alice")?;
    stack.orchestrator.service().kill();
    some_more(&load).await?;
    stack.orchestrator.start().await?;
    some_more(&load).await?;
    // New wakes resume.
    let what = "bob to be woken by the new orchestrator";
    until(what, PATIENCE, || async { write(&stack, "bob").await.ok() }).await?;
    let seen = load.finish().await;
    ensure!(seen.errors == 0, "{seen:?}");
    ensure!(instance(&stack, "alice")? == sq, "alice's SQ was started again");
    Ok(())
}

async fn an_sq_that_died_while_the_orchestrator_was_away_is_back_with_it(
    stack: Arc<Stack>,
) -> Result<()> {
    write(&stack, "alice").await?;
    let load = reads(&stack, "alice")?;
    some_more(&load).await?;
    stack.orchestrator.service().kill();
    kill(&stack, &instance(&stack, "alice")?)?;
    stack.orchestrator.start().await?;
    some_more(&load).await?;
    let seen = load.finish().await;
    ensure!(seen.errors == 0, "{seen:?}");
    Ok(())
}

async fn an_orchestrator_that_was_away_for_long_is_found_again_at_once(
    stack: Arc<Stack>,
) -> Result<()> {
    stack.orchestrator.service().kill();
    let away = Instant::now();
    until("Envoy to have tried often", 2 * AWAY, || async {
        (away.elapsed() > AWAY).then_some(())
    })
    .await?;
    stack.orchestrator.start().await?;
    let back = Instant::now();
    until("bob to be woken", PATIENCE, || async { write(&stack, "bob").await.ok() }).await?;
    let took = back.elapsed();
    println!("a wake after {AWAY:?} without an orchestrator: {took:.1?}");
    ensure!(took < FOUND_AGAIN, "it took {took:?}");
    Ok(())
}

async fn an_orchestrator_ends_in_order_and_leaves_no_tenant_frozen(
    stack: Arc<Stack>,
) -> Result<()> {
    let client = stack.tenant("alice")?;
    let load = Load::start(4, Duration::ZERO, move |_, number| {
        let client = client.clone();
        async move { client.get(&format!("/api/v2/update?{AT}&s={number}")).await }
    });
    // A tenant that is written all the time is held still now and then.
    for _ in 0..3 {
        some_more(&load).await?;
        let part = stack.orchestrator.service().process()?;
        part.signal(Signal::TERM);
        let ended = until("its end", PATIENCE, || async { part.ended() }).await?;
        ensure!(ended.code() == Some(0), "{ended}");
        some_more(&load).await?;
        stack.orchestrator.start().await?;
    }
    let seen = load.finish().await;
    ensure!(seen.errors == 0, "{seen:?}");
    Ok(())
}

/// What runs a tenant's SQ now: a process id or a container's id.
fn instance(stack: &Stack, tenant: &str) -> Result<String> {
    match stack.runtime {
        Runtime::Process => {
            let folder = stack.orchestrator.data().join(tenant);
            let pids = processes::with_argument(&folder, &["sq"]);
            pids.first().map(ToString::to_string).context("no SQ runs")
        }
        Runtime::Docker => {
            let ids = docker::containers(&stack.tenant_labels(tenant))?;
            ids.first().cloned().context("no container runs")
        }
    }
}

fn kill(stack: &Stack, instance: &str) -> Result<()> {
    match stack.runtime {
        Runtime::Process => processes::kill(instance.parse()?),
        Runtime::Docker => drop(docker::run(&["kill", instance])?),
    }
    Ok(())
}

async fn a_killed_sq_is_hidden_by_retries(stack: Arc<Stack>) -> Result<()> {
    write(&stack, "alice").await?;
    let load = reads(&stack, "alice")?;
    some_more(&load).await?;
    kill(&stack, &instance(&stack, "alice")?)?;
    let what = "alice's SQ to run again";
    until(what, PATIENCE, || async {
        let alice = stack.orchestrator.tenant("alice").await.ok()??;
        (alice.deaths == 1 && alice.state == "awake").then_some(())
    })
    .await?;
    some_more(&load).await?;
    let seen = load.finish().await;
    ensure!(seen.errors == 0, "{seen:?}");
    let answer = stack.tenant("alice")?.get(&format!("/api/v2/select?{AT}")).await?;
    ensure!(answer.text() == "alice", "the data: {:?}", answer.text());
    Ok(())
}

/// As in an orderly end of Docker's daemon: what holds the network ends at once, SQ a second later, and
/// nobody is told that its connections are dead.
async fn a_read_whose_sq_lost_its_network_is_asked_again_in_time(stack: Arc<Stack>) -> Result<()> {
    write(&stack, "alice").await?;
    let sq = instance(&stack, "alice")?;
    let network = docker::run(&["inspect", "--format", "{{.HostConfig.NetworkMode}}", &sq])?;
    let slot = network.strip_prefix("container:").context("alice has no network slot")?;
    // It has the request, and no time to answer.
    Engine::post(&format!("/containers/{sq}/pause")).await?;
    let alice = stack.tenant("alice")?;
    let began = Instant::now();
    let read = tokio::spawn(async move { alice.get(&format!("/api/v2/select?{AT}")).await });
    until("the read to be with SQ", PATIENCE, || async {
        let clusters = stack.envoy.admin().get("/clusters").await.ok()?.text();
        let active =
            |line: &str| line.starts_with("sq/alice::") && line.ends_with("::rq_active::1");
        clusters.lines().any(active).then_some(())
    })
    .await?;
    Engine::post(&format!("/containers/{slot}/kill")).await?;
    Engine::post(&format!("/containers/{sq}/unpause")).await?;
    Engine::post(&format!("/containers/{sq}/kill")).await?;
    let answer = read.await??;
    ensure!(answer.ok() && answer.text() == "alice", "{} {}", answer.status, answer.text());
    ensure!(began.elapsed() < NOTICED, "it took {:?}", began.elapsed());
    Ok(())
}

async fn the_shipped_filter_has_no_trigger_of_panics(stack: Arc<Stack>) -> Result<()> {
    stack
        .tenant("alice")?
        .get_with_headers("/api/v2/toc?p=index", &[TRIGGER])
        .await?
        .expect_ok()?;
    Ok(())
}

async fn after_a_panic_in_the_filter_the_next_request_works(stack: Arc<Stack>) -> Result<()> {
    let alice = stack.tenant("alice")?;
    write(&stack, "alice").await?;
    for _ in 0..3 {
        let path = format!("/api/v2/select?{AT}");
        let answer = alice.get_with_headers(&path, &[TRIGGER]).await?.expect_status(500)?;
        ensure!(answer.text().contains("urn:sq:problem:internal"), "{}", answer.text());
        // The VM comes back after its back-off; nobody is let in without a key meanwhile.
        let nobody = stack.client(harness::Http::One)?;
        until("the next request to work", Duration::from_secs(5), || async {
            let unasked = nobody.get(&path).await.ok()?;
            assert!(unasked.status == 401 || unasked.status >= 500, "let in: {unasked:?}");
            alice.get(&path).await.ok()?.ok().then_some(())
        })
        .await?;
    }
    Ok(())
}
