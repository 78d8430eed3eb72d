//! Metrics and health over TCP, for Prometheus, which cannot read a Unix socket. Every program of this
//! host may read them: they name no tenant and change nothing.
//!
//! | request | response |
//! |---|---|
//! | `GET /metrics` | 200 `OpenMetrics` text |
//! | `GET /healthz` | 200 while the process runs |

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::middleware::from_fn;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::api::loopback;
use crate::api::startup::Startup;
use crate::runtime::FirewallState;
use crate::tenants::metrics::Metrics;

/// State of the routes.
#[derive(Clone)]
struct MetricsApi {
    metrics: Arc<Metrics>,
    startup: Startup,
}

/// Builds the routes.
pub(crate) fn router(metrics: Arc<Metrics>, startup: Startup) -> Router {
    Router::new()
        .route("/metrics", get(encode))
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state(MetricsApi { metrics, startup })
        .layer(from_fn(loopback::reject_web_pages))
}

async fn encode(State(api): State<MetricsApi>) -> Response {
    if let Some((runtime, _)) = api.startup.serving() {
        api.metrics.set_firewall(runtime.firewall() == FirewallState::InForce);
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], api.metrics.encode()).into_response()
}
