//! The host's memory, and how many instances its runtime can have: watched, so that sleeping tenants
//! make room before the kernel kills or a start fails. And its limit of open files.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::time::sleep;
use tracing::{info, warn};

use crate::metrics::Metrics;
use crate::runtime::Runtime;
use crate::tenants::driver::{Closed, Handle};

/// How often memory is looked at: a herd of wakes fills it within seconds.
const INTERVAL: Duration = Duration::from_secs(1);

/// Tenants that are measured for an estimate: each may be a round trip to the Docker daemon.
const SAMPLE: usize = 16;
/// What a tenant is taken to hold when none could be measured, and the least it is taken to.
const TENANT_BYTES: u64 = 16 << 20;
const TENANT_BYTES_MIN: u64 = 1 << 20;
/// Instances that can be started at any time where their number is bounded.
const ROOM: usize = 32;
/// Tenants stopped per look at most: the next look tells whether it was enough.
const SQUEEZE: usize = 64;

/// `MemAvailable` of the kernel; `None` where there is no `/proc`.
pub fn memory_available() -> Option<u64> {
    available(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

/// Tells the driver while less than `floor_bytes` are available or nearly as many instances are there
/// as can be, and how many tenants must make room.
pub async fn watch(
    floor_bytes: u64,
    handle: Handle,
    runtime: Arc<dyn Runtime>,
    metrics: Arc<Metrics>,
) -> Result<(), Closed> {
    loop {
        if let Some(bytes) = memory_available() {
            metrics.set_memory_available(bytes);
            if bytes < floor_bytes {
                let sizes = sizes(&handle, runtime.as_ref()).await?;
                let tenants = to_make_room(floor_bytes - bytes, &sizes);
                warn!(bytes, floor_bytes, tenants, "the host is short of memory");
                handle.pressure(tenants).await?;
            }
        }
        let instances = metrics.instances();
        let max = runtime.capabilities().max_instances;
        let beyond = max.map_or(0, |max| (instances + ROOM).saturating_sub(max));
        if beyond > 0 {
            warn!(instances, max, "more than the runtime can have would run");
            handle.pressure(beyond).await?;
        }
        sleep(INTERVAL).await;
    }
}

/// What some of the tenants hold that are there.
async fn sizes(handle: &Handle, runtime: &dyn Runtime) -> Result<Vec<u64>, Closed> {
    let mut sizes = Vec::new();
    for tenant in handle.sample(SAMPLE).await? {
        sizes.extend(runtime.memory_bytes(&tenant).await.ok().flatten());
    }
    Ok(sizes)
}

/// How many tenants of these sizes hold what is missing.
fn to_make_room(missing: u64, sizes: &[u64]) -> usize {
    let count = u64::try_from(sizes.len()).unwrap_or(u64::MAX);
    let each = sizes.iter().sum::<u64>().checked_div(count).unwrap_or(TENANT_BYTES);
    let tenants = missing.div_ceil(each.max(TENANT_BYTES_MIN));
    usize::try_from(tenants).unwrap_or(usize::MAX).clamp(1, SQUEEZE)
}

/// Takes as many open files as the host allows: two per tenant that runs as a process and one per
/// asker, where the usual soft limit is 1,024.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        warn!(%error, ?limit, "the limit of open files stays");
    } else {
        info!(files = ?limit.maximum, "open files allowed");
    }
}

/// Names the present boot of the host.
pub fn boot() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Returns the host's clock, in seconds since 1970 UTC.
pub(crate) fn now_s() -> u64 {
    unix_s(SystemTime::now())
}

/// Converts a time to seconds since 1970 UTC; an earlier time becomes 0.
pub(crate) fn unix_s(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenants::lifecycle::State;

    #[test]
    fn as_many_tenants_make_room_as_hold_what_is_missing() {
        let mib = 1 << 20;
        assert_eq!(to_make_room(10 * mib, &[2 * mib, 4 * mib]), 4);
        assert_eq!(to_make_room(1, &[2 * mib]), 1);
        assert_eq!(to_make_room(64 * mib, &[]), 4, "nothing could be measured");
        assert_eq!(to_make_room(1 << 40, &[1]), SQUEEZE, "a bound per look");
    }

    #[test]
    fn tenants_at_rest_take_no_place_in_the_runtime() {
        let metrics = Metrics::default();
        metrics.set_counts([1; State::COUNT], 0, 0);
        assert_eq!(metrics.instances(), State::COUNT - 4);
    }

    #[test]
    fn available_memory_is_read_as_the_kernel_writes_it() {
        let text = "MemTotal:  8 kB\nMemAvailable:    5012 kB\nBuffers: 1 kB\n";
        assert_eq!(available(text), Some(5_012 * 1_024));
        assert_eq!(available("MemTotal: 1 kB"), None);
        assert!(memory_available().is_some());
    }
}
