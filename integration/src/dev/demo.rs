//! The demo tenants: their registration, their keys and the file that scripts source.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::fs;
use std::path::Path;

use anyhow::Result;
use harness::host::files;
use harness::{Registry, Stack};

/// Names of the tenants in the demo registry, both in the tier `free`.
const TENANTS: [&str; 2] = ["alice", "bob"];

/// Registers the demo tenants and returns their keys, those of the last run if its registry still
/// has the tenants. The registry holds digests only, so the keys are stored in a file beside it.
pub(super) fn register_tenants(
    registry: &Registry,
    dir: &Path,
) -> Result<BTreeMap<String, String>> {
    let file = dir.join("demo-keys");
    let mut keys: BTreeMap<String, String> = fs::read_to_string(&file)
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, key)| (name.to_owned(), key.to_owned()))
        .collect();
    if !registry.file().exists() {
        registry.run("init", &[])?;
    }
    // A registry of an earlier version may be open to other users; edits keep its mode.
    files::make_private(registry.file())?;
    for name in TENANTS {
        let registered = registry.run("show", &[name]).is_ok();
        if registered && keys.contains_key(name) {
            continue;
        }
        let key = if registered { registry.rotate(name)? } else { registry.add(name, "free")? };
        keys.insert(name.to_owned(), key);
    }
    files::write_private(&file, assignments(&keys).as_bytes())?;
    Ok(keys)
}

/// Addresses and keys as `NAME=value` lines, which a shell can source.
pub fn demo_env(stack: &Stack) -> String {
    let key = |name: &str| stack.keys.get(name).cloned().unwrap_or_default();
    let values = [
        ("SQ_URL", format!("https://localhost:{}", stack.listen.https)),
        ("SQ_CA", stack.certs.ca().display().to_string()),
        ("SQ_KEY_ALICE", key("alice")),
        ("SQ_KEY_BOB", key("bob")),
        ("SQ_REGISTRY", stack.registry.file().display().to_string()),
        ("SQ_ADMIN", stack.orchestrator.socket("admin").display().to_string()),
        ("SQ_METRICS", metrics_url(stack.listen.orchestrator_metrics, "/metrics")),
        ("ENVOY_ADMIN", stack.envoy.admin_socket().display().to_string()),
        ("ENVOY_METRICS", metrics_url(stack.listen.envoy_metrics, "/stats/prometheus")),
    ];
    assignments(values.iter().map(|(name, value)| (name, shell_quoted(value))))
}

fn metrics_url(port: u16, path: &str) -> String {
    format!("http://127.0.0.1:{port}{path}")
}

fn assignments<N: Display, V: Display>(values: impl IntoIterator<Item = (N, V)>) -> String {
    let mut text = String::new();
    for (name, value) in values {
        // Writing into a String does not fail.
        let _ = writeln!(text, "{name}={value}");
    }
    text
}

/// Quotes a value for a shell if it needs quotes.
pub(super) fn shell_quoted(value: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/:.-_".contains(c);
    if value.chars().all(is_plain) {
        value.to_owned()
    } else {
        format!("'{}'", value.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_only_where_a_shell_needs_them() {
        assert_eq!(shell_quoted("/run/a-b_c.d:1"), "/run/a-b_c.d:1");
        assert_eq!(shell_quoted("/my run"), "'/my run'");
        assert_eq!(shell_quoted("it's"), "'it'\\''s'");
    }
}
