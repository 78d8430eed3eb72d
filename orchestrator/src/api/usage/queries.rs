//! Queries behind the usage routes: they join the ledger, the disk and the driver.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use protocol::calendar::Month;
use protocol::time::{DAY_S, HOUR_S};
use protocol::usage::TenantUsageRequest;
use protocol::{ByteLimit, Limits, TenantId, TenantNotice};

use super::types::{ByteQuota, MonthUsage, Quota, Quotas, StorageUsage, TenantUsage};
use crate::api::startup::Startup;
use crate::api::status::LastWake;
use crate::host;
use crate::storage::disk::Disk;
use crate::storage::measured::Storage;
use crate::usage::exhausted::ExhaustedQuotas;
use crate::usage::ledger::{Ledger, QueryError};
use crate::usage::revenue::Revenue;
use crate::usage::store::TenantPlan;
use crate::usage::sums::Sums;

/// State of the usage routes. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct UsageApi {
    /// Requests, bytes and wakes of all tenants.
    pub ledger: Ledger,
    /// Sizes of the tenants' files.
    storage: Arc<Storage>,
    /// Tenants whose notices go to every gateway.
    pub(super) exhausted: Arc<ExhaustedQuotas>,
    /// Access to the driver, for tenants' states.
    startup: Startup,
    revenue_target_usd_month: u64,
}

/// A tenant's numbers as the ledger has them.
struct LedgerUsage {
    hour: Sums,
    day: Sums,
    month: Sums,
    plan: Option<TenantPlan>,
}

impl UsageApi {
    /// Combines a ledger with the disk of the tenants' files.
    pub(crate) fn new(
        ledger: Ledger,
        disk: Disk,
        startup: Startup,
        revenue_target_usd_month: u64,
    ) -> Self {
        Self {
            ledger,
            storage: Arc::new(Storage::new(disk)),
            exhausted: Arc::default(),
            startup,
            revenue_target_usd_month,
        }
    }

    /// Builds a tenant's notice: usage and storage. Blocks on the listing of a folder.
    pub(crate) fn notice(&self, tenant: &TenantId) -> TenantNotice {
        let mut notice = self.ledger.notice(tenant);
        self.storage.fill(tenant, &mut notice);
        notice
    }

    /// Builds notices on the blocking pool. If that fails there are none, and the filter goes on
    /// with the notices that it has and with its own counters.
    pub(super) async fn notices(
        &self,
        tenants: BTreeSet<TenantId>,
    ) -> BTreeMap<TenantId, TenantNotice> {
        let api = self.clone();
        let build = move || {
            let mut notices = BTreeMap::new();
            for tenant in tenants {
                let notice = api.notice(&tenant);
                notices.insert(tenant, notice);
            }
            notices
        };
        tokio::task::spawn_blocking(build).await.unwrap_or_default()
    }

    /// Returns one tenant's usage. Tier and limits are the request's, or those of the tenant's last
    /// report.
    pub(super) async fn tenant(
        &self,
        tenant: TenantId,
        request: Option<TenantUsageRequest>,
    ) -> Result<TenantUsage, QueryError> {
        let LedgerUsage { hour, day, month, plan } = self.ledger_usage(tenant.clone()).await?;
        let notices = self.notices(BTreeSet::from([tenant.clone()])).await;
        let notice = notices.into_values().next().unwrap_or_default();
        let (tier, limits) = match request {
            Some(request) => (Some(request.tier), Some(request.limits)),
            None => plan.map(|plan| (plan.tier, plan.limits)).unzip(),
        };
        let (state, last_wake) = self.state(&tenant).await;
        Ok(TenantUsage {
            tenant,
            tier,
            hour,
            day,
            month,
            quotas: quotas(&notice, limits.as_ref()),
            storage: StorageUsage {
                used_bytes: notice.storage_used_bytes,
                limit_bytes: limits.as_ref().map(|limits| limits.storage_bytes),
                phexts: notice.phexts,
            },
            limits,
            state,
            last_wake,
        })
    }

    async fn ledger_usage(&self, tenant: TenantId) -> Result<LedgerUsage, QueryError> {
        let now_s = host::now_s();
        let hour_s = now_s / HOUR_S * HOUR_S;
        let day_s = now_s / DAY_S * DAY_S;
        let month = Month::of(now_s);
        let query = self.ledger.query(move |store| {
            Ok(LedgerUsage {
                hour: store.tenant_sums(&tenant, hour_s..hour_s + HOUR_S)?,
                day: store.tenant_sums(&tenant, day_s..day_s + DAY_S)?,
                month: store.tenant_sums(&tenant, month.start_s()..month.next().start_s())?,
                plan: store.tenant_plan(&tenant)?,
            })
        });
        query.await
    }

    /// Returns the tenant's lifecycle state and last wake. A tenant that the driver does not know is
    /// asleep.
    async fn state(&self, tenant: &TenantId) -> (String, Option<LastWake>) {
        let Some(handle) = self.startup.handle() else { return ("unknown".to_owned(), None) };
        let Ok(Some(view)) = handle.tenant(tenant.clone()).await else {
            return ("asleep".to_owned(), None);
        };
        let last_wake = view.last_wake.map(|(kind, ms)| LastWake { kind, ms });
        (view.state.label().to_owned(), last_wake)
    }

    /// Returns a month of all tenants, or of one with its refusals by reason.
    pub(super) async fn month(
        &self,
        month: Month,
        tenant: Option<TenantId>,
    ) -> Result<MonthUsage, QueryError> {
        let span = month.start_s()..month.next().start_s();
        let query = self.ledger.query(move |store| {
            let mut tenants = store.sums_by_tenant(span.clone())?;
            if let Some(tenant) = tenant {
                tenants.retain(|sums| sums.tenant == tenant);
                for sums in &mut tenants {
                    sums.sums = store.tenant_sums(&tenant, span.clone())?;
                }
            }
            Ok(tenants)
        });
        let tenants = query.await?;
        let mut total = Sums::default();
        for tenant in &tenants {
            total.add(&tenant.sums);
        }
        let revenue = Revenue::from_tenants(&tenants, self.revenue_target_usd_month);
        Ok(MonthUsage { month: month.to_string(), tenants, total, revenue })
    }
}

fn quotas(notice: &TenantNotice, limits: Option<&Limits>) -> Quotas {
    Quotas {
        requests_day: Quota {
            used: notice.requests_day,
            limit: limits.map(|limits| limits.requests_per_day),
            ends_s: notice.day_ends_s,
        },
        requests_month: Quota {
            used: notice.requests_month,
            limit: limits.map(|limits| limits.requests_per_month),
            ends_s: notice.month_ends_s,
        },
        writes_day: Quota {
            used: notice.writes_day,
            limit: limits.map(|limits| limits.writes_per_day),
            ends_s: notice.day_ends_s,
        },
        egress_day: ByteQuota {
            used: notice.bytes_out_day,
            limit: limits.map(|limits| match limits.egress_per_day_max() {
                Some(bytes) => ByteLimit::Bytes(bytes),
                None => ByteLimit::Unlimited,
            }),
            ends_s: notice.day_ends_s,
        },
    }
}
