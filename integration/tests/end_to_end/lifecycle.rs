//! Herds, fairness, budgets, and what wakes a tenant or keeps it awake.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use experiments::drill::doze;
use harness::client::TOC;
use harness::client::raw::Raw;
use harness::{Http, Lifecycle, Response, Runtime, Stack, StackBuilder, Tier, holds, until};
use hyper::Method;
use tokio::task::JoinSet;

use crate::world::{Case, On, case};

/// First requests to one tenant at once.
const HERD: usize = 500;
/// Tenants woken at once, as processes and as containers.
const CROWD: [usize; 2] = [200, 40];
/// Those among them that pay.
const PAID: usize = 10;
/// Starts at once.
const MAX_STARTS: u64 = 2;
/// Longest wait for anything on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);
/// Bytes of a text, as many as one request may bring.
const LARGE: usize = 7 << 20;
/// Rounds of the doze; `make drill` has more.
const DOZES: usize = 5;
/// A test build on a busy machine takes longer than the goal.
const DOZE_LIMIT: Duration = Duration::from_millis(250);

fn crowd() -> StackBuilder {
    let lifecycle = Lifecycle::default().set("max_starts", MAX_STARTS);
    let paid = Tier::unlimited("paid").set("priority", 100);
    let mut builder = Stack::builder().lifecycle(lifecycle).tenant("herd").tier(paid);
    // All of them come from one address, with keys never seen.
    builder = builder.filter_config("verify_per_s", "1000");
    for number in 1..=CROWD[0] {
        let tier = if number <= PAID { "paid" } else { Tier::UNLIMITED };
        builder = builder.tenant_in_tier(&format!("c-{number}"), tier);
    }
    builder
}

fn budget() -> StackBuilder {
    let tier = Tier::unlimited("once").set("wakes-per-hour", 1);
    Stack::builder().lifecycle(Lifecycle::short_leases()).tier(tier).tenant_in_tier("alice", "once")
}

fn crashes() -> StackBuilder {
    Stack::builder().tenant("alice").tenant("bob")
}

fn sleepy() -> StackBuilder {
    let lifecycle = Lifecycle::default().duration_ms("lease", 500).duration_ms("grace", 700);
    let large = Tier::unlimited("large").set("memory", "256 MiB");
    Stack::builder()
        .lifecycle(lifecycle.duration_ms("doze_after", 1_000).duration_ms("sleep_after", 3_600_000))
        .tier(large)
        .tenant_in_tier("alice", "large")
        .tenant("bob")
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(On::Own(crowd), a_herd_is_one_start_and_a_crowd_starts_in_turn_the_paying_first),
        case!(On::Own(budget), starts_beyond_the_budget_are_refused_and_say_when_to_come_back),
        case!(On::Own(crashes), a_crash_loop_backs_off_alone),
        case!(On::Own(sleepy), what_asks_nothing_of_the_database_neither_wakes_nor_keeps_awake),
        case!(
            On::Own(sleepy),
            a_slow_download_is_whole_and_holds_its_tenant_awake_while_sq_gives_it
        ),
        case!(On::Own(crashes), a_dozing_tenant_answers_within_milliseconds).alone(),
    ]
}

async fn state(stack: &Stack, tenant: &str) -> Option<String> {
    stack.orchestrator.state_of(tenant).await.ok()?
}

async fn wakes(stack: &Stack, tenant: &str) -> u64 {
    let found = stack.orchestrator.tenant(tenant).await.ok().flatten();
    found.map(|status| status.wakes).unwrap_or_default()
}

/// A refusal that a client can act on.
fn told(answer: &Response, status: u16, problem: &str) -> Result<u64> {
    let text = answer.text();
    ensure!(answer.status == status && text.contains(problem), "{} {text}", answer.status);
    Ok(answer.header("retry-after").parse()?)
}

async fn a_herd_is_one_start_and_a_crowd_starts_in_turn_the_paying_first(
    stack: Arc<Stack>,
) -> Result<()> {
    let mut tasks = JoinSet::new();
    for number in 0..HERD {
        let http = if number % 2 == 0 { Http::One } else { Http::Two };
        let client = stack.client(http)?.key(stack.key("herd")?);
        tasks.spawn(async move { client.get(TOC).await });
    }
    while let Some(answer) = tasks.join_next().await {
        answer??.expect_ok()?;
    }
    ensure!(wakes(&stack, "herd").await == 1, "the herd was more than one start");

    let crowd = CROWD[usize::from(stack.runtime == Runtime::Docker)];
    let mut tasks = JoinSet::new();
    for number in (1..=crowd).rev() {
        let client = stack.tenant(&format!("c-{number}"))?;
        tasks.spawn(async move { (number, client.get(TOC).await) });
    }
    let answered = async {
        let mut late = Vec::new();
        while let Some(done) = tasks.join_next().await {
            let (number, answer) = done?;
            let answer = answer?;
            if !answer.ok() {
                let after = told(&answer, 503, "urn:sq:problem:wake-")?;
                ensure!(after >= 1, "{answer:?}");
                late.push(number);
            }
        }
        Ok(late)
    };
    let few_start = holds(PATIENCE, || async {
        let starting = "sq_orchestrator_tenants{kind=\"starting\"}";
        let most = stack.orchestrator.labelled_metric(starting).await?;
        ensure!(most <= 2.0, "{most} starts at once");
        Ok(())
    });
    let late = tokio::select! {
        late = answered => late?,
        broken = few_start => bail!("not all are answered within {PATIENCE:?}: {broken:?}"),
    };
    ensure!(late.iter().all(|number| *number > PAID), "paying tenants were refused: {late:?}");
    println!("{crowd} tenants at once: {} were told to come back later", late.len());
    for number in late {
        let client = stack.tenant(&format!("c-{number}"))?;
        let what = format!("c-{number}, asked again");
        until(what, PATIENCE, || async { client.get(TOC).await.ok()?.ok().then_some(()) }).await?;
    }
    for number in 1..=crowd {
        let name = format!("c-{number}");
        ensure!(wakes(&stack, &name).await == 1, "{name} was started more than once");
    }
    Ok(())
}

async fn starts_beyond_the_budget_are_refused_and_say_when_to_come_back(
    stack: Arc<Stack>,
) -> Result<()> {
    let alice = stack.tenant("alice")?;
    alice.get(TOC).await?.expect_ok()?;
    stack.orchestrator.put_to_sleep("alice", PATIENCE).await?;
    let after = told(&alice.get(TOC).await?, 429, "urn:sq:problem:wake-budget")?;
    ensure!((1..=3_600).contains(&after), "come back after {after} s");
    Ok(())
}

async fn a_crash_loop_backs_off_alone(stack: Arc<Stack>) -> Result<()> {
    let (alice, bob) = (stack.tenant("alice")?, stack.tenant("bob")?);
    bob.get(TOC).await?.expect_ok()?;
    let refusal = until("alice to back off", PATIENCE, || async {
        let answer = alice.get(TOC).await.ok()?;
        if answer.ok() {
            stack.kill_sq("alice").ok()?;
        }
        (state(&stack, "alice").await? == "failing").then_some(())?;
        let answer = alice.get(TOC).await.ok()?;
        answer.text().contains("urn:sq:problem:wake-failed").then_some(answer)
    })
    .await?;
    told(&refusal, 503, "wake-failed")?;
    bob.get(TOC).await?.expect_ok()?;
    until("alice to be back", PATIENCE, || async { alice.get(TOC).await.ok()?.ok().then_some(()) })
        .await
}

/// Everything that the gateway answers itself.
async fn ask_the_gateway_only(stack: &Stack, tenant: &str) -> Result<()> {
    let client = stack.tenant(tenant)?;
    let nobody = stack.client(Http::One)?;
    let preflight = [("origin", "https://a.example"), ("access-control-request-method", "GET")];
    for (answer, status) in [
        (client.get("/api/v2/usage").await?, 200),
        (client.get("/api/v2/version").await?, 200),
        (client.send(Method::OPTIONS, TOC, &preflight, "".into()).await?, 204),
        (client.get("/api/v2/select?p=index&c=0.0.0").await?, 400),
        (client.get("/api/v2/nothing").await?, 404),
        (nobody.get(TOC).await?, 401),
    ] {
        ensure!(
            answer.status == status,
            "{} instead of {status}: {}",
            answer.status,
            answer.text()
        );
    }
    Ok(())
}

async fn what_asks_nothing_of_the_database_neither_wakes_nor_keeps_awake(
    stack: Arc<Stack>,
) -> Result<()> {
    ask_the_gateway_only(&stack, "bob").await?;
    ensure!(wakes(&stack, "bob").await == 0, "bob was woken");
    stack.tenant("bob")?.get(TOC).await?.expect_ok()?;
    until("bob to doze while he is asked about", PATIENCE, || async {
        ask_the_gateway_only(&stack, "bob").await.ok()?;
        (state(&stack, "bob").await? == "dozing").then_some(())
    })
    .await?;
    ask_the_gateway_only(&stack, "bob").await?;
    ensure!(wakes(&stack, "bob").await == 1, "bob was woken from his doze");
    Ok(())
}

async fn a_slow_download_is_whole_and_holds_its_tenant_awake_while_sq_gives_it(
    stack: Arc<Stack>,
) -> Result<()> {
    let alice = stack.tenant("alice")?;
    let path = "/api/v2/insert?p=large&c=1.1.1/1.1.1/1.1.1";
    // Twice: more than the buffers of all sockets hold.
    for _ in 0..2 {
        alice.post(path, "x".repeat(LARGE)).await?.expect_ok()?;
    }
    let mut raw = Raw::connect(stack.listen.https, &stack.certs.ca()).await?;
    let request = format!(
        "GET /api/v2/get?p=large HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\
         connection: close\r\n\r\n",
        stack.key("alice")?
    );
    raw.write(request.as_bytes()).await?;
    let begun = raw.read_some(1_000).await?;
    // Without the download it would doze after a second, and again after each. Envoy takes from SQ
    // what it can: once it has all of it, SQ is not needed. For less than `delayed_close_timeout`.
    holds(Duration::from_secs(3), || async {
        let now = state(&stack, "alice").await;
        if now.as_deref() != Some("awake") {
            let active = "http.https.downstream_rq_active: 0";
            let stats = stack.envoy.admin().get("/stats?filter=downstream_rq_active").await?.text();
            ensure!(stats.contains(active), "{now:?} while its answer was under way: {stats}");
        }
        Ok(())
    })
    .await?;
    let rest = raw.read_all().await?.len();
    ensure!(begun + rest > 2 * LARGE, "{begun} and {rest} bytes came");
    until("alice to doze after it", PATIENCE, || async {
        (state(&stack, "alice").await? == "dozing").then_some(())
    })
    .await
}

async fn a_dozing_tenant_answers_within_milliseconds(stack: Arc<Stack>) -> Result<()> {
    let p50 = doze::wakes(stack.runtime, DOZES).await?;
    println!("a dozing tenant's first byte, p50 of {DOZES}: {p50:.1?}; {}", doze::GOAL);
    ensure!(p50 <= DOZE_LIMIT, "{p50:?}");
    Ok(())
}
