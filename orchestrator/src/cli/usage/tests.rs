use std::collections::BTreeMap;

use axum::routing::get;
use axum::{Json, Router};
use clap::Parser;
use protocol::usage::UsageRow;
use protocol::{Counters, GatewayId, Limits, TierName, UsageReport};
use tempfile::TempDir;
use tokio::net::UnixListener;

use std::time::Duration;

use super::*;
use crate::api::startup::Startup;
use crate::api::usage::{UsageApi, admin_router};
use crate::host;
use crate::storage::disk::Disk;
use crate::usage::ledger::Ledger;

#[derive(Debug, Parser)]
struct TestCli {
    #[command(flatten)]
    usage: UsageArgs,
}

/// Serves on a socket in `dir` and returns its path.
fn serve(dir: &Path, name: &str, routes: Router) -> String {
    let socket = dir.join(name);
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move { axum::serve(listener, routes).await });
    socket.display().to_string()
}

/// An orchestrator's admin API. Its ledger has one tenant with 7 forwarded and 3 refused requests.
async fn orchestrator() -> (TempDir, String, Ledger) {
    let dir = TempDir::new().unwrap();
    let ledger = Ledger::open(&dir.path().join("ledger.sqlite"), dir.path()).unwrap();
    ledger.checked().await;
    ledger.leased(&TenantId::parse("alice").unwrap(), &TierName::parse("pro").unwrap());
    let row = UsageRow {
        tenant: TenantId::parse("alice").unwrap(),
        tier: TierName::parse("pro").unwrap(),
        limits: Limits { price_cents_month: 1_900, ..Limits::default() },
        hour: host::now_s() / 3_600,
        counters: Counters {
            reads: 5,
            writes: 2,
            refused: BTreeMap::from([("rate-limited".to_owned(), 3)]),
            status: [0, 0, 7, 0, 3, 0],
            ..Counters::default()
        },
    };
    let gateway = GatewayId::parse("gw").unwrap();
    let report = UsageReport { gateway, source: "vm".to_owned(), sequence: 1, rows: vec![row] };
    ledger.report(report).await.unwrap();
    let api = UsageApi::new(ledger.clone(), Disk::new(dir.path(), 0), Startup::default(), 380);
    let socket = serve(dir.path(), "admin.sock", admin_router(api));
    (dir, socket, ledger)
}

/// The part of an Envoy's admin API that is used; `metered` requests were put into reports.
fn envoy(dir: &Path, ok: u64, client_errors: u64, metered: u64) -> String {
    let info = serde_json::json!({
        "version": "x/1.40.0/Clean/RELEASE/BoringSSL",
        "uptime_all_epochs": "60s",
        "node": {"id": "gw", "cluster": ""},
    });
    let name = |n: &str| format!("http.https.downstream_rq_{n}");
    let stats = serde_json::json!({"stats": [
        {"name": name("1xx"), "value": 0},
        {"name": name("2xx"), "value": ok},
        {"name": name("4xx"), "value": client_errors},
        {"name": name("5xx"), "value": 0},
        {"name": name("active"), "value": 0},
        {"name": name("completed"), "value": ok + client_errors},
        {"name": name("total"), "value": ok + client_errors},
        {"name": "wasmcustom.sq_gate.metered", "value": metered},
        {"histograms": {"supported_quantiles": []}},
    ]});
    let routes = Router::new()
        .route("/server_info", get(|| async { Json(info) }))
        .route("/stats", get(|| async { Json(stats) }));
    serve(dir, &format!("envoy-{metered}.sock"), routes)
}

async fn usage(words: &[&str]) -> anyhow::Result<String> {
    let cli = TestCli::try_parse_from(["usage"].iter().chain(words))?;
    run(cli.usage).await
}

#[tokio::test]
async fn table_shows_usage_and_revenue() {
    let (_dir, admin, _ledger) = orchestrator().await;
    let text = usage(&["--admin", &admin]).await.unwrap();
    let alice = text.lines().find(|line| line.starts_with("alice")).unwrap();
    let cells: Vec<_> = alice.split_whitespace().collect();
    assert_eq!(&cells[..7], ["alice", "pro", "19.00", "10", "5", "2", "3"]);
    assert!(text.contains("revenue 19.00 of 380.00 USD a month (5 % of the target)"), "{text}");
}

#[tokio::test]
async fn one_tenant_is_shown_with_its_refusals() {
    let (_dir, admin, _ledger) = orchestrator().await;
    let text = usage(&["--admin", &admin, "--tenant", "alice"]).await.unwrap();
    assert!(text.contains("refused rate-limited: 3"), "{text}");
    let fault = usage(&["--admin", &admin, "--tenant", "bob"]).await.unwrap_err().to_string();
    assert!(fault.contains("bob has no usage in"), "{fault}");
}

#[tokio::test]
async fn csv_and_json_have_the_same_numbers() {
    let (_dir, admin, _ledger) = orchestrator().await;
    let csv = usage(&["--admin", &admin, "--format", "csv"]).await.unwrap();
    let lines: Vec<_> = csv.lines().collect();
    assert!(lines[0].starts_with("tenant,tier,price_usd,requests,"));
    assert!(lines[1].starts_with("alice,pro,19.00,10,5,2,3,7,3,0,0,"), "{csv}");
    let json = usage(&["--admin", &admin, "--format", "json"]).await.unwrap();
    let month: MonthUsage = serde_json::from_str(&json).unwrap();
    assert_eq!(month.total.requests(), 10);
}

#[tokio::test]
async fn empty_month_is_shown_and_invalid_refused() {
    let (_dir, admin, _ledger) = orchestrator().await;
    let text = usage(&["--admin", &admin, "--month", "2001-02"]).await.unwrap();
    assert!(text.contains("usage of 2001-02") && text.contains("0 tenants"), "{text}");
    let fault = usage(&["--admin", &admin, "--month", "soon"]).await.unwrap_err().to_string();
    assert!(fault.contains("YYYY-MM"), "{fault}");
    assert!(usage(&["--admin", &admin, "--tenant", "a&month=x"]).await.is_err());
}

#[tokio::test]
async fn reconcile_fails_on_double_counting() {
    let (dir, admin, _ledger) = orchestrator().await;
    let more = envoy(dir.path(), 8, 5, 10);
    let words = ["reconcile", "--envoy-admin", &more, "--admin", &admin];
    let text = usage(&words).await.unwrap();
    let total: Vec<_> =
        text.lines().find(|l| l.starts_with("total")).unwrap().split_whitespace().collect();
    assert_eq!(total, ["total", "13", "10", "3", "0"], "{text}");
    let less = envoy(dir.path(), 6, 3, 9);
    let words = ["reconcile", "--envoy-admin", &less, "--admin", &admin];
    let fault = usage(&words).await.unwrap_err().to_string();
    assert!(fault.contains("1 request more than Envoy"), "{fault}");
}

#[tokio::test]
async fn reconcile_fails_on_lost_requests() {
    let (dir, admin, _ledger) = orchestrator().await;
    let lossy = envoy(dir.path(), 8, 5, 12);
    let orchestrator = AdminClient::orchestrator(Path::new(&admin)).unwrap();
    let lossy = AdminClient::envoy(Path::new(&lossy)).unwrap();
    let fault = reconcile::run(&orchestrator, &lossy, "https", Duration::ZERO).await.unwrap_err();
    let fault = fault.to_string();
    assert!(fault.contains("lost 2:") && fault.contains("lacks 2 requests"), "{fault}");
}

#[tokio::test]
async fn backup_beside_the_writer_replaces_nothing() {
    let (dir, admin, _ledger) = orchestrator().await;
    let file = dir.path().join("copy.sqlite");
    let words = ["backup", file.to_str().unwrap(), "--admin", &admin];
    let text = usage(&words).await.unwrap();
    assert!(text.contains("is checked"), "{text}");
    let copy = Store::open_read_only(&file).unwrap();
    assert_eq!(copy.sums_by_tenant(0..u64::MAX / 2).unwrap()[0].sums.requests(), 10);
    let fault = usage(&words).await.unwrap_err().to_string();
    assert!(fault.contains("exists already"), "{fault}");
}

#[tokio::test]
async fn repair_lists_releases_and_drops_rows() {
    let (_dir, admin, ledger) = orchestrator().await;
    let empty = usage(&["repair", "--admin", &admin]).await.unwrap();
    assert_eq!(empty, "the quarantine is empty\n");
    ledger.report(forged("evil", 5)).await.unwrap();
    ledger.report(forged("alice", u64::MAX)).await.unwrap();
    let list = usage(&["repair", "--admin", &admin]).await.unwrap();
    assert!(list.contains("2 rows in quarantine"), "{list}");
    let evil = list.lines().find(|line| line.contains("evil")).unwrap();
    assert!(evil.contains("unknown-tenant"), "{list}");
    let words = ["repair", "--admin", &admin, "release", "--tenant", "evil"];
    let dry = usage(&words).await.unwrap();
    assert!(dry.starts_with("1 row would be changed: 5 requests before"), "{dry}");
    assert!(usage(&["--admin", &admin]).await.unwrap().contains("1 tenant"), "nothing is changed");
    let released = usage(&[&words[..], &["--apply"]].concat()).await.unwrap();
    assert!(released.starts_with("1 row changed"), "{released}");
    let words = ["repair", "--admin", &admin, "release", "--tenant", "alice", "--apply"];
    let refused = usage(&words).await.unwrap();
    assert!(refused.contains("stays:") && refused.contains("0 rows changed"), "{refused}");
    let words = ["repair", "--admin", &admin, "drop", "--tenant", "alice", "--apply"];
    assert!(usage(&words).await.unwrap().starts_with("1 row changed"));
    assert_eq!(usage(&["repair", "--admin", &admin]).await.unwrap(), empty);
}

/// A report that a faulty filter may send.
fn forged(tenant: &str, reads: u64) -> UsageReport {
    let row = UsageRow {
        tenant: TenantId::parse(tenant).unwrap(),
        tier: TierName::parse("pro").unwrap(),
        limits: Limits::default(),
        hour: host::now_s() / 3_600,
        counters: Counters { reads, ..Counters::default() },
    };
    let gateway = GatewayId::parse("gw").unwrap();
    UsageReport { gateway, source: "forged-1".to_owned(), sequence: 1, rows: vec![row] }
}

#[tokio::test]
async fn believable_wrong_rows_are_removed_or_set() {
    let (_dir, admin, ledger) = orchestrator().await;
    ledger.report(forged("alice", 10_000)).await.unwrap();
    let alice = TenantId::parse("alice").unwrap();
    assert_eq!(ledger.notice(&alice).requests_day, 10_007);
    let span = ["--from", "2020-01-01", "--to", "2100-01-01"];
    let repair = async |words: &[&str]| {
        let words = [&["repair", "--admin", &admin], words, &span].concat();
        usage(&words).await
    };
    let rows = repair(&["rows", "--tenant", "alice"]).await.unwrap();
    assert!(rows.contains("forged-1") && rows.contains("2 rows"), "{rows}");
    let set = ["set", "--source", "forged-1", "--reads", "3", "--apply"];
    repair(&set).await.unwrap();
    assert_eq!(ledger.notice(&alice).requests_day, 10);
    repair(&["remove", "--source", "forged-1", "--apply"]).await.unwrap();
    assert_eq!(ledger.notice(&alice).requests_day, 7);
    let everything = repair(&["remove", "--apply"]).await.unwrap_err().to_string();
    assert!(everything.contains("name a gateway, a source or a tenant"), "{everything}");
}
