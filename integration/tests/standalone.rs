//! `envoy/standalone.yaml` serves a tenant, and takes over a renewed certificate without a restart.

// This whole file is test code.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use harness::bare_sq::{self, BareSq};
use harness::client::raw::Raw;
use harness::host::certs::Certs;
use harness::host::ports;
use harness::host::sockets::Sockets;
use harness::host::tools;
use harness::parts::envoy::{Envoy, EnvoySetup};
use harness::parts::relay::Relay;
use harness::{Client, EnvoyHost, Http, Listen, Registry, until};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);
const TOC: &str = "/api/v2/toc?p=notes";
const AT: &str = "p=notes&c=1.1.1/1.1.1/1.1.2";

/// A relay, an Envoy and an SQ that always runs.
struct Standalone {
    sq: BareSq,
    envoy: Envoy,
    _relay: Relay,
    _sockets: Sockets,
    https: u16,
    certs: Certs,
    key: String,
    dir: TempDir,
}

impl Standalone {
    async fn start() -> Self {
        tools::build().unwrap();
        let dir = tempfile::Builder::new().prefix("sq-gateway-").tempdir().unwrap();
        let path = dir.path();
        let listen = Listen {
            https: ports::free().unwrap(),
            envoy_metrics: ports::free().unwrap(),
            relay: ports::free().unwrap(),
            // There is no orchestrator.
            orchestrator_metrics: 1,
        };
        let registry =
            Registry::new(tools::workspace_binary("relay").unwrap(), path.join("registry.phext"));
        registry.run("init", &[]).unwrap();
        let key = registry.add("alice", "free").unwrap();
        let certs = Certs::create(&path.join("pki")).unwrap();
        let relay = Relay::new(path, listen.relay, &certs, &registry).unwrap();
        relay.start().await.unwrap();
        let sq = BareSq::start("0.6.0").unwrap();
        let sockets = Sockets::create(path).unwrap();
        let setup = EnvoySetup {
            dir: path,
            node: "standalone-1",
            certs: &certs,
            listen,
            sockets: sockets.folder(),
            workers: 2,
            filter: &tools::filter().unwrap(),
            filter_config: &[],
            clusters: "",
            changes: &[],
            host: EnvoyHost::Process,
            hot_restart: false,
        };
        let envoy = Envoy::standalone(&setup, sq.address().port(), bare_sq::KEY).unwrap();
        envoy.start().await.unwrap();
        Self { sq, envoy, _relay: relay, _sockets: sockets, https: listen.https, certs, key, dir }
    }

    fn client(&self, ca: &Path, http: Http) -> Client {
        Client::new(&format!("https://127.0.0.1:{}", self.https), ca, http).unwrap().key(&self.key)
    }
}

#[tokio::test]
async fn standalone_yaml_serves_a_tenant() {
    let standalone = Standalone::start().await;
    for (http, text) in [(Http::One, "over HTTP/1.1"), (Http::Two, "over HTTP/2")] {
        let alice = standalone.client(&standalone.certs.ca(), http);
        let updated = format!("Updated {} bytes", text.len());
        let response = alice.post(&format!("/api/v2/update?{AT}"), text).await.unwrap();
        response.expect_text(200, &updated).unwrap();
        let response = alice.get(&format!("/api/v2/select?{AT}")).await.unwrap();
        let response = response.expect_text(200, text).unwrap();
        assert_eq!(response.header("content-type"), "text/plain; charset=utf-8");
        assert!(response.header("ratelimit").starts_with("\"burst\""), "{response:?}");
    }
    let stored = String::from_utf8(standalone.sq.stored("notes")).unwrap();
    assert!(stored.ends_with("over HTTP/2"), "{stored:?}");
    // The gate checks requests here as well.
    let alice = standalone.client(&standalone.certs.ca(), Http::One);
    let invalid = alice.get("/api/v2/select?p=notes&c=0.1.1/1.1.1/1.1.1").await.unwrap();
    invalid.expect_status(400).unwrap();
    let unknown = alice.key("pmb-v1-00000000000000000000000000000000");
    unknown.get(TOC).await.unwrap().expect_status(401).unwrap();
}

#[tokio::test]
async fn renewed_certificate_needs_no_restart() {
    let standalone = Standalone::start().await;
    let old_ca = standalone.certs.ca();
    let https = standalone.https;
    let request = format!(
        "GET /api/v2/toc?p=notes HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\r\n",
        standalone.key
    );
    let mut open = Raw::connect(https, &old_ca).await.unwrap();
    assert!(open.request(&request).await.unwrap().starts_with("HTTP/1.1 200"));

    // From another CA, so that a client can tell the old certificate from the new one.
    let renewed = Certs::create(&standalone.dir.path().join("renewed")).unwrap();
    let tls = standalone.envoy.config().with_file_name("tls");
    for (from, to) in
        [(renewed.key("server"), "server.key"), (renewed.cert("server"), "server.pem")]
    {
        // As the README of envoy/ instructs: written beside the old file, then moved over it.
        fs::copy(from, tls.join("new")).unwrap();
        fs::rename(tls.join("new"), tls.join(to)).unwrap();
    }
    let new_ca = renewed.ca();
    until("the new certificate", PATIENCE, || async { Raw::connect(https, &new_ca).await.ok() })
        .await
        .unwrap();
    assert!(Raw::connect(https, &old_ca).await.is_err(), "the old certificate is still served");
    let alice = standalone.client(&new_ca, Http::Two);
    alice.get(TOC).await.unwrap().expect_ok().unwrap();
    // The connection that was open before still works.
    assert!(open.request(&request).await.unwrap().starts_with("HTTP/1.1 200"));
    standalone.envoy.check().unwrap();
}
