//! `relay.toml`, checked. Every fault is reported at once; relay.example.toml shows every setting.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls_pki_types::ServerName;
use toml::{Table, Value};

use crate::serve::connection::ConnectionLimits;
use crate::serve::tls::TlsFiles;
use crate::source::last_good;
use crate::source::sq::SqAddress;

/// The relay's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where gateways ask. Default 127.0.0.1:7443.
    pub listen: SocketAddr,
    /// Certificates.
    pub tls: TlsFiles,
    /// Names of the gateways that may ask, as their certificates have them. Default: none, which
    /// is everybody with a certificate.
    pub clients: Vec<ServerName<'static>>,
    /// How many connections, for how long. Default: 1024, 75 s idle, 1 h.
    pub connections: ConnectionLimits,
    /// Where the registry is.
    pub source: SourceConfig,
    /// How long a text that looks cut must stay unchanged until it is believed; 0: no time.
    /// Default: 5 s for a file, 10 min for an SQ server.
    pub hold: Duration,
    /// Where the last good registry is kept. Default: beside the file, or for an SQ server beside
    /// the configuration, with `.last-good` after the name.
    pub last_good: PathBuf,
}

/// Where the registry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceConfig {
    /// In a file.
    File(PathBuf),
    /// In an SQ server.
    Sq(SqAddress),
}

/// Everything that is wrong with a configuration, one line each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigFaults(pub Vec<String>);

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for ConfigFaults {}

/// Default of `listen`.
pub const LISTEN: &str = "127.0.0.1:7443";
/// Default of `connections.max`. A gateway keeps one long poll per worker and a few verifies open, and
/// by Envoy's own limit 256: room for a hundred gateways, and four at their most.
const CONNECTIONS_MAX: i64 = 1024;
/// Defaults of `connections.idle_s` and `connections.age_s`; in envoy/bootstrap.yaml it is 30 s and
/// 30 min.
const IDLE_S: i64 = 75;
const AGE_S: i64 = 3_600;
/// Default of `source.poll_ms`: a change is seen well within the second it has.
pub const POLL_MS: i64 = 250;
/// Below, SQ would do little else; above, a change takes longer than a minute.
const POLL_RANGE_MS: RangeInclusive<i64> = 20..=60_000;
/// Default of `source.hold_s` for a file: longer than a copy over a network stalls.
const HOLD_FILE_S: i64 = 5;
/// Default of `source.hold_s` for an SQ server. A phext that was cut because SQ died is cut for good:
/// time for its operator to see it. Many keys at once are seldom taken out there on purpose.
const HOLD_SQ_S: i64 = 600;
/// A day: time for any operator.
const HOLD_RANGE_S: RangeInclusive<i64> = 0..=86_400;
/// What SQ stores safely as a file's name.
const PHEXT_NAME_MAX: usize = 200;

impl Config {
    /// Reads a configuration file. Relative paths in it start at its folder.
    pub fn load(path: &Path) -> Result<Self, ConfigFaults> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| ConfigFaults(vec![format!("{}: {e}", path.display())]))?;
        Self::read(&text, path.parent().unwrap_or(Path::new("")))
    }

    /// Reads a configuration; relative paths in it start at `base`.
    pub fn read(text: &str, base: &Path) -> Result<Self, ConfigFaults> {
        let table = text.parse::<Table>().map_err(|e| ConfigFaults(vec![e.to_string()]))?;
        let mut faults = ConfigFaults::default();
        let mut top = Section { name: "", table, base };
        let listen = top.text("listen", &mut faults).unwrap_or_else(|| LISTEN.to_owned());
        let listen = listen.parse().ok().or_else(|| {
            faults.0.push(format!("listen: must be an address and a port such as {LISTEN}"));
            None
        });
        let mut tls = top.section("tls", &mut faults);
        let cert = tls.needed_path("cert", &mut faults);
        let key = tls.needed_path("key", &mut faults);
        let client_ca = tls.needed_path("client_ca", &mut faults);
        let clients = tls.names("clients", &mut faults);
        tls.end(&mut faults);
        let mut section = top.section("connections", &mut faults);
        let max = section.number("max", CONNECTIONS_MAX, 1..=100_000, &mut faults);
        let idle_s = section.number("idle_s", IDLE_S, 1..=3_600, &mut faults);
        let age_s = section.number("age_s", AGE_S, 1..=86_400, &mut faults);
        section.end(&mut faults);
        let connections = ConnectionLimits {
            max: usize::try_from(max).unwrap_or(usize::MAX),
            idle: Duration::from_secs(idle_s),
            age: Duration::from_secs(age_s),
        };
        let mut source = top.section("source", &mut faults);
        let found = source.source(&mut faults);
        let hold = source.hold(found.as_ref(), &mut faults);
        let last_good = source.last_good(found.as_ref(), &mut faults);
        source.end(&mut faults);
        top.end(&mut faults);
        match (listen, cert, key, client_ca, found, last_good) {
            (
                Some(listen),
                Some(cert),
                Some(key),
                Some(client_ca),
                Some(source),
                Some(last_good),
            ) if faults.0.is_empty() => {
                let tls = TlsFiles { cert, key, client_ca };
                Ok(Self { listen, tls, clients, connections, source, hold, last_good })
            }
            _ => Err(faults),
        }
    }
}

/// A table whose settings are taken out one by one; what is left is not known.
struct Section<'a> {
    name: &'static str,
    table: Table,
    base: &'a Path,
}

impl Section<'_> {
    fn named(&self, name: &str) -> String {
        if self.name.is_empty() { name.to_owned() } else { format!("{}.{name}", self.name) }
    }

    fn section(&mut self, name: &'static str, faults: &mut ConfigFaults) -> Self {
        let table = match self.table.remove(name) {
            Some(Value::Table(table)) => table,
            None => Table::new(),
            Some(_) => {
                faults.0.push(format!("{name}: must be a section [{name}]"));
                Table::new()
            }
        };
        Self { name, table, base: self.base }
    }

    fn text(&mut self, name: &str, faults: &mut ConfigFaults) -> Option<String> {
        match self.table.remove(name)? {
            Value::String(text) if !text.is_empty() => Some(text),
            _ => {
                faults.0.push(format!("{}: must be a text, not empty", self.named(name)));
                None
            }
        }
    }

    fn path(&mut self, name: &str, faults: &mut ConfigFaults) -> Option<PathBuf> {
        self.text(name, faults).map(|text| self.base.join(text))
    }

    fn needed_path(&mut self, name: &str, faults: &mut ConfigFaults) -> Option<PathBuf> {
        if !self.table.contains_key(name) {
            faults.0.push(format!("{}: is missing", self.named(name)));
        }
        self.path(name, faults)
    }

    /// A list of DNS names; empty where there is none.
    fn names(&mut self, name: &str, faults: &mut ConfigFaults) -> Vec<ServerName<'static>> {
        let values = match self.table.remove(name) {
            None => return Vec::new(),
            Some(Value::Array(values)) => values,
            Some(_) => Vec::new(),
        };
        let read = |v: &Value| v.as_str().and_then(|v| ServerName::try_from(v.to_owned()).ok());
        let names: Option<Vec<_>> = values.iter().map(read).collect();
        names.filter(|names| !names.is_empty()).unwrap_or_else(|| {
            faults.0.push(format!("{}: must be names such as [\"gateway-1\"]", self.named(name)));
            Vec::new()
        })
    }

    fn source(&mut self, faults: &mut ConfigFaults) -> Option<SourceConfig> {
        match (self.table.contains_key("file"), self.table.contains_key("url")) {
            (true, false) => self.path("file", faults).map(SourceConfig::File),
            (false, true) => self.sq(faults).map(SourceConfig::Sq),
            (both, _) => {
                for name in ["file", "url", "phext", "key_file", "poll_ms"] {
                    self.table.remove(name);
                }
                let what =
                    if both { "either file or url, not both" } else { "file or url is missing" };
                faults.0.push(format!("source: {what}"));
                None
            }
        }
    }

    fn sq(&mut self, faults: &mut ConfigFaults) -> Option<SqAddress> {
        let authority = self.text("url", faults).and_then(|url| {
            let authority = authority(&url);
            if authority.is_none() {
                faults.0.push("source.url: must be such as http://10.0.0.7:1337".to_owned());
            }
            authority
        });
        let phext = match self.text("phext", faults) {
            Some(name) if safe_phext(&name) => Some(name),
            Some(_) => {
                faults.0.push("source.phext: must be of a-z, A-Z, 0-9, '.', '_', '-'".to_owned());
                None
            }
            None => Some("registry".to_owned()),
        };
        let key_file = self.needed_path("key_file", faults);
        let poll_ms = self.number("poll_ms", POLL_MS, POLL_RANGE_MS, faults);
        let poll = Duration::from_millis(poll_ms);
        Some(SqAddress { authority: authority?, phext: phext?, key_file: key_file?, poll })
    }

    fn hold(&mut self, source: Option<&SourceConfig>, faults: &mut ConfigFaults) -> Duration {
        let sq = matches!(source, Some(SourceConfig::Sq(_)));
        let default = if sq { HOLD_SQ_S } else { HOLD_FILE_S };
        Duration::from_secs(self.number("hold_s", default, HOLD_RANGE_S, faults))
    }

    fn last_good(
        &mut self,
        source: Option<&SourceConfig>,
        faults: &mut ConfigFaults,
    ) -> Option<PathBuf> {
        if self.table.contains_key("last_good") {
            return self.path("last_good", faults);
        }
        Some(match source? {
            SourceConfig::File(path) => last_good::default_path(path),
            SourceConfig::Sq(address) => last_good::default_path(&self.base.join(&address.phext)),
        })
    }

    /// A whole number; the default where there is none, or a faulty one.
    fn number(
        &mut self,
        name: &str,
        default: i64,
        range: RangeInclusive<i64>,
        faults: &mut ConfigFaults,
    ) -> u64 {
        let value = match self.table.remove(name) {
            None => default,
            Some(Value::Integer(value)) if range.contains(&value) => value,
            Some(_) => {
                let (low, high) = range.into_inner();
                faults.0.push(format!("{}: must be within {low} and {high}", self.named(name)));
                default
            }
        };
        value.unsigned_abs()
    }

    fn end(self, faults: &mut ConfigFaults) {
        for name in self.table.keys() {
            faults.0.push(format!("{}: is not known", self.named(name)));
        }
    }
}

/// Host and port of an `http://` URL without a path. SQ speaks no TLS.
fn authority(url: &str) -> Option<String> {
    let uri: hyper::Uri = url.parse().ok()?;
    let plain = uri.scheme_str() == Some("http") && uri.path() == "/" && uri.query().is_none();
    let authority = uri.authority().filter(|a| plain && !a.as_str().contains('@'))?;
    let port = authority.port_u16().unwrap_or(80);
    Some(format!("{}:{port}", authority.host()))
}

fn safe_phext(name: &str) -> bool {
    let safe = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    name.len() <= PHEXT_NAME_MAX && !name.starts_with('.') && name.bytes().all(safe)
}

#[cfg(test)]
mod tests;
