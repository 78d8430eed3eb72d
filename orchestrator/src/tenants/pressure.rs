//! Task that asks the driver to stop tenants while the host is short of memory, or while the
//! runtime is close to its bound on instances.
//!
//! Tenants that are at rest make room before the kernel kills one or a start fails.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tracing::warn;

use crate::host;
use crate::runtime::Runtime;
use crate::tenants::driver::{Closed, Handle};
use crate::tenants::metrics::Metrics;

/// Interval between two checks: concurrent wakes can fill the memory within seconds.
const INTERVAL: Duration = Duration::from_secs(1);

/// Tenants measured for an estimate. Each may cost a round trip to the Docker daemon.
const SAMPLE: usize = 16;

/// Memory assumed per tenant when none could be measured.
const TENANT_BYTES: u64 = 16 << 20;

/// Lower bound of the estimate per tenant, so that a wrong measurement stops few tenants needlessly.
const TENANT_BYTES_MIN: u64 = 1 << 20;

/// Instances that a bounded runtime must always be able to start.
const FREE_INSTANCES: usize = 32;

/// Bound on tenants stopped per check. The next check shows whether that was enough.
const STOPS_MAX: usize = 64;

/// Runs until the driver has ended. `floor_bytes` is the memory that must stay available.
pub(crate) async fn watch(
    floor_bytes: u64,
    handle: Handle,
    runtime: Arc<dyn Runtime>,
    metrics: Arc<Metrics>,
) -> Result<(), Closed> {
    loop {
        if let Some(bytes) = host::memory_available() {
            metrics.set_memory_available(bytes);
            if bytes < floor_bytes {
                let sizes = sample_sizes(&handle, runtime.as_ref()).await?;
                let tenants = tenants_to_stop(floor_bytes - bytes, &sizes);
                warn!(bytes, floor_bytes, tenants, "host is short of memory: tenants are stopped");
                handle.relieve_pressure(tenants).await?;
            }
        }
        let instances = metrics.instances();
        let max = runtime.capabilities().max_instances;
        let excess = max.map_or(0, |max| (instances + FREE_INSTANCES).saturating_sub(max));
        if excess > 0 {
            warn!(instances, max, excess, "runtime is near its bound: tenants are stopped");
            handle.relieve_pressure(excess).await?;
        }
        sleep(INTERVAL).await;
    }
}

/// Measures the memory of some tenants that have an instance, in bytes.
async fn sample_sizes(handle: &Handle, runtime: &dyn Runtime) -> Result<Vec<u64>, Closed> {
    let mut sizes = Vec::new();
    for tenant in handle.sample(SAMPLE).await? {
        sizes.extend(runtime.memory_bytes(&tenant).await.ok().flatten());
    }
    Ok(sizes)
}

/// Estimates how many tenants of these sizes use `missing` bytes.
fn tenants_to_stop(missing: u64, sizes: &[u64]) -> usize {
    let count = u64::try_from(sizes.len()).unwrap_or(u64::MAX);
    let mean = sizes.iter().sum::<u64>().checked_div(count).unwrap_or(TENANT_BYTES);
    let tenants = missing.div_ceil(mean.max(TENANT_BYTES_MIN));
    usize::try_from(tenants).unwrap_or(usize::MAX).clamp(1, STOPS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stopped_tenants_cover_the_missing_memory() {
        let mib = 1 << 20;
        assert_eq!(tenants_to_stop(10 * mib, &[2 * mib, 4 * mib]), 4);
        assert_eq!(tenants_to_stop(1, &[2 * mib]), 1);
        assert_eq!(tenants_to_stop(64 * mib, &[]), 4, "no tenant could be measured");
        assert_eq!(tenants_to_stop(1 << 40, &[1]), STOPS_MAX, "a bound per look");
    }
}
