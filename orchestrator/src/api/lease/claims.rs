//! Bounds on what a lease request may claim. An orchestrator knows no registry, so it believes a
//! gateway what a tenant's limits are, and that a tenant exists at all. A faulty gateway must not fill
//! the host with large containers or with folders of invented tenants.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use protocol::{LeaseRequest, TenantId};
use tracing::warn;

/// Time in which a number of new tenants is allowed.
const WINDOW: Duration = Duration::from_mins(1);

/// The bounds, and the new tenants of the present minute.
#[derive(Debug)]
pub(crate) struct Claims {
    data_root: PathBuf,
    memory_max_bytes: u64,
    new_tenants_max: usize,
    newcomers: Mutex<Newcomers>,
    /// Time of the last warning of each kind.
    warned: Mutex<BTreeMap<&'static str, Instant>>,
}

/// Tenants without a folder that were admitted since `since`.
#[derive(Debug)]
struct Newcomers {
    since: Instant,
    tenants: BTreeSet<TenantId>,
}

/// Reasons why a request is not believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Claim {
    /// This limit is beyond what a registry accepts.
    Limit(&'static str),
    /// More memory than `host.tenant_memory_max`, in bytes.
    Memory {
        /// The memory of the request.
        bytes: u64,
        /// The bound.
        max_bytes: u64,
    },
    /// More new tenants than `lifecycle.new_tenants_per_minute`.
    NewTenants {
        /// Time until the next ones are admitted.
        wait: Duration,
    },
}

impl Claim {
    /// Names of all kinds, for the metric.
    pub(crate) const KINDS: [&str; 3] = ["limit", "memory", "new_tenants"];

    /// Its name in the metric.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Limit(_) => "limit",
            Self::Memory { .. } => "memory",
            Self::NewTenants { .. } => "new_tenants",
        }
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limit(name) => write!(f, "limits.{name} is beyond what a registry accepts"),
            Self::Memory { bytes, max_bytes } => write!(
                f,
                "limits.memory_bytes is {bytes}, and host.tenant_memory_max allows {max_bytes}: \
                 correct the tenant's tier, or raise the setting"
            ),
            Self::NewTenants { .. } => f.write_str(
                "more new tenants in a minute than lifecycle.new_tenants_per_minute allows: raise it \
                 if they are real",
            ),
        }
    }
}

impl Claims {
    pub(crate) fn new(data_root: PathBuf, memory_max_bytes: u64, new_tenants_max: usize) -> Self {
        let newcomers = Newcomers { since: Instant::now(), tenants: BTreeSet::new() };
        Self {
            data_root,
            memory_max_bytes,
            new_tenants_max,
            newcomers: Mutex::new(newcomers),
            warned: Mutex::default(),
        }
    }

    /// Judges a request.
    pub(crate) async fn check(&self, request: &LeaseRequest) -> Result<(), Claim> {
        if let Some(name) = request.limits.out_of_bounds() {
            return Err(Claim::Limit(name));
        }
        let bytes = request.limits.memory_bytes;
        if bytes > self.memory_max_bytes {
            return Err(Claim::Memory { bytes, max_bytes: self.memory_max_bytes });
        }
        let folder = self.data_root.join(request.tenant.as_str());
        // A folder that can't be looked at may exist: the start will tell.
        if tokio::fs::try_exists(folder).await.unwrap_or(true) {
            return Ok(());
        }
        self.admit(&request.tenant, Instant::now())
    }

    fn admit(&self, tenant: &TenantId, now: Instant) -> Result<(), Claim> {
        let mut newcomers = self.newcomers.lock();
        let age = now.saturating_duration_since(newcomers.since);
        if age >= WINDOW {
            *newcomers = Newcomers { since: now, tenants: BTreeSet::new() };
        }
        if newcomers.tenants.contains(tenant) {
            return Ok(());
        }
        if newcomers.tenants.len() < self.new_tenants_max {
            newcomers.tenants.insert(tenant.clone());
            return Ok(());
        }
        Err(Claim::NewTenants { wait: WINDOW.saturating_sub(age) })
    }

    /// Logs a refused claim, at most once a minute for each kind: they may be a flood.
    pub(crate) fn warn(&self, tenant: &TenantId, claim: &Claim) {
        let now = Instant::now();
        let mut warned = self.warned.lock();
        let is_recent = |at: &Instant| now.saturating_duration_since(*at) < WINDOW;
        if !warned.get(claim.kind()).is_some_and(is_recent) {
            warned.insert(claim.kind(), now);
            warn!(%tenant, "lease request is refused: {claim}");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use protocol::{GatewayId, Limits, TierName};

    use super::*;

    fn request(tenant: &str, limits: Limits) -> LeaseRequest {
        LeaseRequest {
            gateway: GatewayId::parse("gateway-1").unwrap(),
            tenant: TenantId::parse(tenant).unwrap(),
            tier: TierName::parse("free").unwrap(),
            limits,
            renew_only: false,
            within_quotas: false,
            patience_ms: None,
        }
    }

    fn claims(dir: &tempfile::TempDir, new_tenants_max: usize) -> Claims {
        Claims::new(dir.path().into(), 1 << 30, new_tenants_max)
    }

    #[tokio::test]
    async fn memory_is_bounded_by_the_host() {
        let dir = tempfile::tempdir().unwrap();
        let claims = claims(&dir, 9);
        let with = |memory_bytes| request("alice", Limits { memory_bytes, ..Limits::default() });
        assert_eq!(claims.check(&with(1 << 30)).await, Ok(()));
        let more = claims.check(&with((1 << 30) + 1)).await.unwrap_err();
        assert!(more.to_string().contains("host.tenant_memory_max"), "{more}");
        assert_eq!(claims.check(&with(u64::MAX)).await, Err(Claim::Limit("memory_bytes")));
    }

    #[tokio::test]
    async fn new_tenants_are_bounded_and_known_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let claims = claims(&dir, 2);
        let ask = async |tenant: &str| claims.check(&request(tenant, Limits::default())).await;
        assert_eq!(ask("a").await, Ok(()));
        assert_eq!(ask("a").await, Ok(()), "its other requests belong to the same start");
        assert_eq!(ask("b").await, Ok(()));
        assert!(matches!(ask("c").await, Err(Claim::NewTenants { .. })));
        std::fs::create_dir(dir.path().join("c")).unwrap();
        assert_eq!(ask("c").await, Ok(()), "it has data");
        let later = Instant::now() + WINDOW;
        assert_eq!(claims.admit(&TenantId::parse("d").unwrap(), later), Ok(()));
    }

    proptest! {
        /// Whatever a request claims, what passes is within the bounds.
        #[test]
        fn passed_claims_are_bounded(memory in any::<u64>(), concurrency in any::<u32>(),
            hourly in any::<u32>(), idle in any::<Option<u32>>())
        {
            let limits = Limits {
                memory_bytes: memory,
                concurrency,
                snapshots_hourly: hourly,
                sleep_after_s: idle,
                ..Limits::default()
            };
            let dir = tempfile::tempdir().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let request = request("alice", limits);
            if runtime.block_on(claims(&dir, 9).check(&request)).is_ok() {
                prop_assert!(memory <= 1 << 30 && concurrency <= 512 && hourly <= 1_000);
                prop_assert!(idle.is_none_or(|idle| idle <= 365 * 86_400));
            }
        }
    }
}
