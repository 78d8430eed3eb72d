//! What may be written in `relay.toml`: keys, bounds and defaults.
//!
//! `relay/relay.schema.json` is generated from these types, with their comments.

use protocol::time::{DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use settings::{Duration, Integer, Text};

/// Default of `listen`.
pub(super) const LISTEN: &str = "127.0.0.1:7443";
/// Default of `source.poll_interval`: a change is noticed well within a second.
const POLL_INTERVAL_MS: u64 = 250;
/// Below this interval SQ would do little else.
const POLL_INTERVAL_MIN_MS: u64 = 20;

/// Settings of the relay. Relative paths start at the folder of the file.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawConfig {
    /// Address and port for gateways. Default: 127.0.0.1:7443. Every connection uses mutual TLS.
    pub(super) listen: Option<Text>,
    pub(super) tls: RawTls,
    pub(super) connections: RawConnections,
    pub(super) source: RawSource,
}

/// Certificates. The files are checked every second and read again when they have changed.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawTls {
    /// Required: certificate chain of the relay, PEM.
    pub(super) cert: Option<Text>,
    /// Required: private key of the relay, PEM.
    pub(super) key: Option<Text>,
    /// Required: CAs that sign the certificates of the gateways, PEM.
    pub(super) client_ca: Option<Text>,
    /// DNS names of the gateways that are served. Without it, every certificate of the CAs is
    /// accepted.
    pub(super) clients: Option<Vec<String>>,
}

/// Bounds on the connections of all gateways.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawConnections {
    /// Open connections. Further ones are closed.
    pub(super) max: Integer<1, 100_000>,
    /// Time without a request after which a connection is closed. It must exceed Envoy's
    /// `idle_timeout` for the relay, or requests meet connections that are being closed.
    pub(super) idle_timeout: Duration<SECOND_MS, HOUR_MS>,
    /// Time after which a gateway has to connect and show its certificate again. It must exceed
    /// Envoy's `max_connection_duration` for the relay.
    pub(super) max_age: Duration<SECOND_MS, DAY_MS>,
}

/// The registry: either a file, or a phext in an SQ server.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawSource {
    /// File of the registry, polled 20 times a second.
    pub(super) file: Option<Text>,
    /// SQ server of the registry, such as `http://10.0.0.7:1337`, instead of `file`.
    pub(super) url: Option<Text>,
    /// With `url`: name of the phext on the server. Default: registry.
    pub(super) phext: Option<Text>,
    /// With `url`, required: file with the key of the SQ server.
    pub(super) key_file: Option<Text>,
    /// With `url`: interval between two polls. Default: 250ms.
    pub(super) poll_interval: Option<Duration<POLL_INTERVAL_MIN_MS, MINUTE_MS>>,
    /// Time for which a registry that looks truncated must stay unchanged before it is accepted.
    /// Default: 5s for a file, 10min for an SQ server.
    pub(super) hold_time: Option<Duration<0, DAY_MS>>,
    /// Path of the last good copy, with digests instead of keys. Default: the file's name, or the
    /// phext's, followed by `.last-good`.
    pub(super) last_good: Option<Text>,
}

impl RawSource {
    pub(super) fn poll_interval(&self) -> std::time::Duration {
        self.poll_interval.unwrap_or(Duration::from_ms(POLL_INTERVAL_MS)).get()
    }
}

impl Default for RawConnections {
    /// A gateway keeps one long poll per worker and a few more connections open, by Envoy's own bound
    /// at most 256: there is room for a hundred gateways, or four at their bound. In
    /// `envoy/bootstrap.yaml` the times are 30 s and 30 min.
    fn default() -> Self {
        Self {
            max: Integer::new(1_024),
            idle_timeout: Duration::from_ms(75 * SECOND_MS),
            max_age: Duration::from_ms(HOUR_MS),
        }
    }
}
