//! The ways of deciding who may pass, each a listener of one Envoy.

use std::path::Path;

use anyhow::{Context as _, Result};

/// What stands before the router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Nothing.
    Plain,
    /// Envoy's own `api_key_auth` and `local_ratelimit`: keys in Envoy's config.
    Native,
    /// Envoy's `ext_authz` asking a service over HTTP for every request.
    ExtAuthz,
    /// A wasm filter that does nothing.
    Empty,
    /// Our filter with its cache warm.
    Ours,
    /// Our filter in the chain of `envoy/bootstrap.yaml`: the keyless limit, the filters that put in
    /// the answer's headers, the buffer, both routes, the access log.
    Shipped,
}

impl Gate {
    /// In the order in which they are shown.
    pub const ALL: [Self; 6] =
        [Self::Plain, Self::Native, Self::ExtAuthz, Self::Empty, Self::Ours, Self::Shipped];

    /// What the table calls it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Plain => "plain route",
            Self::Native => "api_key_auth + local_ratelimit",
            Self::ExtAuthz => "ext_authz over HTTP",
            Self::Empty => "empty wasm filter",
            Self::Ours => "filter.wasm, warm",
            Self::Shipped => "the shipped chain, warm",
        }
    }

    /// Its HTTP filters, as a YAML flow sequence's items.
    fn filters(self, setup: &Setup<'_>) -> String {
        match self {
            Self::Plain => String::new(),
            Self::Native => format!(
                r#"{{name: key, typed_config: {{"@type": {FILTERS}.api_key_auth.v3.ApiKeyAuth,
          credentials: [{{key: {key}, client: bench}}], key_sources: [{{header: authorization}}]}}}},
        {{name: rate, typed_config: {{"@type": {FILTERS}.local_ratelimit.v3.LocalRateLimit,
          stat_prefix: rate, token_bucket: {{max_tokens: 1000000000,
          tokens_per_fill: 1000000000, fill_interval: 1s}},
          filter_enabled: {{default_value: {{numerator: 100}}}},
          filter_enforced: {{default_value: {{numerator: 100}}}}}}}},"#,
                key = setup.key
            ),
            Self::ExtAuthz => format!(
                r#"{{name: authz, typed_config: {{"@type": {FILTERS}.ext_authz.v3.ExtAuthz,
          http_service: {{path_prefix: /authz,
          server_uri: {{uri: "127.0.0.1", cluster: ranch_relay, timeout: 1s}}}}}}}},"#
            ),
            Self::Empty => wasm("empty", setup.empty, "{}"),
            Self::Ours | Self::Shipped => {
                wasm("ours", setup.ours, r#"{"orchestrator_cluster":"orchestrator"}"#)
            }
        }
    }

    /// The whole listener.
    pub fn listener(self, port: u16, setup: &Setup<'_>) -> Result<String> {
        // The same request goes to all; the rewrite is ours to do where our filter is in the way.
        let cluster = match self {
            Self::Shipped => return shipped(port, setup),
            Self::Ours => "cluster_header: x-sq-cluster",
            _ => "cluster: sq/bench",
        };
        let filters = self.filters(setup);
        Ok(format!(
            r#"  - name: {self:?}
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains: [{{filters: [{{name: hcm, typed_config: {{
      "@type": {NETWORK}.http_connection_manager.v3.HttpConnectionManager, stat_prefix: {self:?},
      http_filters: [{filters}
        {{name: router, typed_config: {{"@type": {FILTERS}.router.v3.Router}}}}],
      route_config: {{virtual_hosts: [{{name: all, domains: ["*"],
        routes: [{{match: {{prefix: /}}, route: {{{cluster}}}}}]}}]}}}}}}]}}]
"#
        ))
    }
}

const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters.http";
const NETWORK: &str = "type.googleapis.com/envoy.extensions.filters.network";
const BOOTSTRAP: &str = include_str!("../../../../envoy/bootstrap.yaml");

/// The bootstrap's own listener, without TLS as all here.
fn shipped(port: u16, setup: &Setup<'_>) -> Result<String> {
    let listener = between(BOOTSTRAP, "  listeners:\n", "\n  clusters:\n")?;
    let tls = between(listener, "    listener_filters:\n", "\n      filters:\n")?;
    let tls = format!("    listener_filters:\n{tls}\n      filters:\n");
    let module = setup.ours.display().to_string();
    Ok(listener
        .replace(&tls, "    filter_chains:\n    - filters:\n")
        .replace(
            "address: 0.0.0.0, port_value: 8443",
            &format!("address: 127.0.0.1, port_value: {port}"),
        )
        .replace("/etc/sq-gateway/filter.wasm", &module)
        + "\n")
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> Result<&'a str> {
    let (_, rest) =
        text.split_once(from).with_context(|| format!("no {from:?} in the bootstrap"))?;
    Ok(rest.split_once(to).with_context(|| format!("no {to:?} in the bootstrap"))?.0)
}

/// What the filters need.
pub struct Setup<'a> {
    /// The key that passes.
    pub key: &'a str,
    /// The wasm module that does nothing.
    pub empty: &'a Path,
    /// `filter.wasm`.
    pub ours: &'a Path,
}

/// What the shipped configuration lets the module do: callbacks that are not named cost nothing.
fn capabilities() -> String {
    let shipped = BOOTSTRAP.lines().map(str::trim);
    let named: Vec<&str> =
        shipped.filter(|l| l.starts_with("proxy_") && l.ends_with("{}")).collect();
    named.join(", ")
}

/// A wasm filter in a VM of its own.
pub(super) fn wasm(id: &str, module: &Path, configuration: &str) -> String {
    format!(
        r#"{{name: {id}, typed_config: {{"@type": {FILTERS}.wasm.v3.Wasm,
          config: {{name: {id}, root_id: {id},
          vm_config: {{vm_id: {id}, runtime: envoy.wasm.runtime.v8,
          code: {{local: {{filename: "{module}"}}}}}},
          configuration: {{"@type": type.googleapis.com/google.protobuf.StringValue,
          value: '{configuration}'}},
          capability_restriction_config: {{allowed_capabilities: {{{allowed}}}}}}}}}}},"#,
        allowed = capabilities(),
        module = module.display()
    )
}
