//! The operator's view of what the ledger does not believe, and repairs of it.
//!
//! | request | response |
//! |---|---|
//! | `GET /v1/usage/quarantine[?id=N][&tenant=T][&source=S][&reason=R]` | 200 [`Quarantine`] |
//! | `POST /v1/usage/quarantine/release?…[&apply=true]`, `…/drop?…` | 200 [`Repaired`](crate::usage::store::repair::Repaired) |
//! | `GET /v1/usage/rows?[gateway=G][&source=S][&tenant=T]&from_s=N&to_s=N` | 200 list of [`HourRow`](crate::usage::store::repair::HourRow) |
//! | `POST /v1/usage/rows/remove?…[&apply=true]` | 200 [`Repaired`](crate::usage::store::repair::Repaired) |
//! | `POST /v1/usage/rows/set?…&reads=N…[&apply=true]` | 200 [`Repaired`](crate::usage::store::repair::Repaired) |
//!
//! Without `apply` a repair changes nothing and reports what it would do. One without a selection is
//! refused with 400.

use axum::Router;
use axum::extract::{Query, State};
use axum::response::Response;
use axum::routing::{get, post};
use protocol::time::HOUR_S;
use protocol::usage::bounds::{BYTES_MAX, REQUESTS_MAX};
use protocol::{GatewayId, TenantId};
use serde::{Deserialize, Serialize};

use super::{UsageApi, bad_request, respond};
use crate::usage::store::quarantine::{QuarantinedRow, Selection};
use crate::usage::store::repair::{Correction, HourSelection, LedgerRepair};
use crate::usage::suspicion::Suspicion;

/// Bound on the rows of a list.
const ROWS_MAX: u64 = 1_000;

/// The rows that the ledger does not believe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    /// Number of all rows, by reason.
    pub sizes: Vec<(Suspicion, u64)>,
    /// The selected rows, the newest first, at most 1,000.
    pub rows: Vec<QuarantinedRow>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct QuarantineQuery {
    id: Option<u64>,
    tenant: Option<String>,
    source: Option<String>,
    reason: Option<Suspicion>,
    apply: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RowsQuery {
    gateway: Option<GatewayId>,
    source: Option<String>,
    tenant: Option<TenantId>,
    from_s: u64,
    to_s: u64,
    #[serde(default)]
    apply: bool,
    reads: Option<u64>,
    writes: Option<u64>,
    refused: Option<u64>,
    bytes_in: Option<u64>,
    bytes_out: Option<u64>,
}

impl QuarantineQuery {
    fn selection(self) -> Selection {
        let Self { id, tenant, source, reason, .. } = self;
        Selection { id, tenant, source, reason }
    }
}

impl RowsQuery {
    /// Returns the selection; every hour that has a second in the time counts.
    fn selection(&self) -> Result<HourSelection, &'static str> {
        if self.gateway.is_none() && self.source.is_none() && self.tenant.is_none() {
            return Err("name a gateway, a source or a tenant");
        }
        if self.from_s >= self.to_s {
            return Err("from_s must be before to_s");
        }
        Ok(HourSelection {
            gateway: self.gateway.clone(),
            source: self.source.clone(),
            tenant: self.tenant.clone(),
            from_hour: self.from_s / HOUR_S,
            to_hour: self.to_s.div_ceil(HOUR_S),
        })
    }

    fn correction(&self) -> Result<Correction, &'static str> {
        let Self { reads, writes, refused, bytes_in, bytes_out, .. } = *self;
        let correction = Correction { reads, writes, refused, bytes_in, bytes_out };
        if correction == Correction::default() {
            return Err("name a counter: reads, writes, refused, bytes_in or bytes_out");
        }
        let is_count = |count: Option<u64>| count.unwrap_or(0) <= REQUESTS_MAX;
        let is_size = |bytes: Option<u64>| bytes.unwrap_or(0) <= BYTES_MAX;
        let counts = [reads, writes, refused].into_iter().all(is_count);
        if counts && [bytes_in, bytes_out].into_iter().all(is_size) {
            Ok(correction)
        } else {
            Err("a row has at most 1,000,000,000 requests and 45,000,000,000,000 bytes")
        }
    }
}

/// Builds the routes of the admin API.
pub(super) fn router() -> Router<UsageApi> {
    Router::new()
        .route("/v1/usage/quarantine", get(quarantine))
        .route("/v1/usage/quarantine/release", post(release))
        .route("/v1/usage/quarantine/drop", post(drop_rows))
        .route("/v1/usage/rows", get(rows))
        .route("/v1/usage/rows/remove", post(remove))
        .route("/v1/usage/rows/set", post(set))
}

async fn quarantine(State(api): State<UsageApi>, Query(query): Query<QuarantineQuery>) -> Response {
    let selection = query.selection();
    let list = api.ledger.query(move |store| {
        let sizes = store.quarantine_size()?;
        Ok(Quarantine { sizes, rows: store.quarantined(&selection, ROWS_MAX)? })
    });
    respond(list.await)
}

async fn release(State(api): State<UsageApi>, Query(query): Query<QuarantineQuery>) -> Response {
    repair_quarantine(&api, query, LedgerRepair::Release).await
}

async fn drop_rows(State(api): State<UsageApi>, Query(query): Query<QuarantineQuery>) -> Response {
    repair_quarantine(&api, query, LedgerRepair::Drop).await
}

async fn repair_quarantine(
    api: &UsageApi,
    query: QuarantineQuery,
    repair: fn(Selection) -> LedgerRepair,
) -> Response {
    let apply = query.apply;
    let selection = query.selection();
    if selection.is_everything() {
        return bad_request("name an id, a tenant, a source or a reason");
    }
    respond(api.ledger.repair(repair(selection), apply).await)
}

async fn rows(State(api): State<UsageApi>, Query(query): Query<RowsQuery>) -> Response {
    match query.selection() {
        Ok(selection) => {
            let rows = api.ledger.query(move |store| store.hour_rows_of(&selection, ROWS_MAX));
            respond(rows.await)
        }
        Err(fault) => bad_request(fault),
    }
}

async fn remove(State(api): State<UsageApi>, Query(query): Query<RowsQuery>) -> Response {
    match query.selection() {
        Ok(selection) => {
            respond(api.ledger.repair(LedgerRepair::Remove(selection), query.apply).await)
        }
        Err(fault) => bad_request(fault),
    }
}

async fn set(State(api): State<UsageApi>, Query(query): Query<RowsQuery>) -> Response {
    let repair = query.selection().and_then(|selection| {
        let correction = query.correction()?;
        Ok(LedgerRepair::Set(selection, correction))
    });
    match repair {
        Ok(repair) => respond(api.ledger.repair(repair, query.apply).await),
        Err(fault) => bad_request(fault),
    }
}
