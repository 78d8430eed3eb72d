//! The filter chains that are compared, each a listener of one Envoy.

use std::path::Path;

use anyhow::{Context as _, Result};

/// The HTTP filters before the router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FilterChain {
    /// No filter: a plain route.
    Plain,
    /// Envoy's `api_key_auth` and `local_ratelimit`, with the keys in Envoy's configuration.
    Native,
    /// Envoy's `ext_authz`, which calls an HTTP service for every request.
    ExtAuthz,
    /// A wasm filter that does nothing.
    Empty,
    /// The gateway's filter with a warm cache.
    Filter,
    /// The gateway's filter in the chain of `envoy/bootstrap.yaml`, with the keyless limit, the
    /// filters that set response headers, the buffer, both routes and the access log.
    Shipped,
}

impl FilterChain {
    /// All chains, in the order of the table.
    pub(super) const ALL: [Self; 6] =
        [Self::Plain, Self::Native, Self::ExtAuthz, Self::Empty, Self::Filter, Self::Shipped];

    /// Returns the title of the chain's row.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Plain => "plain route",
            Self::Native => "api_key_auth + local_ratelimit",
            Self::ExtAuthz => "ext_authz over HTTP",
            Self::Empty => "empty wasm filter",
            Self::Filter => "filter.wasm, warm",
            Self::Shipped => "the shipped chain, warm",
        }
    }

    /// Formats the chain's HTTP filters as items of a YAML flow sequence.
    fn filters(self, config: &ChainConfig<'_>) -> String {
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
                key = config.key
            ),
            Self::ExtAuthz => format!(
                r#"{{name: authz, typed_config: {{"@type": {FILTERS}.ext_authz.v3.ExtAuthz,
          http_service: {{path_prefix: /authz,
          server_uri: {{uri: "127.0.0.1", cluster: ranch_relay, timeout: 1s}}}}}}}},"#
            ),
            Self::Empty => wasm_filter("empty", config.empty_filter, "{}"),
            Self::Filter | Self::Shipped => {
                wasm_filter("filter", config.filter, r#"{"orchestrator_cluster":"orchestrator"}"#)
            }
        }
    }

    /// Formats the listener.
    pub(super) fn listener(self, port: u16, config: &ChainConfig<'_>) -> Result<String> {
        // All chains get the same request. The filter selects the cluster itself.
        let cluster = match self {
            Self::Shipped => return shipped_listener(port, config),
            Self::Filter => "cluster_header: x-sq-cluster",
            _ => "cluster: sq/bench",
        };
        let filters = self.filters(config);
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

/// Returns the bootstrap's first listener without TLS, like all listeners of the benchmark.
fn shipped_listener(port: u16, config: &ChainConfig<'_>) -> Result<String> {
    let listener = between(BOOTSTRAP, "  listeners:\n", "\n  - name: metrics\n")?;
    let tls = between(listener, "    listener_filters:\n", "\n      filters:\n")?;
    let tls = format!("    listener_filters:\n{tls}\n      filters:\n");
    let module = config.filter.display().to_string();
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
        text.split_once(from).with_context(|| format!("the bootstrap has no {from:?}"))?;
    Ok(rest.split_once(to).with_context(|| format!("the bootstrap has no {to:?}"))?.0)
}

/// The parameters of the filters.
pub(super) struct ChainConfig<'a> {
    /// The key of all requests.
    pub(super) key: &'a str,
    /// The wasm module that does nothing.
    pub(super) empty_filter: &'a Path,
    /// `filter.wasm`.
    pub(super) filter: &'a Path,
}

/// Returns the callbacks that the shipped configuration permits. Others are not called and cost
/// nothing.
fn capabilities() -> String {
    let lines = BOOTSTRAP.lines().map(str::trim);
    let capabilities = lines.filter(|l| l.starts_with("proxy_") && l.ends_with("{}"));
    capabilities.collect::<Vec<_>>().join(", ")
}

/// Formats a wasm filter with a separate VM.
pub(super) fn wasm_filter(id: &str, module: &Path, configuration: &str) -> String {
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
