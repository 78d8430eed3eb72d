//! Where the servers listen, `[listen]`, and who may connect.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use settings::{Faults, Integer};

use crate::sockets::{Access, AllowedUsers, PATH_MAX_BYTES};

/// Greatest user or group id; the one above means "unchanged" to the kernel.
const ID_MAX: u64 = u32::MAX as u64 - 1;
/// Mode of a socket that a group may use; the check of the peer's user decides.
const GROUP_MODE: u32 = 0o660;
/// Mode of a socket for its owner and root alone.
const OWN_MODE: u32 = 0o600;

/// Sockets and addresses of the servers, and who may connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// Socket of leases and usage reports, for the filter.
    pub gate: PathBuf,
    /// Socket of clusters, for Envoy.
    pub xds: PathBuf,
    /// Socket of status and commands, for the operator.
    pub admin: PathBuf,
    /// Loopback address of metrics and health, for any program of this host.
    pub metrics: SocketAddr,
    /// User of Envoy, if it is neither root nor this process's own.
    pub envoy_uid: Option<u32>,
    /// Operators besides root and this process's own user.
    pub operator_uids: Vec<u32>,
    /// Group of the sockets and their folder.
    pub group: Option<u32>,
}

/// Sockets and addresses of the orchestrator's servers, and who may connect.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawListen {
    /// Socket of leases and usage reports, for the filter.
    gate: SocketPath,
    /// Socket of clusters, for Envoy.
    xds: SocketPath,
    /// Socket of status and commands, for the operator.
    admin: SocketPath,
    /// Address of `/metrics` and `/healthz`, which every program of this host may read.
    metrics: Loopback,
    /// User of Envoy, who may use `gate` and `xds` and connect to tenants, besides root and the
    /// orchestrator's own user.
    envoy_uid: Option<Integer<0, ID_MAX>>,
    /// Users who may use `admin` besides root and the orchestrator's own user.
    operator_uids: Vec<Integer<0, ID_MAX>>,
    /// Group of the sockets and of their folder. Envoy's user and the operators must be in it.
    group: Option<Integer<0, ID_MAX>>,
}

impl Default for RawListen {
    fn default() -> Self {
        let socket = |name: &str| SocketPath(format!("/run/sq-gateway/{name}.sock"));
        Self {
            gate: socket("gate"),
            xds: socket("xds"),
            admin: socket("admin"),
            metrics: Loopback(SocketAddr::from(([127, 0, 0, 1], 7102))),
            envoy_uid: None,
            operator_uids: Vec::new(),
            group: None,
        }
    }
}

impl Listen {
    /// Converts the raw settings and reports the keys that contradict each other.
    pub(super) fn from_raw(raw: RawListen, faults: &mut Faults) -> Self {
        let RawListen { gate, xds, admin, .. } = &raw;
        for (name, path, others) in [("xds", xds, &[gate][..]), ("admin", admin, &[gate, xds])] {
            if others.contains(&path) {
                let message = format_args!("`{}` is another server's socket", path.0);
                faults.push(&format!("listen.{name}"), message);
            }
        }
        Self {
            gate: raw.gate.0.into(),
            xds: raw.xds.0.into(),
            admin: raw.admin.0.into(),
            metrics: raw.metrics.0,
            envoy_uid: raw.envoy_uid.map(Integer::as_u32),
            operator_uids: raw.operator_uids.into_iter().map(Integer::as_u32).collect(),
            group: raw.group.map(Integer::as_u32),
        }
    }

    /// Access of Envoy to `gate` and `xds`.
    pub(crate) fn envoy_access(&self) -> Access {
        let users = AllowedUsers::own_and(self.envoy_uid);
        Access { users, group: self.group, mode: GROUP_MODE }
    }

    /// Access of operators to `admin`.
    pub(crate) fn operator_access(&self) -> Access {
        let users = AllowedUsers::own_and(self.operator_uids.iter().copied());
        let mode = if self.operator_uids.is_empty() { OWN_MODE } else { GROUP_MODE };
        Access { users, group: self.group, mode }
    }
}

/// Absolute path of a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(with = "String")]
struct SocketPath(String);

impl<'de> Deserialize<'de> for SocketPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let path = String::deserialize(deserializer)?;
        if !path.starts_with('/') || path.ends_with('/') || path.contains('\0') {
            let message = "is not an absolute path of a socket, such as \
                           `/run/sq-gateway/gate.sock`";
            return Err(D::Error::custom(message));
        }
        if path.len() > PATH_MAX_BYTES {
            return Err(D::Error::custom(format_args!(
                "has {} bytes, and a socket's path may have {PATH_MAX_BYTES}: write a shorter one",
                path.len()
            )));
        }
        Ok(Self(path))
    }
}

/// A loopback address with its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(with = "String")]
struct Loopback(SocketAddr);

impl fmt::Display for Loopback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Loopback {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let Ok(address) = text.parse::<SocketAddr>() else {
            let message = "is not an address: write one with its port, such as `127.0.0.1:7102`";
            return Err(D::Error::custom(message));
        };
        if !address.ip().is_loopback() {
            let message = "is not a loopback address: this server is not for the network";
            return Err(D::Error::custom(message));
        }
        Ok(Self(address))
    }
}
