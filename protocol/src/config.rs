//! The filter's configuration: the JSON under `configuration:` of the wasm filter in Envoy's own.
//!
//! [`RawFilterConfig`] describes what may be written, with bounds and defaults; [`FilterConfig`] is
//! what the gate works with. `envoy/filter.schema.json` is generated from the former.

use serde::Deserialize;
use settings::{Duration, Faults, Integer, Text, Tree};

use crate::SqVersion;
use crate::deadlines::LEASE_TIMEOUT_MS;
use crate::time::{DAY_MS, MINUTE_MS, SECOND_MS};

/// Longest `lease_timeout`, and thereby longest `outage_after`.
const LEASE_TIMEOUT_MAX_MS: u64 = 2 * MINUTE_MS;
/// Default of `outage_after`, unless `lease_timeout` is shorter.
const OUTAGE_AFTER_MS: u32 = 5_000;

/// The filter's configuration, checked. [`RawFilterConfig`] explains each setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterConfig {
    /// Envoy cluster of the relay.
    pub relay_cluster: String,
    /// Time-out of a verify request.
    pub relay_timeout_ms: u32,
    /// Longest wait of one long poll for changes.
    pub changes_wait_ms: u32,
    /// Envoy cluster of the orchestrator; `None` if tenants' clusters are static and named
    /// `sq/<tenant>`.
    pub orchestrator_cluster: Option<String>,
    /// Longest wait of a client for a wake.
    pub lease_timeout_ms: u32,
    /// Time without a response from the orchestrator after which waiting clients are refused; at most
    /// `lease_timeout_ms`.
    pub outage_after_ms: u32,
    /// Interval of usage reports.
    pub usage_interval_ms: u32,
    /// Time for which cached verdicts are served while the relay is unreachable.
    pub verdict_grace_ms: u32,
    /// Time for which an unknown key is remembered.
    pub negative_ttl_ms: u32,
    /// Bound on cached verdicts, on leases and on unknown keys per VM instance, each.
    pub cache_entries: u32,
    /// Bound on verify requests per second and Envoy about unknown keys; a quarter per client address.
    pub verify_per_s: u32,
    /// Value of `access-control-allow-origin`; empty disables CORS.
    pub cors_origin: String,
    /// Envoy's `buffer` filter follows: a body without `content-length` reaches SQ whole, with one.
    pub buffered: bool,
    /// Limits are evaluated and reported but not enforced.
    pub shadow: bool,
    /// Release of SQ where no orchestrator reports it.
    pub sq_version: SqVersion,
    /// Prefix of the problem types.
    pub problem_base: String,
}

/// Configuration of the gateway's filter. Every key may be left out.
#[derive(Debug, Deserialize)]
#[cfg_attr(not(target_family = "wasm"), derive(serde::Serialize, schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct RawFilterConfig {
    /// Envoy cluster of the relay.
    relay_cluster: Text,
    /// Time-out of a verify request to the relay.
    relay_timeout: Duration<10, MINUTE_MS>,
    /// Longest wait of one long poll for changes of the registry.
    changes_wait: Duration<100, { 5 * MINUTE_MS }>,
    /// Envoy cluster of the orchestrator. Without it, the tenants' clusters are static and named
    /// `sq/<tenant>`, and nothing is metered.
    orchestrator_cluster: Option<Text>,
    /// Longest wait of a client for a wake. Keep it longer than the orchestrator's
    /// `lifecycle.patience`, whose refusals state a reason.
    lease_timeout: Duration<100, LEASE_TIMEOUT_MAX_MS>,
    /// Time without any response from the orchestrator after which waiting clients are refused; at
    /// most `lease_timeout`. Default: 5s, which is longer than a restart of the orchestrator takes.
    outage_after: Option<Duration<0, LEASE_TIMEOUT_MAX_MS>>,
    /// Interval of usage reports to the orchestrator.
    usage_interval: Duration<100, MINUTE_MS>,
    /// Time for which cached verdicts are served while the relay is unreachable.
    verdict_grace: Duration<0, DAY_MS>,
    /// Time for which an unknown key is remembered, so that it is not verified again.
    negative_ttl: Duration<0, MINUTE_MS>,
    /// Bound on cached verdicts, on leases and on unknown keys per worker, each.
    cache_entries: Integer<16, 1_000_000>,
    /// Bound on verify requests per second and Envoy about keys that no worker has a verdict for.
    /// One client address may cause a quarter of them.
    verify_per_s: Integer<1, 100_000>,
    /// Value of the header `access-control-allow-origin`: one origin or `*`. Empty disables CORS.
    cors_origin: String,
    /// Envoy's `buffer` filter follows this one. Without it, SQ would store the framing of a chunked
    /// body as text, so bodies of unknown length are refused.
    buffered: bool,
    /// Limits are evaluated and reported but not enforced.
    shadow: bool,
    /// Release of SQ behind static clusters. An orchestrator reports it itself.
    #[cfg_attr(not(target_family = "wasm"), schemars(with = "String"))]
    sq_version: SqVersion,
    /// Prefix of the `type` in problem documents (RFC 9457). The problem's name follows it.
    problem_base: String,
}

impl Default for RawFilterConfig {
    fn default() -> Self {
        Self {
            relay_cluster: "ranch_relay".into(),
            relay_timeout: Duration::from_ms(2 * SECOND_MS),
            changes_wait: Duration::from_ms(20 * SECOND_MS),
            orchestrator_cluster: None,
            lease_timeout: Duration::from_ms(LEASE_TIMEOUT_MS.into()),
            outage_after: None,
            usage_interval: Duration::from_ms(SECOND_MS),
            verdict_grace: Duration::from_ms(15 * MINUTE_MS),
            negative_ttl: Duration::from_ms(3 * SECOND_MS),
            cache_entries: Integer::new(10_000),
            verify_per_s: Integer::new(400),
            cors_origin: "*".to_owned(),
            buffered: false,
            shadow: false,
            sq_version: SqVersion::default(),
            problem_base: "urn:sq:problem:".to_owned(),
        }
    }
}

impl Default for FilterConfig {
    fn default() -> Self {
        Self::from_raw(RawFilterConfig::default(), &mut Faults::default())
    }
}

impl FilterConfig {
    /// Reads a configuration that has been parsed from JSON, or reports all of its faults.
    pub fn read(tree: &Tree) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let raw = settings::read(tree, &mut faults);
        let config = Self::from_raw(raw, &mut faults);
        faults.or_config(config)
    }

    fn from_raw(raw: RawFilterConfig, faults: &mut Faults) -> Self {
        let lease_timeout_ms = raw.lease_timeout.as_ms_u32();
        Self {
            relay_cluster: raw.relay_cluster.into_string(),
            relay_timeout_ms: raw.relay_timeout.as_ms_u32(),
            changes_wait_ms: raw.changes_wait.as_ms_u32(),
            orchestrator_cluster: raw.orchestrator_cluster.map(Text::into_string),
            lease_timeout_ms,
            outage_after_ms: outage_after_ms(raw.outage_after, lease_timeout_ms, faults),
            usage_interval_ms: raw.usage_interval.as_ms_u32(),
            verdict_grace_ms: raw.verdict_grace.as_ms_u32(),
            negative_ttl_ms: raw.negative_ttl.as_ms_u32(),
            cache_entries: raw.cache_entries.as_u32(),
            verify_per_s: raw.verify_per_s.as_u32(),
            cors_origin: checked_origin(raw.cors_origin, faults),
            buffered: raw.buffered,
            shadow: raw.shadow,
            sq_version: raw.sq_version,
            problem_base: raw.problem_base,
        }
    }
}

fn outage_after_ms(
    setting: Option<Duration<0, LEASE_TIMEOUT_MAX_MS>>,
    lease_timeout_ms: u32,
    faults: &mut Faults,
) -> u32 {
    let Some(setting) = setting else {
        return OUTAGE_AFTER_MS.min(lease_timeout_ms);
    };
    let outage_after_ms = setting.as_ms_u32();
    if outage_after_ms > lease_timeout_ms {
        let message = "is longer than `lease_timeout`: clients would be refused before";
        faults.push("outage_after", format_args!("`{setting}` {message}"));
    }
    outage_after_ms
}

/// One origin has neither spaces nor control characters, which a header value may not have either.
fn checked_origin(origin: String, faults: &mut Faults) -> String {
    if origin.chars().any(|c| c.is_control() || c == ' ') {
        faults.push(
            "cors_origin",
            format_args!(
                "`{origin}` is not an origin: write one, such as `https://a.example`, or `*`"
            ),
        );
    }
    origin
}

#[cfg(test)]
mod tests;
