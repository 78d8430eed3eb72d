//! The plugin's JSON: what an Envoy operator writes under `configuration:` of the wasm filter.
//!
//! Every field has a default. All faults are reported at once: unknown names, names that are there
//! twice, wrong types, values out of their bounds.

use std::fmt;
use std::ops::RangeInclusive;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::SqVersion;
use crate::deadlines::LEASE_TIMEOUT_MS;

/// The filter's configuration, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterConfig {
    /// Envoy cluster of the ranch relay. Default `ranch_relay`.
    pub relay_cluster: String,
    /// Time the relay has for a verdict. Default 2 s.
    pub relay_timeout_ms: u32,
    /// How long one long poll for changes may wait. Default 20 s.
    pub changes_wait_ms: u32,
    /// Envoy cluster of the orchestrator; `None`: tenants' clusters are static and named
    /// `sq/<tenant>`. Default `None`.
    pub orchestrator_cluster: Option<String>,
    /// Patience of a client for a wake. Default 10 s.
    pub lease_timeout_ms: u32,
    /// For how long the orchestrator may not answer at all before those who wait for it are told;
    /// at most `lease_timeout_ms`. Default 5 s: longer than the orchestrator takes to be restarted.
    pub outage_after_ms: u32,
    /// How often usage is sent. Default 1 s.
    pub usage_interval_ms: u32,
    /// How long known keys are served when the relay can't be reached. Default 15 min.
    pub grace_s: u32,
    /// How long an unknown key is remembered. Default 3 s.
    pub negative_ttl_ms: u32,
    /// Verdicts, leases and unknown keys remembered per VM, each. Default 10 000.
    pub cache_entries: u32,
    /// Questions to the relay per second and Envoy about keys that nobody there has heard of; a quarter
    /// of it per client address. Default 400.
    pub verify_per_s: u32,
    /// `access-control-allow-origin`; empty: no CORS. Default `*`.
    pub cors_origin: String,
    /// Limits are counted and marked but not enforced. Default `false`.
    pub shadow: bool,
    /// Release of SQ where no orchestrator reports it. Default `0.6.0`.
    pub sq_version: SqVersion,
    /// Where problem types are documented; a type is this and its name.
    pub problem_base: String,
}

impl Default for FilterConfig {
    fn default() -> Self {
        Self {
            relay_cluster: "ranch_relay".to_owned(),
            relay_timeout_ms: 2_000,
            changes_wait_ms: 20_000,
            orchestrator_cluster: None,
            lease_timeout_ms: LEASE_TIMEOUT_MS,
            outage_after_ms: 5_000,
            usage_interval_ms: 1_000,
            grace_s: 900,
            negative_ttl_ms: 3_000,
            cache_entries: 10_000,
            verify_per_s: 400,
            cors_origin: "*".to_owned(),
            shadow: false,
            sq_version: SqVersion::default(),
            problem_base: "urn:sq:problem:".to_owned(),
        }
    }
}

/// As it is written.
#[derive(Debug)]
pub struct RawFilterConfig(Vec<(String, Said)>);

/// What was written for a field.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Said {
    /// `null`: the same as leaving it out.
    Nothing(()),
    Flag(bool),
    Number(u64),
    Text(String),
    Other(IgnoredAny),
}

impl<'de> Deserialize<'de> for RawFilterConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Entries)
    }
}

/// Takes the fields one by one: a map would drop those that are there twice.
struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = RawFilterConfig;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of settings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawFilterConfig, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(RawFilterConfig(entries))
    }
}

/// Everything that is wrong with a configuration, one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFaults(pub Vec<String>);

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for ConfigFaults {}

/// The fields that are left to be read, and what was wrong with those that were.
struct Fields {
    left: Vec<(String, Said)>,
    faults: Vec<String>,
}

impl Fields {
    fn fault(&mut self, name: &str, what: impl fmt::Display) {
        self.faults.push(format!("{name}: {what}"));
    }

    /// What was said of a field; `None`: nothing.
    fn take(&mut self, name: &str) -> Option<Said> {
        let (own, left) =
            std::mem::take(&mut self.left).into_iter().partition::<Vec<_>, _>(|(n, _)| n == name);
        self.left = left;
        if own.len() > 1 {
            self.fault(name, "is there more than once");
        }
        let said = own.into_iter().next().map(|(_, said)| said);
        said.filter(|said| !matches!(said, Said::Nothing(())))
    }

    fn number(&mut self, name: &str, default: u32, bounds: RangeInclusive<u32>) -> u32 {
        let (low, high) = (*bounds.start(), *bounds.end());
        match self.take(name) {
            None => return default,
            Some(Said::Number(said)) => match u32::try_from(said) {
                Ok(said) if bounds.contains(&said) => return said,
                _ => self.fault(name, format_args!("{said} is not within {low} and {high}")),
            },
            Some(_) => self.fault(name, format_args!("must be a number from {low} to {high}")),
        }
        default
    }

    fn flag(&mut self, name: &str, default: bool) -> bool {
        match self.take(name) {
            None => return default,
            Some(Said::Flag(said)) => return said,
            Some(_) => self.fault(name, "must be true or false"),
        }
        default
    }

    /// A text that `is_good`, or else a fault that says what it must be.
    fn text(&mut self, name: &str, must: &str, is_good: fn(&str) -> bool) -> Option<String> {
        match self.take(name) {
            None => return None,
            Some(Said::Text(said)) if is_good(&said) => return Some(said),
            Some(Said::Text(said)) => self.fault(name, format_args!("{said:?} must be {must}")),
            Some(_) => self.fault(name, format_args!("must be a text, {must}")),
        }
        None
    }
}

impl TryFrom<RawFilterConfig> for FilterConfig {
    type Error = ConfigFaults;

    fn try_from(raw: RawFilterConfig) -> Result<Self, ConfigFaults> {
        let d = Self::default();
        let mut fields = Fields { left: raw.0, faults: Vec::new() };
        let f = &mut fields;
        let lease_timeout_ms = f.number("lease_timeout_ms", d.lease_timeout_ms, 100..=120_000);
        let config = Self {
            relay_cluster: f.text("relay_cluster", CLUSTER, is_cluster).unwrap_or(d.relay_cluster),
            relay_timeout_ms: f.number("relay_timeout_ms", d.relay_timeout_ms, 10..=60_000),
            changes_wait_ms: f.number("changes_wait_ms", d.changes_wait_ms, 100..=300_000),
            orchestrator_cluster: f.text("orchestrator_cluster", CLUSTER, is_cluster),
            lease_timeout_ms,
            outage_after_ms: f.number(
                "outage_after_ms",
                d.outage_after_ms.min(lease_timeout_ms),
                0..=lease_timeout_ms,
            ),
            usage_interval_ms: f.number("usage_interval_ms", d.usage_interval_ms, 100..=60_000),
            grace_s: f.number("grace_s", d.grace_s, 0..=86_400),
            negative_ttl_ms: f.number("negative_ttl_ms", d.negative_ttl_ms, 0..=60_000),
            cache_entries: f.number("cache_entries", d.cache_entries, 16..=1_000_000),
            verify_per_s: f.number("verify_per_s", d.verify_per_s, 1..=100_000),
            cors_origin: f.text("cors_origin", ORIGIN, is_origin).unwrap_or(d.cors_origin),
            shadow: f.flag("shadow", d.shadow),
            sq_version: f
                .text("sq_version", VERSION, |text| SqVersion::parse(text).is_some())
                .and_then(|text| SqVersion::parse(&text))
                .unwrap_or(d.sq_version),
            problem_base: f.text("problem_base", "any", |_| true).unwrap_or(d.problem_base),
        };
        for (name, _) in std::mem::take(&mut fields.left) {
            fields.fault(&name, "is no field of this");
        }
        if fields.faults.is_empty() { Ok(config) } else { Err(ConfigFaults(fields.faults)) }
    }
}

const CLUSTER: &str = "the name of a cluster";
const ORIGIN: &str = "one origin, * or empty";
const VERSION: &str = "three numbers such as 0.6.0, from 0.5.0 on";

fn is_cluster(text: &str) -> bool {
    !text.is_empty()
}

fn is_origin(text: &str) -> bool {
    !text.chars().any(|c| c.is_control() || c == ' ')
}

#[cfg(test)]
mod tests {
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    fn read(json: &str) -> Result<FilterConfig, String> {
        let raw: RawFilterConfig = serde_json::from_str(json).map_err(|e| e.to_string())?;
        FilterConfig::try_from(raw).map_err(|e| e.to_string())
    }

    #[test]
    fn nothing_said_is_the_default() {
        assert_eq!(read("{}"), Ok(FilterConfig::default()));
    }

    #[test]
    fn every_fault_is_reported_at_once_whatever_its_kind() {
        let faults = read(
            r#"{"grace_s": 90000, "relay_cluster": "", "cache_entries": "many", "shadow": 1,
                "sq_version": "0.6", "verify_per_s": 7, "verify_per_s": 8, "relay": {"x": []},
                "usage_interval_ms": -1, "cors_origin": "a b", "negative_ttl_ms": 5000000000}"#,
        )
        .unwrap_err();
        for fault in [
            "grace_s: 90000 is not within 0 and 86400",
            "relay_cluster: \"\" must be the name of a cluster",
            "cache_entries: must be a number from 16 to 1000000",
            "shadow: must be true or false",
            "sq_version: \"0.6\" must be three numbers such as 0.6.0, from 0.5.0 on",
            "verify_per_s: is there more than once",
            "relay: is no field of this",
            "usage_interval_ms: must be a number from 100 to 60000",
            "cors_origin: \"a b\" must be one origin, * or empty",
            "negative_ttl_ms: 5000000000 is not within 0 and 60000",
        ] {
            assert!(faults.lines().any(|line| line == fault), "{fault} is missing in:\n{faults}");
        }
        assert_eq!(faults.lines().count(), 10, "{faults}");
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for bad in ["[]", "3", "", "{", "\"x\""] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn null_is_the_same_as_nothing() {
        assert_eq!(read(r#"{"orchestrator_cluster": null}"#), Ok(FilterConfig::default()));
    }

    #[test]
    fn an_outage_is_told_within_the_patience_for_a_wake() {
        let short = read(r#"{"lease_timeout_ms": 1000}"#).unwrap();
        assert_eq!(short.outage_after_ms, 1_000);
        let faults = read(r#"{"lease_timeout_ms": 1000, "outage_after_ms": 1001}"#).unwrap_err();
        assert_eq!(faults, "outage_after_ms: 1001 is not within 0 and 1000");
    }
}
