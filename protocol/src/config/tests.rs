#[cfg(target_family = "wasm")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;

fn read(json: &str) -> Result<FilterConfig, String> {
    let tree: Tree = serde_json::from_str(json).map_err(|e| e.to_string())?;
    FilterConfig::read(&tree).map_err(|e| e.to_string())
}

#[test]
fn empty_configuration_is_the_default() {
    assert_eq!(read("{}"), Ok(FilterConfig::default()));
    assert_eq!(read(r#"{"orchestrator_cluster": null}"#), Ok(FilterConfig::default()));
}

#[test]
fn all_settings_are_read() {
    let config = read(
        r#"{"relay_cluster": "r", "relay_timeout": "3s", "changes_wait": "1min",
            "orchestrator_cluster": "o", "lease_timeout": "20s", "outage_after": "4s",
            "usage_interval": "500ms", "verdict_grace": "1h", "negative_ttl": "0s", "cache_entries": 16,
            "verify_per_s": 5, "cors_origin": "", "buffered": true, "shadow": true,
            "sq_version": "0.5.0",
            "problem_base": "https://a/"}"#,
    );
    let expected = FilterConfig {
        relay_cluster: "r".to_owned(),
        relay_timeout_ms: 3_000,
        changes_wait_ms: 60_000,
        orchestrator_cluster: Some("o".to_owned()),
        lease_timeout_ms: 20_000,
        outage_after_ms: 4_000,
        usage_interval_ms: 500,
        verdict_grace_ms: 3_600_000,
        negative_ttl_ms: 0,
        cache_entries: 16,
        verify_per_s: 5,
        cors_origin: String::new(),
        buffered: true,
        shadow: true,
        sq_version: SqVersion::V0_5_0,
        problem_base: "https://a/".to_owned(),
    };
    assert_eq!(config, Ok(expected));
}

#[test]
fn all_faults_are_reported_at_once() {
    let faults = read(
        r#"{"verdict_grace": "25h", "relay_cluster": "", "cache_entries": "many", "shadow": 1,
            "sq_version": "0.6", "verify_per_s": 7, "verify_per_s": 8, "relay": {"x": []},
            "usage_interval": -1, "cors_origin": "a b", "negative_ttl": "61s"}"#,
    )
    .unwrap_err();
    for fault in [
        "verdict_grace: `25h` is out of bounds: write `0s` to `1d`",
        "relay_cluster: `` is empty: write a text, or leave the key out",
        "cache_entries: `many` is not a whole number",
        "shadow: `1` is not a boolean: write `true` or `false`",
        "sq_version: `0.6` is not a supported version of SQ: write three numbers such as `0.6.0`, \
         from 0.5.0",
        "verify_per_s: `8` is a second value: keep one of them",
        "usage_interval: `-1` is not a duration: write a number and a unit, such as `250ms`, `30s` \
         or `5min`",
        "cors_origin: `a b` is not an origin: write one, such as `https://a.example`, or `*`",
        "negative_ttl: `61s` is out of bounds: write `0s` to `1min`",
    ] {
        assert!(faults.lines().any(|line| line == fault), "{fault} is missing in:\n{faults}");
    }
    assert!(faults.contains("relay: unknown key: write one of `relay_cluster`, "), "{faults}");
    assert_eq!(faults.lines().count(), 10, "{faults}");
}

#[test]
fn json_other_than_an_object_is_refused() {
    for bad in ["[]", "3", "", "{", "\"x\"", "null"] {
        assert!(read(bad).is_err(), "{bad}");
    }
}

#[test]
fn outage_is_reported_within_the_lease_timeout() {
    let short = read(r#"{"lease_timeout": "1s"}"#).unwrap();
    assert_eq!(short.outage_after_ms, 1_000);
    let faults = read(r#"{"lease_timeout": "1s", "outage_after": "1001ms"}"#).unwrap_err();
    assert!(
        faults.starts_with("outage_after: `1001ms` is longer than `lease_timeout`"),
        "{faults}"
    );
}

/// Files of the repository, which are not there in wasm.
#[cfg(not(target_family = "wasm"))]
mod files {
    use std::path::Path;

    use serde_json::Value;

    use super::*;

    const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../envoy/filter.schema.json");

    /// The JSON under `configuration:` in a configuration of Envoy.
    fn filter_configuration(yaml: &str) -> String {
        let (_, configuration) = yaml.split_once("configuration:\n").unwrap();
        let (_, value) = configuration.split_once("value: ").unwrap();
        if let Some(quoted) = value.strip_prefix('"') {
            return quoted.split_once("\"\n").unwrap().0.to_owned();
        }
        let block = value.strip_prefix("|\n").unwrap();
        let (object, _) = block.split_once("}\n").unwrap();
        format!("{object}}}")
    }

    #[test]
    fn committed_schema_is_up_to_date() {
        settings::schema::check_committed::<RawFilterConfig>(Path::new(SCHEMA)).unwrap();
    }

    #[test]
    fn configurations_of_envoy_are_valid() {
        let schema: Value =
            serde_json::from_str(&settings::schema::generate::<RawFilterConfig>()).unwrap();
        for yaml in [
            include_str!("../../../envoy/bootstrap.yaml"),
            include_str!("../../../envoy/standalone.yaml"),
            include_str!("../../../envoy/ratelimit.yaml"),
        ] {
            let json = filter_configuration(yaml);
            read(&json).unwrap();
            let instance: Value = serde_json::from_str(&json).unwrap();
            assert_eq!(settings::schema::violations(&schema, &instance), [""; 0]);
        }
    }
}
