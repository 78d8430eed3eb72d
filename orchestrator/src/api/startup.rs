//! Progress of the start, for routes that are served before it is complete.
//!
//! ```text
//!  ChoosingRuntime ─► Adopting ─► Serving
//! ```
//!
//! The admin API is served from the first phase on, so that an operator sees why a start takes
//! long: with Docker the daemon may not be up yet, and it must list the running tenants.

use std::fmt;
use std::sync::Arc;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use parking_lot::RwLock;

use crate::runtime::Runtime;
use crate::tenants::driver::Handle;

/// The present phase with what exists in it. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Startup(Arc<RwLock<Phase>>);

#[derive(Default)]
enum Phase {
    #[default]
    ChoosingRuntime,
    Adopting,
    Serving {
        runtime: Arc<dyn Runtime>,
        handle: Handle,
    },
}

impl Startup {
    /// Records that the runtime is chosen and adoption begins.
    pub(crate) fn set_adopting(&self) {
        *self.0.write() = Phase::Adopting;
    }

    /// Records that all running tenants are adopted.
    pub(crate) fn set_serving(&self, runtime: Arc<dyn Runtime>, handle: Handle) {
        *self.0.write() = Phase::Serving { runtime, handle };
    }

    /// Returns the driver's handle once tenants are adopted.
    pub(super) fn handle(&self) -> Option<Handle> {
        self.serving().map(|(_, handle)| handle)
    }

    /// Returns runtime and driver once tenants are adopted.
    pub(super) fn serving(&self) -> Option<(Arc<dyn Runtime>, Handle)> {
        match &*self.0.read() {
            Phase::Serving { runtime, handle } => Some((runtime.clone(), handle.clone())),
            Phase::ChoosingRuntime | Phase::Adopting => None,
        }
    }

    /// Builds the response to a request that came before tenants were adopted.
    pub(super) fn not_adopted(&self) -> Response {
        let text = match &*self.0.read() {
            Phase::ChoosingRuntime => {
                "not ready: no runtime yet; if tenants ran in Docker, its daemon is awaited\n"
            }
            Phase::Adopting | Phase::Serving { .. } => {
                "not ready: tenants are not adopted yet; the runtime has not listed them\n"
            }
        };
        (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
    }
}

impl fmt::Debug for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ChoosingRuntime => "ChoosingRuntime",
            Self::Adopting => "Adopting",
            Self::Serving { .. } => "Serving",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn request_before_adoption_gets_503_with_reason() {
        let startup = Startup::default();
        assert!(startup.handle().is_none());
        let response = startup.not_adopted();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        let body = axum::body::to_bytes(response.into_body(), 1 << 10).await.unwrap();
        assert!(body.starts_with(b"not ready: no runtime yet"));
    }
}
