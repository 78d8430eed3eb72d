//! Times that Envoy's configuration, the filter and the orchestrator must agree on.
//!
//! Each part could choose its own, but some combinations cut requests off or send them to a tenant
//! that is being stopped. A test holds `envoy/*.yaml` against these numbers; the orchestrator warns
//! about settings that contradict them.

use crate::time::{MINUTE_MS, SECOND_MS};

/// The longest that Envoy works on one request, with all retries: `timeout` of the tenants' routes.
pub const ROUTE_TIMEOUT_MS: u64 = 30 * SECOND_MS;

/// The default of the filter's `lease_timeout`: how long a client waits for a wake. The orchestrator
/// gives up sooner, so that its refusal reaches the client with the reason.
pub const LEASE_TIMEOUT_MS: u32 = 10_000;

/// The longest lease that an orchestrator grants and the filter accepts. It also bounds the age of
/// the notice by which a worker judges storage.
pub const LEASE_MAX_MS: u64 = 10 * MINUTE_MS;

/// The time within which a write that SQ has not answered can still reach the disk, counted from the
/// end of the request. The route gives up earlier, but SQ completes what it has received.
pub const WRITE_LANDS_MS: u64 = MINUTE_MS;

#[cfg(all(test, not(target_family = "wasm")))]
mod tests {
    use settings::units::DURATIONS_MS;

    use super::*;

    const BOOTSTRAP: &str = include_str!("../../envoy/bootstrap.yaml");
    const STANDALONE: &str = include_str!("../../envoy/standalone.yaml");

    /// The values, in milliseconds, of each `timeout:` that stands below a `route:`.
    fn route_timeouts_ms(yaml: &str) -> Vec<u64> {
        let mut timeouts = Vec::new();
        let mut lines = yaml.lines();
        while let Some(line) = lines.next() {
            if line.trim() != "route:" {
                continue;
            }
            let indent = line.len() - line.trim_start().len();
            let is_inside = |line: &&str| line.len() - line.trim_start().len() > indent;
            let route = lines.clone().take_while(is_inside);
            for timeout in route.filter_map(|line| line.trim().strip_prefix("timeout: ")) {
                timeouts.extend(settings::units::parse(timeout, DURATIONS_MS));
            }
        }
        timeouts
    }

    #[test]
    fn routes_of_envoy_have_the_agreed_timeout() {
        for yaml in [BOOTSTRAP, STANDALONE] {
            assert_eq!(route_timeouts_ms(yaml), [ROUTE_TIMEOUT_MS; 2]);
        }
    }

    #[test]
    fn unanswered_write_outlives_its_route() {
        const { assert!(WRITE_LANDS_MS > ROUTE_TIMEOUT_MS) };
    }
}
