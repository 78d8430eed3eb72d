//! Files of an Envoy: what an operator has in `/etc/sq-gateway`, and the operators' own
//! `bootstrap.yaml` or `standalone.yaml`.
//!
//! A file is loaded as it stands. The literals that differ for a test are replaced, and each must
//! be found, so that the operators' files and this harness can't drift apart unnoticed.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::EnvoySetup;
use crate::host::files;
use crate::host::sockets;
use crate::host::tools;

/// The folder that the operators' files expect.
const ETC: &str = "/etc/sq-gateway";

/// Folder of the orchestrator's sockets in the operators' files.
const ORCHESTRATOR_SOCKETS: &str = "/run/sq-gateway";

/// Folder of Envoy's admin socket in the operators' files.
const ENVOY_SOCKETS: &str = "/run/sq-envoy";

/// The first field of the filter's JSON config, before which others are inserted.
const FIRST_FIELD: &str = "\"orchestrator_cluster\"";

/// Copies certificates, private keys, the filter and the SDS files into `etc`.
pub(super) fn write_etc(etc: &Path, setup: &EnvoySetup<'_>) -> Result<()> {
    let tls = etc.join("tls");
    files::create_private_dir(&tls)?;
    fs::create_dir_all(etc.join("sds"))?;
    let certs = setup.certs;
    for (from, to) in [
        (certs.cert("server"), "server.pem"),
        (certs.key("server"), "server.key"),
        (certs.ca(), "relay-ca.pem"),
        (certs.cert("gateway"), "relay-client.pem"),
        (certs.key("gateway"), "relay-client.key"),
    ] {
        // A copy has the mode of its source: private keys stay private.
        fs::copy(&from, tls.join(to)).with_context(|| from.display().to_string())?;
    }
    fs::copy(setup.filter, etc.join("filter.wasm"))
        .with_context(|| setup.filter.display().to_string())?;
    let etc_text = etc.display().to_string();
    for file in fs::read_dir(tools::root().join("envoy/sds"))? {
        let file = file?;
        let text = replace_all(&fs::read_to_string(file.path())?, &[(ETC, &etc_text)])?;
        fs::write(etc.join("sds").join(file.file_name()), text)?;
    }
    Ok(())
}

/// The text of `bootstrap.yaml` for this setup.
pub(super) fn bootstrap(etc: &Path, setup: &EnvoySetup<'_>) -> Result<String> {
    let listen = setup.listen;
    let mut text = replace_all(
        &fs::read_to_string(tools::root().join("envoy/bootstrap.yaml"))?,
        &[
            (ETC, &etc.display().to_string()),
            ("port_value: 8443", &port_value(listen.https)),
            (ORCHESTRATOR_SOCKETS, &setup.sockets.display().to_string()),
            (ENVOY_SOCKETS, &envoy_sockets(setup)),
            ("port_value: 9901", &port_value(listen.envoy_metrics)),
            ("port_value: 7443", &port_value(listen.relay)),
            ("id: gateway-1", &format!("id: {}", setup.node)),
        ],
    )?;
    text = replace_all(&text, setup.changes)?;
    for (name, value) in setup.filter_config {
        text = insert_filter_field(&text, name, value)?;
    }
    Ok(text + setup.clusters)
}

/// The text of `standalone.yaml` for this setup, with alice's SQ on `sq_port`.
pub(super) fn standalone(etc: &Path, setup: &EnvoySetup<'_>, sq_port: u16) -> Result<String> {
    let listen = setup.listen;
    replace_all(
        &fs::read_to_string(tools::root().join("envoy/standalone.yaml"))?,
        &[
            (ETC, &etc.display().to_string()),
            ("port_value: 8443", &port_value(listen.https)),
            (ENVOY_SOCKETS, &envoy_sockets(setup)),
            ("port_value: 9901", &port_value(listen.envoy_metrics)),
            ("port_value: 7443", &port_value(listen.relay)),
            ("port_value: 1337", &port_value(sq_port)),
        ],
    )
}

fn envoy_sockets(setup: &EnvoySetup<'_>) -> String {
    sockets::envoy(setup.sockets, setup.node).display().to_string()
}

fn port_value(port: u16) -> String {
    format!("port_value: {port}")
}

/// Replaces each literal everywhere; each must be found.
fn replace_all(text: &str, literals: &[(&str, &str)]) -> Result<String> {
    let mut text = text.to_owned();
    // First by placeholders: a port that is put in could equal the next literal.
    for (number, (from, _)) in literals.iter().enumerate() {
        ensure!(text.contains(from), "{from:?} is no longer in the file");
        text = text.replace(from, &placeholder(number));
    }
    for (number, (_, to)) in literals.iter().enumerate() {
        text = text.replace(&placeholder(number), to);
    }
    Ok(text)
}

fn placeholder(number: usize) -> String {
    format!("\u{0}{number}\u{0}")
}

/// Adds a field to the filter's JSON config.
fn insert_filter_field(text: &str, name: &str, value: &str) -> Result<String> {
    if !text.contains(FIRST_FIELD) {
        bail!("{FIRST_FIELD} is no longer in the bootstrap");
    }
    Ok(text.replace(FIRST_FIELD, &format!("\"{name}\": {value}, {FIRST_FIELD}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::certs::Certs;
    use crate::options::{EnvoyHost, Listen};

    #[test]
    fn missing_literal_is_an_error() {
        assert!(replace_all("port_value: 1", &[("port_value: 2", "x")]).is_err());
    }

    #[test]
    fn replacement_is_not_replaced_again() {
        let text = replace_all("a b", &[("a", "b"), ("b", "c")]).unwrap();
        assert_eq!(text, "b c");
    }

    #[test]
    fn copied_private_keys_stay_private() {
        let dir = tempfile::tempdir().unwrap();
        let certs = Certs::create(&dir.path().join("pki")).unwrap();
        let filter = dir.path().join("filter.wasm");
        fs::write(&filter, b"").unwrap();
        let setup = EnvoySetup {
            dir: dir.path(),
            node: "gateway-1",
            certs: &certs,
            listen: Listen { https: 1, envoy_metrics: 1, relay: 1, orchestrator_metrics: 1 },
            sockets: dir.path(),
            workers: 1,
            filter: &filter,
            filter_config: &[],
            clusters: "",
            changes: &[],
            host: EnvoyHost::Process,
            hot_restart: false,
        };
        let etc = dir.path().join("envoy");
        write_etc(&etc, &setup).unwrap();
        for name in ["server.key", "relay-client.key"] {
            assert_eq!(files::mode(&etc.join("tls").join(name)), 0o600, "{name}");
        }
    }

    /// The lines from the first HTTP filter to the clusters, without comments and the filter's own
    /// config.
    fn filter_chain(file: &str) -> Vec<String> {
        let text = fs::read_to_string(tools::root().join("envoy").join(file)).unwrap();
        let (_, text) = text.split_once("http_filters:").unwrap();
        let (text, _) = text.split_once("\n  clusters:").unwrap();
        let (before, rest) = text.split_once("value: |").unwrap();
        let (_, after) = rest.split_once('}').unwrap();
        let without_comment = |line: &str| {
            let code = line.split_once(" #").map_or(line, |(code, _)| code);
            code.trim_end().to_owned()
        };
        let lines = before.lines().chain(after.lines()).map(without_comment);
        lines.filter(|line| !line.is_empty()).collect()
    }

    #[test]
    fn standalone_chain_differs_only_in_retries() {
        let mut bootstrap = filter_chain("bootstrap.yaml");
        bootstrap.retain(|line| !line.contains("retriable_status_codes:"));
        for line in &mut bootstrap {
            *line =
                line.replace(",retriable-status-codes", "").replace("retries: 100", "retries: 12");
        }
        assert_eq!(filter_chain("standalone.yaml"), bootstrap);
    }
}
