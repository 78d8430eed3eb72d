//! Usage over HTTP: reports come in, tenants and the operator look.
//!
//! | request | answer |
//! |---|---|
//! | gate: `POST /v1/usage` ([`UsageReport`]) | 200 [`UsageResponse`] once it is on disk; 503: keep it |
//! | gate: `POST /v1/usage/{tenant}` ([`TenantUsageRequest`]) | 200 [`TenantUsage`]; wakes nobody |
//! | gate: `GET /v1/usage/{tenant}` | the same with tier and limits as last reported |
//! | admin: `GET /v1/usage[?month=YYYY-MM][&tenant=T]` | 200 [`MonthUsage`] |
//! | admin: `GET /v1/usage/gateways/{id}?since_s=N` | 200 [`Sums`]: for reconciling |
//! | admin: `GET /v1/usage/ledger` | 200 [`LedgerFile`]: for a backup on this host |
//!
//! All but the last answer 503 until the ledger is open, and say why.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use protocol::calendar::Month;
use protocol::headers::{TENANT_USAGE_PATH, USAGE_PATH};
use protocol::time::{DAY_S, HOUR_S};
use protocol::usage::TenantUsageRequest;
use protocol::{GatewayId, Limits, TenantId, TenantNotice, TierName, UsageReport, UsageResponse};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::api::status::LastWake;
use crate::host;
use crate::storage::disk::Disk;
use crate::tenants::driver::Handle;
use crate::usage::ledger::{Ledger, QueryError};
use crate::usage::revenue::Revenue;
use crate::usage::sums::{Sums, TenantSums};

#[cfg(test)]
mod tests;

use crate::storage::measured::Storage;
use crate::usage::exhausted::ExhaustedQuotas;

/// A report has at most 500 rows of about 1 KB.
const REPORT_MAX_BYTES: usize = 4 << 20;

/// What the routes need.
#[derive(Debug, Clone)]
pub struct UsageApi {
    /// What was used.
    pub ledger: Ledger,
    /// What is stored.
    pub storage: Arc<Storage>,
    /// Who has used up a quota, for gateways that have not served it lately.
    pub exhausted: Arc<ExhaustedQuotas>,
    /// Asked where a tenant is; empty until tenants are adopted.
    pub handle: Arc<OnceLock<Handle>>,
    /// What a month is hoped to earn.
    pub revenue_target_usd_month: u64,
}

/// A tenant's own numbers: what `GET /api/v2/usage` shows. Times are UTC.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TenantUsage {
    /// Who.
    pub tenant: TenantId,
    /// Its tier; none is known before its first report.
    pub tier: Option<TierName>,
    /// This hour.
    pub hour: Sums,
    /// This day.
    pub day: Sums,
    /// This month.
    pub month: Sums,
    /// What is counted against what.
    pub quotas: Quotas,
    /// All limits; none are known before its first report.
    pub limits: Option<Limits>,
    /// Files.
    pub storage: StorageUsage,
    /// `asleep`, `awake` and so on.
    pub state: String,
    /// What the last wake since the orchestrator's start was and took.
    pub last_wake: Option<LastWake>,
}

/// Quotas with what is used of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quotas {
    /// Forwarded requests of this day.
    pub requests_day: Quota,
    /// Forwarded requests of this month.
    pub requests_month: Quota,
    /// Forwarded writes of this day.
    pub writes_day: Quota,
}

/// One quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Used.
    pub used: u64,
    /// Allowed; 0 is unlimited, none is not known yet.
    pub limit: Option<u64>,
    /// When it starts anew, seconds since 1970.
    pub ends_s: u64,
}

/// Files of a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageUsage {
    /// Bytes of all files.
    pub used_bytes: u64,
    /// Bytes allowed.
    pub limit_bytes: Option<u64>,
    /// What each phext counts against the largest: its bytes, or more with many small scrolls.
    pub phexts: BTreeMap<String, u64>,
}

/// A month of all tenants, or of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonthUsage {
    /// `YYYY-MM`.
    pub month: String,
    /// By tenant.
    pub tenants: Vec<TenantSums>,
    /// All of them.
    pub total: Sums,
    /// What those pay that were served.
    pub revenue: Revenue,
}

/// Where the ledger is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerFile {
    /// The database file on the orchestrator's host.
    pub path: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct MonthQuery {
    month: Option<String>,
    tenant: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SinceQuery {
    since_s: u64,
}

/// The routes of the gate API.
pub fn gate_router(api: UsageApi) -> Router {
    Router::new()
        .route(USAGE_PATH, post(report))
        .layer(DefaultBodyLimit::max(REPORT_MAX_BYTES))
        .route(&format!("{TENANT_USAGE_PATH}{{tenant}}"), get(tenant_usage).post(tenant_page))
        .with_state(api)
}

/// The routes of the admin API.
pub fn admin_router(api: UsageApi) -> Router {
    Router::new()
        .route("/v1/usage", get(month_usage))
        .route("/v1/usage/gateways/{gateway}", get(gateway_usage))
        .route("/v1/usage/ledger", get(ledger_file))
        .with_state(api)
}

impl UsageApi {
    /// The API over a ledger and the tenants' files.
    pub fn new(ledger: Ledger, disk: Disk, revenue_target_usd_month: u64) -> Self {
        Self {
            ledger,
            storage: Arc::new(Storage::new(disk)),
            exhausted: Arc::default(),
            handle: Arc::new(OnceLock::new()),
            revenue_target_usd_month,
        }
    }

    /// All that the filter decides with. Blocks on a folder's listing.
    pub fn notice(&self, tenant: &TenantId) -> TenantNotice {
        let mut notice = self.ledger.notice(tenant);
        self.storage.fill(tenant, &mut notice);
        notice
    }

    async fn notices(&self, tenants: BTreeSet<TenantId>) -> BTreeMap<TenantId, TenantNotice> {
        let api = self.clone();
        let look = move || tenants.into_iter().map(|t| (t.clone(), api.notice(&t))).collect();
        // Without notices the filter goes on with what it knows and what it counts.
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
    }

    /// One tenant's numbers, with these limits or those of its last report.
    pub async fn tenant(
        &self,
        tenant: TenantId,
        told: Option<TenantUsageRequest>,
    ) -> Result<TenantUsage, QueryError> {
        let now_s = host::now_s();
        let asked = tenant.clone();
        let (hour, day, month, record) = self
            .ledger
            .query(move |store| {
                let (hour, day) = (now_s / HOUR_S * HOUR_S, now_s / DAY_S * DAY_S);
                let month = Month::of(now_s);
                Ok((
                    store.tenant_sums(&asked, hour..hour + HOUR_S)?,
                    store.tenant_sums(&asked, day..day + DAY_S)?,
                    store.tenant_sums(&asked, month.start_s()..month.next().start_s())?,
                    store.tenant_plan(&asked)?,
                ))
            })
            .await?;
        let notices = self.notices(BTreeSet::from([tenant.clone()])).await;
        let notice = notices.into_values().next().unwrap_or_default();
        let (tier, limits) = match told {
            Some(told) => (Some(told.tier), Some(told.limits)),
            None => record.map(|r| (r.tier, r.limits)).unzip(),
        };
        let (state, last_wake) = self.whereabouts(&tenant).await;
        Ok(TenantUsage {
            tenant,
            tier,
            hour,
            day,
            month,
            quotas: quotas(&notice, limits.as_ref()),
            storage: StorageUsage {
                used_bytes: notice.storage_used_bytes,
                limit_bytes: limits.as_ref().map(|l| l.storage_bytes),
                phexts: notice.phexts,
            },
            limits,
            state,
            last_wake,
        })
    }

    /// Where the tenant is. One that the driver has never seen sleeps.
    async fn whereabouts(&self, tenant: &TenantId) -> (String, Option<LastWake>) {
        let asleep = || ("asleep".to_owned(), None);
        let Some(handle) = self.handle.get() else { return ("unknown".to_owned(), None) };
        let Ok(Some(view)) = handle.tenant(tenant.clone()).await else { return asleep() };
        let last_wake = view.last_wake.map(|(kind, ms)| LastWake { kind, ms });
        (view.state.label().to_owned(), last_wake)
    }

    /// A month of all tenants, or of one with the reasons of refusals.
    pub async fn month(
        &self,
        month: Month,
        tenant: Option<TenantId>,
    ) -> Result<MonthUsage, QueryError> {
        let span = month.start_s()..month.next().start_s();
        let lines = self
            .ledger
            .query(move |store| {
                let mut lines = store.sums_by_tenant(span.clone())?;
                if let Some(tenant) = tenant {
                    lines.retain(|line| line.tenant == tenant);
                    for line in &mut lines {
                        line.sums = store.tenant_sums(&tenant, span.clone())?;
                    }
                }
                Ok(lines)
            })
            .await?;
        let mut total = Sums::default();
        for line in &lines {
            total.add(&line.sums);
        }
        let revenue = Revenue::from_tenants(&lines, self.revenue_target_usd_month);
        Ok(MonthUsage { month: month.to_string(), tenants: lines, total, revenue })
    }
}

fn quotas(notice: &TenantNotice, limits: Option<&Limits>) -> Quotas {
    let (day, month) = (notice.day_ends_s, notice.month_ends_s);
    let quota = |used, limit, ends_s| Quota { used, limit, ends_s };
    Quotas {
        requests_day: quota(notice.requests_day, limits.map(|l| l.requests_per_day), day),
        requests_month: quota(notice.requests_month, limits.map(|l| l.requests_per_month), month),
        writes_day: quota(notice.writes_day, limits.map(|l| l.writes_per_day), day),
    }
}

async fn report(State(api): State<UsageApi>, Json(report): Json<UsageReport>) -> Response {
    let sequence = report.sequence;
    let limits: BTreeMap<TenantId, Limits> =
        report.rows.iter().map(|row| (row.tenant.clone(), row.limits.clone())).collect();
    // One without rows asks for news only.
    if !report.rows.is_empty()
        && let Err(refused) = api.ledger.report(report).await
    {
        let retry = [(header::RETRY_AFTER, "1")];
        return (StatusCode::SERVICE_UNAVAILABLE, retry, format!("{refused}\n")).into_response();
    }
    let mut tenants: BTreeSet<TenantId> = limits.keys().cloned().collect();
    tenants.extend(api.exhausted.announced());
    let notices = api.notices(tenants).await;
    for (tenant, limits) in limits {
        if notices.get(&tenant).is_some_and(|notice| notice.is_over(&limits)) {
            api.exhausted.announce(tenant);
        }
    }
    Json(UsageResponse { sequence, notices }).into_response()
}

async fn tenant_usage(State(api): State<UsageApi>, Path(tenant): Path<String>) -> Response {
    page(&api, &tenant, None).await
}

async fn tenant_page(
    State(api): State<UsageApi>,
    Path(tenant): Path<String>,
    Json(asked): Json<TenantUsageRequest>,
) -> Response {
    page(&api, &tenant, Some(asked)).await
}

async fn page(api: &UsageApi, tenant: &str, asked: Option<TenantUsageRequest>) -> Response {
    match TenantId::parse(tenant) {
        Ok(tenant) => answer(api.tenant(tenant, asked).await),
        Err(fault) => bad(&format!("tenant: {fault}")),
    }
}

async fn month_usage(State(api): State<UsageApi>, Query(query): Query<MonthQuery>) -> Response {
    let this_month = Month::of(host::now_s()).to_string();
    let Some(month) = Month::parse(query.month.as_deref().unwrap_or(&this_month)) else {
        return bad("month: must be YYYY-MM, such as 2026-11");
    };
    match query.tenant.as_deref().map(TenantId::parse).transpose() {
        Ok(tenant) => answer(api.month(month, tenant).await),
        Err(fault) => bad(&format!("tenant: {fault}")),
    }
}

async fn gateway_usage(
    State(api): State<UsageApi>,
    Path(gateway): Path<String>,
    Query(SinceQuery { since_s }): Query<SinceQuery>,
) -> Response {
    match GatewayId::parse(&gateway) {
        Ok(gateway) => answer(api.ledger.query(move |s| s.gateway_sums(&gateway, since_s)).await),
        Err(fault) => bad(&format!("gateway: {fault}")),
    }
}

async fn ledger_file(State(api): State<UsageApi>) -> Response {
    Json(LedgerFile { path: api.ledger.path().to_owned() }).into_response()
}

fn answer<T: Serialize>(found: Result<T, QueryError>) -> Response {
    match found {
        Ok(found) => Json(found).into_response(),
        Err(fault) => {
            if let QueryError::Failed(cause) = &fault {
                warn!(%cause, "the ledger was not read");
            }
            // For the operator; the filter tells its client nothing of it.
            (StatusCode::SERVICE_UNAVAILABLE, format!("{fault}\n")).into_response()
        }
    }
}

fn bad(what: &str) -> Response {
    (StatusCode::BAD_REQUEST, format!("{what}\n")).into_response()
}
