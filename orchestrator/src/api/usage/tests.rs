use std::fs;
use std::path::Path as FsPath;
use std::time::Duration;

use protocol::time::HOUR_S;
use protocol::usage::UsageRow;
use protocol::{ByteLimit, CountLimit, Counters, TierName, UsageReport};
use tempfile::TempDir;
use tokio::net::UnixListener;

use super::*;
use crate::api::startup::Startup;
use crate::cli::client::AdminClient;
use crate::storage::disk::Disk;
use crate::tenants::metrics::Metrics;
use crate::usage::ledger::{Condition, Ledger, ReportError};
use crate::usage::metrics::UsageCollector;
use crate::usage::sums::Sums;

/// The API over a real ledger and real files.
struct Served {
    dir: TempDir,
    api: UsageApi,
}

async fn served() -> Served {
    let dir = TempDir::new().unwrap();
    let served = served_at(dir, "ledger.sqlite");
    assert_eq!(served.api.ledger.checked().await, Condition::Open);
    served
}

/// The same, without waiting until the ledger is open.
fn served_at(dir: TempDir, file: &str) -> Served {
    let ledger = Ledger::open(&dir.path().join(file), dir.path()).unwrap();
    ledger.leased(&tenant(), &TierName::parse("pro").unwrap());
    let disk = Disk::new(dir.path(), 0);
    Served { api: UsageApi::new(ledger, disk, Startup::default(), 380), dir }
}

fn tenant() -> TenantId {
    TenantId::parse("alice").unwrap()
}

fn report_of(reads: u64, writes: u64) -> UsageReport {
    let counters = Counters {
        reads,
        writes,
        refused: BTreeMap::from([("rate-limited".to_owned(), 3)]),
        status: [0, 0, reads + writes, 0, 3, 0],
        bytes_out: 1_000 * reads,
        ..Counters::default()
    };
    let row = UsageRow {
        tenant: tenant(),
        tier: TierName::parse("pro").unwrap(),
        limits: Limits { price_cents_month: 1_900, ..Limits::default() },
        hour: host::now_s() / HOUR_S,
        counters,
    };
    let gateway = GatewayId::parse("gw").unwrap();
    UsageReport { gateway, source: "vm".to_owned(), sequence: 7, rows: vec![row] }
}

/// Sends a report as a gateway does.
async fn post_report(served: &Served, report: &UsageReport) -> (StatusCode, UsageResponse) {
    let raw = serde_json::from_value(serde_json::to_value(report).unwrap()).unwrap();
    let response = super::report(State(served.api.clone()), Json(raw)).await;
    let (status, text) = body(response).await;
    (status, serde_json::from_str(&text).unwrap())
}

/// The metrics as Prometheus reads them.
fn scrape(served: &Served) -> String {
    Metrics::new(Some(Box::new(UsageCollector(served.api.ledger.clone())))).encode()
}

async fn body(response: Response) -> (StatusCode, String) {
    let status = response.status();
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

#[tokio::test]
async fn report_returns_usage_and_storage_of_tenant() {
    let served = served().await;
    fs::create_dir(served.dir.path().join("alice")).unwrap();
    fs::write(served.dir.path().join("alice/notes.phext"), "12345").unwrap();
    let (status, response) = post_report(&served, &report_of(5, 2)).await;
    assert_eq!((status, response.sequence, response.quarantined), (StatusCode::OK, 7, 0));
    let notice = &response.notices[&tenant()];
    assert_eq!((notice.requests_day, notice.writes_day, notice.requests_month), (7, 2, 7));
    // Its one scroll counts for more than its bytes.
    assert_eq!((notice.storage_used_bytes, notice.phexts["notes"]), (5, 80));
    assert!(!notice.host_full && notice.day_ends_s > host::now_s());
}

#[tokio::test]
async fn acknowledged_report_survives_restart() {
    let served = served().await;
    served.api.ledger.report(report_of(5, 2)).await.unwrap();
    let path = served.dir.path().join("ledger.sqlite");
    let again = Ledger::open(&path, FsPath::new("/nonexistent")).unwrap();
    again.checked().await;
    assert_eq!(again.notice(&tenant()).requests_day, 7);
    again.report(report_of(5, 2)).await.unwrap();
    assert_eq!(again.notice(&tenant()).requests_day, 7, "the same report again adds nothing");
}

#[tokio::test]
async fn concurrent_reports_share_commits_and_all_count() {
    let served = served().await;
    let mut tasks = tokio::task::JoinSet::new();
    for source in 0..200 {
        let ledger = served.api.ledger.clone();
        let report = UsageReport { source: format!("vm-{source}"), ..report_of(5, 2) };
        tasks.spawn(async move { ledger.report(report).await });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap().unwrap();
    }
    assert_eq!(served.api.ledger.notice(&tenant()).requests_day, 200 * 7);
    let counted = served.api.ledger.counted();
    assert_eq!((counted.reports, counted.sums.refused), (200, 600));
    assert!(counted.commits < 200, "{} commits", counted.commits);
}

#[tokio::test]
async fn tenant_sees_periods_limits_and_storage() {
    let served = served().await;
    served.api.ledger.report(report_of(5, 2)).await.unwrap();
    let response = tenant_usage(State(served.api.clone()), Path("alice".to_owned())).await;
    let usage: TenantUsage = serde_json::from_str(&body(response).await.1).unwrap();
    assert_eq!((usage.hour.reads, usage.day.writes, usage.month.refused), (5, 2, 3));
    assert_eq!(usage.month.reasons["rate-limited"], 3);
    assert_eq!(usage.quotas.requests_day.used, 7);
    assert_eq!(usage.quotas.requests_day.limit, Some(Limits::default().requests_per_day));
    let egress = usage.quotas.egress_day;
    assert_eq!((egress.used, egress.limit), (5_000, Some(ByteLimit::Bytes(1_000_000_000))));
    assert_eq!(usage.storage.limit_bytes, Some(Limits::default().storage_bytes));
    let unknown = served.api.tenant(TenantId::parse("nobody").unwrap(), None).await.unwrap();
    assert_eq!((unknown.month, unknown.limits), (Sums::default(), None));
}

#[tokio::test]
async fn operator_sees_month_total_and_revenue() {
    let served = served().await;
    served.api.ledger.report(report_of(5, 2)).await.unwrap();
    let query = MonthQuery::default();
    let response = month_usage(State(served.api.clone()), Query(query)).await;
    let usage: MonthUsage = serde_json::from_str(&body(response).await.1).unwrap();
    assert_eq!((usage.tenants.len(), usage.total.forwarded()), (1, 7));
    assert_eq!((usage.revenue.cents, usage.revenue.target_cents), (1_900, 38_000));
    let query = MonthQuery { month: Some("2026-13".to_owned()), tenant: None };
    let (status, text) = body(month_usage(State(served.api), Query(query)).await).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(text.contains("YYYY-MM"));
}

#[tokio::test]
async fn metrics_count_usage_and_name_no_tenant() {
    let served = served().await;
    let mut report = report_of(1, 0);
    let invented = &mut report.rows[0].counters.refused;
    invented.extend((0..100).map(|n| (format!("invented-{n}"), 1)));
    let row = report.rows.remove(0);
    report.rows = (0..50)
        .map(|n| {
            let mut row = row.clone();
            row.tenant = TenantId::parse(&format!("t{n}")).unwrap();
            row.counters.reads = n;
            served.api.ledger.leased(&row.tenant, &row.tier);
            row
        })
        .collect();
    served.api.ledger.report(report).await.unwrap();
    let text = scrape(&served);
    assert!(!text.contains("tenant=") && !text.contains("t49"), "{text}");
    assert!(text.contains("sq_orchestrator_usage_requests_total{class=\"read\"} 1225"), "{text}");
    assert!(text.contains("sq_orchestrator_ledger_commits_total 1"), "{text}");
    assert!(
        text.contains("sq_orchestrator_usage_refused_total{reason=\"rate-limited\"} 150"),
        "{text}"
    );
    assert!(text.contains("sq_orchestrator_usage_refused_total{reason=\"other\"} 5000"), "{text}");
    assert!(!text.contains("invented"), "{text}");
    let labels = text.lines().filter_map(|line| line.split_once('{')?.1.split_once('='));
    let labels: BTreeSet<&str> = labels.map(|(label, _)| label).collect();
    assert_eq!(
        labels.into_iter().collect::<Vec<_>>(),
        ["class", "condition", "direction", "kind", "le", "reason", "status"]
    );
}

#[tokio::test]
async fn both_routers_respond_over_http() {
    let served = served().await;
    let routes = gate_router(served.api.clone()).merge(admin_router(served.api.clone()));
    // One path, two methods: GET of the admin API, POST of the gate API.
    let socket = served.dir.path().join("admin.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let task = tokio::spawn(async move { axum::serve(listener, routes).await });
    let client = AdminClient::orchestrator(&socket).unwrap();
    let get = async |path: &str| client.get::<serde_json::Value>(path).await;
    assert!(get("/v1/usage").await.is_ok());
    assert!(get("/v1/usage/alice").await.is_ok());
    assert!(get("/v1/usage/gateways/gw?since_s=0").await.is_ok());
    assert!(get("/v1/usage/Not-A-Tenant").await.is_err());
    assert!(get("/v1/usage/quarantine?reason=jump").await.is_ok());
    assert!(get("/v1/usage/rows?tenant=alice&from_s=0&to_s=9").await.is_ok());
    let post = async |path: &str| client.post::<serde_json::Value>(path).await;
    assert!(post("/v1/usage/quarantine/drop?tenant=alice").await.is_ok());
    for refused in [
        "/v1/usage/quarantine/drop?apply=true",
        "/v1/usage/rows/remove?from_s=0&to_s=9",
        "/v1/usage/rows/remove?tenant=alice&from_s=9&to_s=9",
        "/v1/usage/rows/set?tenant=alice&from_s=0&to_s=9",
        "/v1/usage/rows/set?tenant=alice&from_s=0&to_s=9&reads=1000000001",
    ] {
        assert!(post(refused).await.unwrap_err().to_string().contains("400"), "{refused}");
    }
    let file: LedgerFile = client.get("/v1/usage/ledger").await.unwrap();
    assert_eq!(file.path, served.dir.path().join("ledger.sqlite"));
    task.abort();
}

#[tokio::test]
async fn exhausted_quota_reaches_gateways_without_reports() {
    let served = served().await;
    let limits = Limits { requests_per_day: CountLimit::Count(7), ..Limits::default() };
    let mut over = report_of(5, 2);
    over.rows[0].limits = limits.clone();
    post_report(&served, &over).await;
    let nothing = UsageReport { source: "other".to_owned(), rows: vec![], ..report_of(0, 0) };
    let (status, response) = post_report(&served, &nothing).await;
    assert_eq!(status, StatusCode::OK);
    assert!(response.notices[&tenant()].is_over(&limits), "{response:?}");
    assert_eq!(served.api.ledger.counted().reports, 1, "a report without rows is not written");
}

#[tokio::test]
async fn unopened_ledger_refuses_reports_and_notes_nothing() {
    let dir = TempDir::new().unwrap();
    // Without its folder the ledger stays closed, as while a large one is checked.
    let Served { dir, api } = served_at(dir, "later/ledger.sqlite");
    let raw = serde_json::from_value(serde_json::to_value(report_of(5, 2)).unwrap()).unwrap();
    let response = report(State(api.clone()), Json(raw)).await;
    assert_eq!(body(response).await.0, StatusCode::SERVICE_UNAVAILABLE);
    let notice = api.notice(&tenant());
    assert_eq!((notice.requests_day, notice.day_ends_s), (0, 0), "unknown, which passes");
    assert!(!notice.host_full, "storage does not need the ledger");
    let (status, text) =
        body(tenant_usage(State(api.clone()), Path("alice".to_owned())).await).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(text.contains("quotas hold per worker only"), "{text}");
    fs::create_dir(dir.path().join("later")).unwrap();
    let open = async {
        while api.ledger.condition() != Condition::Open {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), open).await.unwrap();
    api.ledger.report(report_of(5, 2)).await.unwrap();
    assert_eq!(api.notice(&tenant()).requests_day, 7);
}

#[tokio::test]
async fn damaged_ledger_is_shown_and_not_written() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("ledger.sqlite");
    let garbage = "this is no database, whatever its name says".repeat(100);
    fs::write(&path, &garbage).unwrap();
    let served = served_at(dir, "ledger.sqlite");
    let condition = served.api.ledger.checked().await;
    let problem = condition.problem().unwrap();
    assert!(problem.contains("is damaged") && problem.contains("backup"), "{problem}");
    assert_eq!(served.api.ledger.report(report_of(5, 2)).await, Err(ReportError::NotOpen));
    assert_eq!(served.api.notice(&tenant()).day_ends_s, 0);
    assert_eq!(fs::read_to_string(&path).unwrap(), garbage);
    let text = scrape(&served);
    assert!(text.contains("sq_orchestrator_ledger_condition{condition=\"failed\"} 1"), "{text}");
    assert!(text.contains("sq_orchestrator_ledger_condition{condition=\"open\"} 0"), "{text}");
}

#[tokio::test]
async fn invented_tenants_enter_neither_notices_nor_metrics() {
    let served = served().await;
    let mut flood = report_of(1, 0);
    let row = flood.rows[0].clone();
    for n in 0..200 {
        let tenant = TenantId::parse(&format!("invented-{n}")).unwrap();
        let limits = Limits { requests_per_day: CountLimit::Count(1), ..Limits::default() };
        flood.rows.push(UsageRow { tenant, limits, ..row.clone() });
    }
    let (status, response) = post_report(&served, &flood).await;
    assert_eq!((status, response.quarantined), (StatusCode::OK, 200));
    assert_eq!(response.notices.keys().collect::<Vec<_>>(), [&tenant()]);
    assert_eq!(served.api.exhausted.announced(), [], "none of them is announced to all gateways");
    let text = scrape(&served);
    assert!(!text.contains("invented"), "{text}");
    let name = "sq_orchestrator_ledger_quarantined_rows_total";
    assert!(text.contains(&format!("{name}{{reason=\"unknown-tenant\"}} 200")), "{text}");
    assert!(text.contains("sq_orchestrator_usage_requests_total{class=\"read\"} 1"), "{text}");
}

#[tokio::test]
async fn first_lease_releases_rows_of_a_tenant() {
    let served = served().await;
    let bob = TenantId::parse("bob").unwrap();
    let tier = TierName::parse("new").unwrap();
    let mut first = report_of(0, 0);
    first.rows[0].tenant = bob.clone();
    first.rows[0].tier = tier.clone();
    let (_, response) = post_report(&served, &first).await;
    assert_eq!(response.quarantined, 1, "all of its requests were refused before any lease");
    served.api.ledger.leased(&bob, &tier);
    let month = async || served.api.month(Month::of(host::now_s()), Some(bob.clone())).await;
    let released = async {
        while month().await.unwrap().total.refused == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), released).await.unwrap();
    assert_eq!(month().await.unwrap().total.reasons["rate-limited"], 3);
    assert_eq!(served.api.ledger.counted().released, 1);
}

#[tokio::test]
async fn source_of_no_gate_is_refused() {
    let served = served().await;
    let raw = UsageReport { source: "a b".repeat(1_000), ..report_of(1, 0) };
    let raw = serde_json::from_value(serde_json::to_value(raw).unwrap()).unwrap();
    let response = report(State(served.api.clone()), Json(raw)).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
}
