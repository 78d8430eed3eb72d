//! Reports and leases that no filter should send, by a peer that the gate API allows: they neither end
//! metering and quotas nor enter bills, also after a restart, and the operator can remove them. Nor do
//! they fill the host with containers and folders.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use harness::client::TOC;
use harness::host::tools;
use harness::parts::orchestrator::responses::MonthUsage;
use harness::{Http, Lifecycle, Stack, StackBuilder, Tier, until};
use serde_json::{Value, json};

use crate::suite::{Case, On, case};

/// Deadline for reports to be in the ledger, which takes a second or two.
const REPORTED: Duration = Duration::from_secs(10);
/// Requests per day of the tenants: more than bob sends until every worker knows the forged report.
const QUOTA: u64 = 1_000;
/// Bound on tenants without a folder per minute: alice and one more.
const NEW_TENANTS: u64 = 2;

fn few_new_tenants() -> StackBuilder {
    let lifecycle = Lifecycle::default().set("new_tenants_per_minute", NEW_TENANTS);
    Stack::builder().tenant("alice").lifecycle(lifecycle)
}

fn stack() -> StackBuilder {
    Stack::builder()
        .workers(2)
        .tier(Tier::unlimited("day").set("requests-per-day", QUOTA))
        .tenant_in_tier("alice", "day")
        .tenant_in_tier("bob", "day")
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(On::Own(stack), poisoned_reports_end_neither_metering_nor_quotas).exclusive(),
        case!(On::Own(few_new_tenants), invented_leases_create_only_so_much),
    ]
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Waits for the next day if the present one, in UTC, is about to end.
async fn well_before_midnight() -> Result<()> {
    let enough = || now_s() % 86_400 < 86_400 - 120;
    until("midnight to pass", Duration::from_secs(150), || async { enough().then_some(()) }).await
}

fn forged(source: &str, tenant: &str, reads: u64, price_cents: u64) -> Value {
    let limits = json!({ "price_cents_month": price_cents });
    let row = json!({
        "tenant": tenant, "tier": "day", "limits": limits, "hour": now_s() / 3_600,
        "counters": { "reads": reads },
    });
    json!({ "gateway": "gateway-1", "source": source, "sequence": 1, "rows": [row] })
}

/// Sends a report as a faulty filter would; returns the number of rows that were not believed.
async fn send(stack: &Stack, report: &Value) -> Result<u64> {
    let gate = stack.orchestrator.gate();
    let headers = [("content-type", "application/json")];
    let body = report.to_string().into();
    let response = gate.send(hyper::Method::POST, "/v1/usage", &headers, body).await?;
    let response: Value = response.expect_ok()?.json()?;
    response["quarantined"].as_u64().context("no number of rows in quarantine")
}

fn repair(stack: &Stack, args: &[&str]) -> Result<String> {
    operator(stack, &[&["usage", "repair"], args].concat())
}

fn operator(stack: &Stack, args: &[&str]) -> Result<String> {
    let output = Command::new(tools::workspace_binary("orchestrator")?)
        .args(args)
        .env("SQ_ADMIN", stack.orchestrator.socket("admin"))
        .output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{args:?}: {} {stderr}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// Waits until the month has exactly these forwarded reads, and no other tenant.
async fn expect_month(stack: &Stack, expected: &[(&str, u64)]) -> Result<MonthUsage> {
    let month = until(format!("the month to be {expected:?}"), REPORTED, || async {
        let month = stack.orchestrator.month_usage().await.ok()?;
        let reads: u64 = expected.iter().map(|(_, reads)| reads).sum();
        (month.total.reads >= reads).then_some(month)
    })
    .await?;
    let response = stack.orchestrator.admin().get("/v1/usage").await?.expect_ok()?;
    let body: Value = response.json()?;
    let tenants = body["tenants"].as_array().context("no tenants")?;
    let mut found = Vec::new();
    for tenant in tenants {
        let name = tenant["tenant"].as_str().context("no name")?;
        found.push((name, tenant["sums"]["reads"].as_u64().context("no reads")?));
    }
    ensure!(found == expected, "{found:?} instead of {expected:?}");
    Ok(month)
}

async fn poisoned_reports_end_neither_metering_nor_quotas(stack: Arc<Stack>) -> Result<()> {
    well_before_midnight().await?;
    let alice = stack.client(Http::Two)?.key(stack.key("alice")?);
    let bob = stack.client(Http::Two)?.key(stack.key("bob")?);
    for _ in 0..5 {
        alice.get(TOC).await?.expect_ok()?;
        bob.get(TOC).await?.expect_ok()?;
    }
    expect_month(&stack, &[("alice", 5), ("bob", 5)]).await?;

    // The two reports that made every sum overflow, then others of their kind.
    for source in ["a-1", "b-1"] {
        ensure!(send(&stack, &forged(source, "evil", u64::MAX, 0)).await? == 1);
        ensure!(send(&stack, &forged(source, "alice", u64::MAX, 0)).await? == 1);
    }
    ensure!(send(&stack, &forged("c-1", "alice", 1, u64::from(u32::MAX))).await? == 1);
    for n in 0..50 {
        ensure!(send(&stack, &forged("d-1", &format!("invented-{n}"), 5, 0)).await? == 1);
    }
    for restarted in [false, true] {
        if restarted {
            stack.orchestrator.service().kill();
            stack.orchestrator.start().await?;
        }
        until("the ledger to be open", REPORTED, || async {
            let open = "sq_orchestrator_ledger_condition{condition=\"open\"}";
            (stack.orchestrator.labelled_metric(open).await.ok()? > 0.0).then_some(())
        })
        .await?;
        let month = expect_month(&stack, &[("alice", 5), ("bob", 5)]).await?;
        ensure!(month.revenue.cents == 0, "{month:?}");
        alice.get("/api/v2/usage").await?.expect_ok()?;
        let metrics = stack.orchestrator.metrics().get("/metrics").await?.text();
        ensure!(!metrics.contains("invented") && !metrics.contains("evil"), "{metrics}");
    }

    // A believable lie does harm, until the operator removes it.
    ensure!(send(&stack, &forged("e-1", "bob", 10_000, 0)).await? == 0);
    until("bob to be over its quota", REPORTED, || async {
        bob.get(TOC).await.ok()?.is_problem("quota-exceeded").then_some(())
    })
    .await?;
    let span = ["--from", "2020-01-01", "--to", "2100-01-01"];
    let rows = repair(&stack, &[&["rows", "--tenant", "bob"], &span[..]].concat())?;
    ensure!(rows.contains("e-1") && rows.contains("10000"), "{rows}");
    let removed = repair(&stack, &[&["remove", "--source", "e-1", "--apply"], &span[..]].concat())?;
    ensure!(
        removed.starts_with("1 row changed: 10000 requests before, 0 requests after"),
        "{removed}"
    );
    until("bob to be served again", REPORTED, || async {
        bob.get(TOC).await.ok()?.ok().then_some(())
    })
    .await?;

    // Quotas still hold.
    let mut served = 5;
    while alice.get(TOC).await?.ok() {
        served += 1;
        ensure!(served < 50 * QUOTA, "the quota is not enforced");
    }
    alice.get(TOC).await?.expect_problem(429, "quota-exceeded")?;
    ensure!(served >= QUOTA, "refused after {served} requests");

    let list = repair(&stack, &[])?;
    ensure!(list.contains("evil") && list.contains("counter-too-large"), "{list}");
    let dropped = repair(&stack, &["drop", "--source", "d-1", "--apply"])?;
    ensure!(dropped.starts_with("50 rows changed"), "{dropped}");
    for source in ["a-1", "b-1", "c-1", "e-1"] {
        repair(&stack, &["drop", "--source", source, "--apply"])?;
    }
    let list = repair(&stack, &[])?;
    ensure!(list == "the quarantine is empty\n", "{list}");
    repairs_are_written_down(&stack)
}

/// Each repair is in the audit log with its user, and a changed line is found.
fn repairs_are_written_down(stack: &Stack) -> Result<()> {
    let table = operator(stack, &["audit"])?;
    let removal = table.lines().find(|line| line.contains("remove"));
    let removal = removal.with_context(|| format!("no removal in {table}"))?;
    let user = format!("uid {}, pid ", rustix::process::geteuid().as_raw());
    ensure!(removal.contains(&user) && removal.contains("done"), "{table}");
    operator(stack, &["audit", "--verify"])?;
    let path = stack.orchestrator.state().join("audit.jsonl");
    let log = std::fs::read_to_string(&path)?;
    std::fs::write(&path, log.replace("source=e-1", "source=e-2"))?;
    let fault = operator(stack, &["audit", "--verify"]).unwrap_err().to_string();
    ensure!(fault.contains("not whole"), "{fault}");
    Ok(())
}

/// Requests a lease as a faulty filter would. Returns the status and the text of the response.
async fn lease(stack: &Stack, tenant: &str, limits: Value) -> Result<(u16, String)> {
    let request = json!({
        "gateway": "gateway-1", "tenant": tenant, "tier": "free", "limits": limits,
        "patience_ms": 1,
    });
    let headers = [("content-type", "application/json")];
    let gate = stack.orchestrator.gate();
    let body = request.to_string().into();
    let response = gate.send(hyper::Method::POST, "/v1/lease", &headers, body).await?;
    Ok((response.status, response.text()))
}

async fn invented_leases_create_only_so_much(stack: Arc<Stack>) -> Result<()> {
    let alice = stack.tenant("alice")?;
    alice.update("note", "text").await?.expect_ok()?;
    for (memory, status, text) in [
        (u64::MAX, 400, "limits.memory_bytes is beyond"),
        (64 << 30, 503, "host.tenant_memory_max"),
    ] {
        let refused = lease(&stack, "alice", json!({ "memory_bytes": memory })).await?;
        ensure!(refused.0 == status && refused.1.contains(text), "{memory}: {refused:?}");
    }
    let mut refused = 0;
    for number in 0..6 {
        let (_, text) = lease(&stack, &format!("evil-{number}"), json!({})).await?;
        refused += u64::from(text.contains("lifecycle.new_tenants_per_minute"));
    }
    // Those before the end of a minute and those after it have a budget each.
    ensure!((6 - 2 * NEW_TENANTS..=6).contains(&refused), "{refused} of 6 were refused");
    let entries = std::fs::read_dir(stack.orchestrator.data())?.flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let invented = names.filter(|name| name.starts_with("evil-")).count() as u64;
    ensure!(invented == 6 - refused, "{invented} folders, {refused} of 6 were refused");
    alice.select("note").await?.expect_text(200, "text")?;
    Ok(())
}
