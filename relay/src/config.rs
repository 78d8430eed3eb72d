//! The settings of the relay, `relay.toml`.
//!
//! [`raw`] describes what may be written; [`Config`] is what the relay works with. All faults of a
//! file are reported at once, and a faulty file is never used in part. `relay.example.toml` shows
//! each setting.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls_pki_types::ServerName;
use settings::{Faults, Text, Tree};

use self::raw::{LISTEN, RawConfig, RawSource, RawTls};
use crate::serve::connection::ConnectionLimits;
use crate::serve::tls::TlsFiles;
use crate::source::last_good;
use crate::source::sq::SqAddress;

mod raw;

/// Default of `source.hold_time` for a file: longer than a copy over a network stalls.
const HOLD_TIME_FILE: Duration = Duration::from_secs(5);
/// Default of `source.hold_time` for an SQ server. A phext that was truncated because SQ was killed
/// stays truncated: this is the time for its operator to notice. Removing many keys at once on
/// purpose is rare there.
const HOLD_TIME_SQ: Duration = Duration::from_mins(10);
/// Longest name that SQ safely stores as a file.
const PHEXT_NAME_MAX_BYTES: usize = 200;

/// The relay's settings, checked. All paths are resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Address for gateways.
    pub listen: SocketAddr,
    /// Certificates and key.
    pub tls: TlsFiles,
    /// Names of the gateways that are served; empty if every certificate of the CAs is accepted.
    pub clients: Vec<ServerName<'static>>,
    /// Bounds on the connections of all gateways.
    pub connections: ConnectionLimits,
    /// Place of the registry.
    pub source: SourceConfig,
    /// Time for which a text that looks truncated must stay unchanged before it is accepted.
    pub hold: Duration,
    /// Path of the last good copy of the registry.
    pub last_good: PathBuf,
}

/// Place of the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceConfig {
    /// A file of the host.
    File(PathBuf),
    /// A phext in an SQ server.
    Sq(SqAddress),
}

impl Config {
    /// Reads the settings file at `path`. Relative paths in it start at its folder.
    pub fn load(path: &Path) -> Result<Self, Faults> {
        let base = path.parent().unwrap_or(Path::new(""));
        settings::toml_file::load(path)
            .and_then(|tree| Self::read(&tree, base))
            .map_err(|faults| faults.in_file(path.display()))
    }

    /// Reads settings from TOML. Relative paths in it start at `base`.
    pub fn parse(text: &str, base: &Path) -> Result<Self, Faults> {
        Self::read(&settings::toml_file::parse(text)?, base)
    }

    fn read(tree: &Tree, base: &Path) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let raw: RawConfig = settings::read(tree, &mut faults);
        let listen = listen_address(raw.listen, &mut faults);
        let clients = client_names(raw.tls.clients.as_deref(), &mut faults);
        let tls = tls_files(raw.tls, base, &mut faults);
        let connections = ConnectionLimits {
            max: raw.connections.max.as_usize(),
            idle: raw.connections.idle_timeout.get(),
            age: raw.connections.max_age.get(),
        };
        let hold = raw.source.hold_time;
        let last_good_setting = raw.source.last_good.clone();
        let source = source(raw.source, base, &mut faults);
        // Each `None` has left a fault.
        let (Some(listen), Some(tls), Some(source)) = (listen, tls, source) else {
            return Err(faults);
        };
        let hold_default = match source {
            SourceConfig::File(_) => HOLD_TIME_FILE,
            SourceConfig::Sq(_) => HOLD_TIME_SQ,
        };
        let last_good_default = match &source {
            SourceConfig::File(path) => last_good::default_path(path),
            SourceConfig::Sq(address) => last_good::default_path(&base.join(&address.phext)),
        };
        let config = Self {
            listen,
            tls,
            clients,
            connections,
            source,
            hold: hold.map_or(hold_default, settings::Duration::get),
            last_good: last_good_setting
                .map_or(last_good_default, |path| base.join(path.into_string())),
        };
        faults.or_config(config)
    }
}

fn listen_address(setting: Option<Text>, faults: &mut Faults) -> Option<SocketAddr> {
    let text = setting.map_or_else(|| LISTEN.to_owned(), Text::into_string);
    let address = text.parse().ok();
    if address.is_none() {
        let message = "is not an address: write one with its port, such as";
        faults.push("listen", format_args!("`{text}` {message} `{LISTEN}`"));
    }
    address
}

fn tls_files(raw: RawTls, base: &Path, faults: &mut Faults) -> Option<TlsFiles> {
    let cert = required_path("tls.cert", raw.cert, base, faults);
    let key = required_path("tls.key", raw.key, base, faults);
    let client_ca = required_path("tls.client_ca", raw.client_ca, base, faults);
    Some(TlsFiles { cert: cert?, key: key?, client_ca: client_ca? })
}

/// The path of a key without default. A fault in its value has been reported already.
fn required_path(
    key: &str,
    setting: Option<Text>,
    base: &Path,
    faults: &mut Faults,
) -> Option<PathBuf> {
    if setting.is_none() && !faults.contains(key) {
        faults.push(key, "missing: write the path of a file");
    }
    setting.map(|path| base.join(path.into_string()))
}

fn client_names(setting: Option<&[String]>, faults: &mut Faults) -> Vec<ServerName<'static>> {
    let mut names = Vec::new();
    if setting.is_some_and(<[String]>::is_empty) {
        let message = "empty: write names such as `[\"gateway-1\"]`, or leave the key out";
        faults.push("tls.clients", message);
    }
    for text in setting.unwrap_or_default() {
        match ServerName::try_from(text.clone()) {
            Ok(name) => names.push(name),
            Err(_) => faults.push("tls.clients", format_args!("`{text}` is not a DNS name")),
        }
    }
    names
}

fn source(raw: RawSource, base: &Path, faults: &mut Faults) -> Option<SourceConfig> {
    match (&raw.file, &raw.url) {
        (Some(file), None) => {
            report_unused(&raw, faults);
            Some(SourceConfig::File(base.join(file.as_str())))
        }
        (None, Some(_)) => sq_address(raw, base, faults).map(SourceConfig::Sq),
        (Some(_), Some(_)) => {
            faults.push("source", "`file` and `url` exclude each other: keep one of them");
            None
        }
        (None, None) => {
            if !faults.contains("source.file") && !faults.contains("source.url") {
                faults.push("source", "missing: write `file` or `url`");
            }
            None
        }
    }
}

/// Reports the keys that belong to `url`, as they have no effect on a file.
fn report_unused(raw: &RawSource, faults: &mut Faults) {
    let unused = [
        ("source.phext", raw.phext.is_some()),
        ("source.key_file", raw.key_file.is_some()),
        ("source.poll_interval", raw.poll_interval.is_some()),
    ];
    for (key, is_written) in unused {
        if is_written {
            faults.push(key, "without effect beside `file`: it belongs to `url`");
        }
    }
}

fn sq_address(raw: RawSource, base: &Path, faults: &mut Faults) -> Option<SqAddress> {
    let poll = raw.poll_interval();
    let url = raw.url.map_or_else(String::new, Text::into_string);
    let authority = authority(&url);
    if authority.is_none() {
        let message = "is not the address of an SQ server: write one such as";
        faults.push("source.url", format_args!("`{url}` {message} `http://10.0.0.7:1337`"));
    }
    let phext = raw.phext.map_or_else(|| "registry".to_owned(), Text::into_string);
    let is_safe = is_safe_phext_name(&phext);
    if !is_safe {
        let message = "is not a name: write a-z, A-Z, 0-9, `.`, `_` and `-`, the first not a dot";
        faults.push("source.phext", format_args!("`{phext}` {message}"));
    }
    let key_file = required_path("source.key_file", raw.key_file, base, faults)?;
    let authority = authority?;
    is_safe.then_some(SqAddress { authority, phext, key_file, poll })
}

/// Host and port of an `http://` URL without a path; SQ does not speak TLS.
fn authority(url: &str) -> Option<String> {
    let uri: hyper::Uri = url.parse().ok()?;
    let is_plain = uri.scheme_str() == Some("http") && uri.path() == "/" && uri.query().is_none();
    let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'))?;
    let port = authority.port_u16().unwrap_or(80);
    is_plain.then(|| format!("{}:{port}", authority.host()))
}

fn is_safe_phext_name(name: &str) -> bool {
    let is_safe = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    name.len() <= PHEXT_NAME_MAX_BYTES && !name.starts_with('.') && name.bytes().all(is_safe)
}

#[cfg(test)]
mod tests;
