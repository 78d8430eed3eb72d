//! The Envoy cluster of one tenant: where its SQ answers, how Envoy must talk to it, and the key
//! that opens it.
//!
//! SQ takes one HTTP/1.1 request per connection and stores whatever follows it, so connections are
//! never used twice. The client's key is replaced by the instance's own on the last hop, inside
//! Envoy; it shows in `/config_dump`, which is why Envoy's admin port is private.

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
use protocol::{Limits, TenantId};

/// Type of the resource, as Envoy asks for it.
pub const CLUSTER_TYPE: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

/// SQ is on this host or one bridge away: a connection that takes longer will not come.
const CONNECT_TIMEOUT_S: i64 = 1;

/// How long a connection may lie dead before Envoy ends it and asks again: with its network gone, a
/// dying SQ can tell nobody, and the request would wait for all of its 30 s. The kernel answers for
/// an SQ that is busy or frozen.
const DEAD_AFTER_S: u32 = 4;
const PROBE_EVERY_S: u32 = 1;

/// A connection whose client left before it came about is kept by Envoy for the next request of
/// that worker. SQ 0.5 reads from it meanwhile and serves nobody else; 0.6 gives it a thread.
const IDLE_TIMEOUT_S: i64 = 1;

/// Requests of one tenant that wait for a connection: twice the largest herd that is tested (500
/// at once). Each may hold a body in memory; above this Envoy answers 503 at once.
const PENDING_MAX: u32 = 1024;

/// Requests of one tenant inside Envoy, waiting or not.
const REQUESTS_MAX: u32 = 2048;

/// Retries at the same time: with Envoy's default of 3 a restart of SQ failed 78 of 400 requests.
const RETRIES_MAX: u32 = 100;

/// An answer is taken from SQ at once up to twice the largest phext, so that a slow client does
/// not hold SQ 0.5.0, which serves one at a time. Memory is used only as answers need it.
const BUFFER_PER_PHEXT: u64 = 2;
/// The buffer's bounds: Envoy's own default, and what one answer may hold of Envoy's memory.
const BUFFER_BYTES: (u64, u64) = (1 << 20, 64 << 20);

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

/// What Envoy must know of a tenant's SQ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSpec {
    /// Where it answers.
    pub address: SocketAddr,
    /// Token that Envoy presents to SQ instead of the client's.
    pub token: BearerToken,
    /// Requests inside SQ at the same time. Envoy allows one connection per worker in any case.
    pub concurrency: u32,
    /// What Envoy takes from SQ before the client has read it.
    pub buffer_bytes: u32,
}

impl ClusterSpec {
    /// For an instance of `sq_version` under `limits`.
    pub fn new(address: SocketAddr, token: BearerToken, limits: &Limits, sq_version: &str) -> Self {
        // SQ before 0.6 is safe with one request at a time only.
        let concurrency = if sq_version.starts_with("0.5.") { 1 } else { limits.concurrency };
        let buffer = limits.phext_max_bytes().saturating_mul(BUFFER_PER_PHEXT);
        let buffer = buffer.clamp(BUFFER_BYTES.0, BUFFER_BYTES.1);
        Self {
            address,
            token,
            concurrency: concurrency.max(1),
            buffer_bytes: u32::try_from(buffer).unwrap_or(u32::MAX),
        }
    }

    /// The resource as it goes on the wire.
    pub fn encode(&self, tenant: &TenantId) -> Vec<u8> {
        self.cluster(tenant).encode_to_vec()
    }

    fn cluster(&self, tenant: &TenantId) -> Cluster {
        let name = tenant.cluster();
        Cluster {
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
            connect_timeout: Some(Duration { seconds: CONNECT_TIMEOUT_S, nanos: 0 }),
            per_connection_buffer_limit_bytes: number(self.buffer_bytes),
            load_assignment: Some(one_endpoint(&name, self.address)),
            upstream_connection_options: Some(probed()),
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

/// A connection on which nothing comes is probed.
fn probed() -> UpstreamConnectionOptions {
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

/// HTTP/1.1, one request per connection, and the key put in place of whatever was there.
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

// The wire type is an option everywhere.
#[allow(clippy::unnecessary_wraps)]
fn number(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(limits: &Limits, sq_version: &str) -> ClusterSpec {
        let address = "10.0.0.2:1337".parse().unwrap();
        ClusterSpec::new(address, BearerToken::new("secret"), limits, sq_version)
    }

    #[test]
    fn one_request_per_connection_and_as_many_connections_as_the_tenant_may() {
        let limits = Limits { concurrency: 4, ..Limits::default() };
        let of = |version| spec(&limits, version).concurrency;
        assert_eq!((of("0.6.0"), of("0.5.0")), (4, 1));
    }

    #[test]
    fn the_same_instance_is_the_same_resource() {
        let spec = spec(&Limits::default(), "0.6.0");
        let tenant = TenantId::parse("alice").unwrap();
        assert_eq!(spec.encode(&tenant), spec.encode(&tenant));
        let cluster = Cluster::decode(spec.encode(&tenant).as_slice()).unwrap();
        assert_eq!(cluster.name, "sq/alice");
        assert_eq!(cluster.load_assignment.unwrap().cluster_name, "sq/alice");
    }

    #[test]
    fn the_type_is_what_envoy_asks_for() {
        assert_eq!(Cluster::type_url(), CLUSTER_TYPE);
    }
}
