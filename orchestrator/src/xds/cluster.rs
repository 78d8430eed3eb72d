//! The Envoy cluster of one tenant: SQ's address, the token that SQ accepts, and the way Envoy must
//! talk to it.
//!
//! SQ takes one HTTP/1.1 request per connection and stores whatever follows it as text, so a
//! connection is never reused. The client's key is replaced by the instance's token on the last hop,
//! inside Envoy. The token shows in `/config_dump`, therefore Envoy's admin port is private.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;

use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use envoy_types::pb::envoy::config::cluster::v3::{
    CircuitBreakers, Cluster, UpstreamConnectionOptions, circuit_breakers,
};
use envoy_types::pb::envoy::config::common::mutation_rules::v3 as mutation;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as endpoint;
use envoy_types::pb::envoy::extensions::filters::http::header_mutation::v3 as header_mutation;
use envoy_types::pb::envoy::extensions::filters::http::upstream_codec::v3::UpstreamCodec;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpFilter, http_filter,
};
use envoy_types::pb::envoy::extensions::upstreams::http::v3 as upstream;
use envoy_types::pb::google::protobuf::{Any, Duration, UInt32Value};
use prost::{Message, Name};
use protocol::{Limits, SqVersion, TenantId};

/// Type URL of clusters, as Envoy asks for them.
pub(super) const CLUSTER_TYPE: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

/// Connect time-out. SQ is on this host or one bridge away: a connection that takes longer fails.
const CONNECT_TIMEOUT_S: i64 = 1;

/// Time after which Envoy gives up a dead connection and retries the request. When SQ's network
/// namespace disappears with it, no FIN or RST is sent, and the request would wait for all of its
/// 30 s. While SQ is merely busy or paused, the kernel answers the probes.
const DEAD_AFTER_S: u32 = 4;
/// Interval of TCP keep-alive probes.
const PROBE_EVERY_S: u32 = 1;

/// Idle time-out of a connection without a request. If the client leaves before the connection is
/// established, Envoy keeps it for the worker's next request; until then SQ 0.5 reads from it and
/// serves no other connection, and 0.6 spends a thread on it.
const IDLE_TIMEOUT_S: i64 = 1;

/// Bound on one tenant's requests that wait for a connection: twice the largest tested herd of 500.
/// Each may occupy memory for its body; beyond the bound Envoy answers 503 at once.
const PENDING_MAX: u32 = 1024;

/// Bound on one tenant's requests inside Envoy, waiting or not.
const REQUESTS_MAX: u32 = 2048;

/// Bound on simultaneous retries. With Envoy's default of 3, a restart of SQ failed 78 of 400
/// requests.
const RETRIES_MAX: u32 = 100;

/// Size of the response buffer in sizes of the largest phext. Envoy takes a whole response from SQ
/// at once, so that a slow client does not block SQ 0.5.0, which serves one connection at a time.
/// Memory is used only as far as responses need it.
const BUFFER_PER_PHEXT: u64 = 2;
/// Lower bound on the response buffer: Envoy's own default.
const BUFFER_MIN_BYTES: u64 = 1 << 20;
/// Upper bound on the response buffer: the share of Envoy's memory that one response may take.
const BUFFER_MAX_BYTES: u64 = 64 << 20;

/// A bearer token (RFC 6750). `Debug` prints `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct BearerToken(String);

impl BearerToken {
    /// Wraps the plaintext of a token.
    pub fn new(token: &str) -> Self {
        Self(token.to_owned())
    }
}

impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BearerToken(***)")
    }
}

/// The properties in which one tenant's cluster differs from another's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSpec {
    address: SocketAddr,
    /// Presented to SQ instead of the client's key.
    token: BearerToken,
    /// Bound on simultaneous requests to SQ. Envoy allows one connection per worker in any case.
    concurrency: u32,
    /// Bytes that Envoy takes from SQ ahead of the client's reading.
    buffer_bytes: u32,
}

impl ClusterSpec {
    /// Describes the cluster of an instance of `sq` under the tenant's limits.
    pub fn new(address: SocketAddr, token: BearerToken, limits: &Limits, sq: SqVersion) -> Self {
        let buffer = limits.phext_max_bytes().saturating_mul(BUFFER_PER_PHEXT);
        let buffer = buffer.clamp(BUFFER_MIN_BYTES, BUFFER_MAX_BYTES);
        Self {
            address,
            token,
            concurrency: sq.safe_concurrency(limits.concurrency),
            buffer_bytes: u32::try_from(buffer).unwrap_or(u32::MAX),
        }
    }

    /// Encodes the resource as it goes on the wire. Equal specs have equal bytes.
    pub(crate) fn encode(&self, tenant: &TenantId) -> Vec<u8> {
        self.cluster(tenant).encode_to_vec()
    }

    fn cluster(&self, tenant: &TenantId) -> Cluster {
        let name = tenant.cluster();
        Cluster {
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
            connect_timeout: Some(Duration { seconds: CONNECT_TIMEOUT_S, nanos: 0 }),
            per_connection_buffer_limit_bytes: number(self.buffer_bytes),
            load_assignment: Some(one_endpoint(&name, self.address)),
            upstream_connection_options: Some(keepalive()),
            circuit_breakers: Some(breakers(self.concurrency)),
            typed_extension_protocol_options: HashMap::from([http_options(&self.token)]),
            name,
            ..Cluster::default()
        }
    }
}

fn one_endpoint(name: &str, address: SocketAddr) -> endpoint::ClusterLoadAssignment {
    let socket = core::SocketAddress {
        address: address.ip().to_string(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(address.port().into())),
        ..core::SocketAddress::default()
    };
    let address = core::Address { address: Some(core::address::Address::SocketAddress(socket)) };
    let host = endpoint::Endpoint { address: Some(address), ..endpoint::Endpoint::default() };
    let host = endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(host)),
        ..endpoint::LbEndpoint::default()
    };
    let locality = endpoint::LocalityLbEndpoints {
        lb_endpoints: vec![host],
        ..endpoint::LocalityLbEndpoints::default()
    };
    endpoint::ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: vec![locality],
        ..endpoint::ClusterLoadAssignment::default()
    }
}

/// TCP keep-alive, which finds dead connections.
fn keepalive() -> UpstreamConnectionOptions {
    let keepalive = core::TcpKeepalive {
        keepalive_time: number(PROBE_EVERY_S),
        keepalive_interval: number(PROBE_EVERY_S),
        keepalive_probes: number(DEAD_AFTER_S / PROBE_EVERY_S - 1),
    };
    UpstreamConnectionOptions {
        tcp_keepalive: Some(keepalive),
        ..UpstreamConnectionOptions::default()
    }
}

fn breakers(concurrency: u32) -> CircuitBreakers {
    let thresholds = circuit_breakers::Thresholds {
        max_connections: number(concurrency),
        max_pending_requests: number(PENDING_MAX),
        max_requests: number(REQUESTS_MAX),
        max_retries: number(RETRIES_MAX),
        ..circuit_breakers::Thresholds::default()
    };
    CircuitBreakers { thresholds: vec![thresholds], ..CircuitBreakers::default() }
}

/// HTTP/1.1 with one request per connection, and SQ's token in place of the client's.
fn http_options(token: &BearerToken) -> (String, Any) {
    use upstream::http_protocol_options as options;
    let one_request = core::HttpProtocolOptions {
        idle_timeout: Some(Duration { seconds: IDLE_TIMEOUT_S, nanos: 0 }),
        max_requests_per_connection: number(1),
        ..core::HttpProtocolOptions::default()
    };
    let http1 = options::ExplicitHttpConfig {
        protocol_config: Some(options::explicit_http_config::ProtocolConfig::HttpProtocolOptions(
            core::Http1ProtocolOptions::default(),
        )),
    };
    let value = upstream::HttpProtocolOptions {
        common_http_protocol_options: Some(one_request),
        upstream_protocol_options: Some(options::UpstreamProtocolOptions::ExplicitHttpConfig(
            http1,
        )),
        http_filters: vec![
            filter("envoy.filters.http.header_mutation", &authorize(token)),
            filter("envoy.filters.http.upstream_codec", &UpstreamCodec::default()),
        ],
        ..upstream::HttpProtocolOptions::default()
    };
    ("envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(), any(&value))
}

fn authorize(token: &BearerToken) -> header_mutation::HeaderMutation {
    use core::header_value_option::HeaderAppendAction;
    let header = core::HeaderValue {
        key: "authorization".to_owned(),
        value: format!("Bearer {}", token.0),
        ..core::HeaderValue::default()
    };
    let option = core::HeaderValueOption {
        header: Some(header),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..core::HeaderValueOption::default()
    };
    let action = mutation::header_mutation::Action::Append(option);
    let mutations = header_mutation::Mutations {
        request_mutations: vec![mutation::HeaderMutation { action: Some(action) }],
        ..header_mutation::Mutations::default()
    };
    header_mutation::HeaderMutation {
        mutations: Some(mutations),
        ..header_mutation::HeaderMutation::default()
    }
}

fn filter<M: Message + Name>(name: &str, config: &M) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any(config))),
        ..HttpFilter::default()
    }
}

fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

// Wrapped here because every wire field of this type is optional.
#[allow(clippy::unnecessary_wraps)]
fn number(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(limits: &Limits, sq_version: &str) -> ClusterSpec {
        let address = "10.0.0.2:1337".parse().unwrap();
        ClusterSpec::new(address, BearerToken::new("secret"), limits, sq_version.parse().unwrap())
    }

    #[test]
    fn sq_0_5_gets_one_request_at_a_time() {
        let limits = Limits { concurrency: 4, ..Limits::default() };
        assert_eq!(spec(&limits, "0.6.0").concurrency, 4);
        assert_eq!(spec(&limits, "0.5.2").concurrency, 4);
        assert_eq!(spec(&limits, "0.5.1").concurrency, 1);
    }

    #[test]
    fn equal_specs_encode_to_equal_bytes() {
        let spec = spec(&Limits::default(), "0.6.0");
        let tenant = TenantId::parse("alice").unwrap();
        assert_eq!(spec.encode(&tenant), spec.encode(&tenant));
        let cluster = Cluster::decode(spec.encode(&tenant).as_slice()).unwrap();
        assert_eq!(cluster.name, "sq/alice");
        assert_eq!(cluster.load_assignment.unwrap().cluster_name, "sq/alice");
    }

    #[test]
    fn type_url_matches_the_message() {
        assert_eq!(Cluster::type_url(), CLUSTER_TYPE);
    }
}
