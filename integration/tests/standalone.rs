//! `envoy/standalone.yaml` serves, and a renewed certificate is served without a restart.

// All of it is tests.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use harness::bare_sq::{self, BareSq};
use harness::client::raw::Raw;
use harness::host::certs::Certs;
use harness::host::ports;
use harness::host::tools;
use harness::parts::envoy::{Envoy, Setup};
use harness::parts::relay::Relay;
use harness::{Client, EnvoyHost, Http, Listen, OrchestratorPorts, Registry, until};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);
const AT: &str = "p=notes&c=1.1.1/1.1.1/1.1.2";

/// A relay, an Envoy and an SQ that is always there.
struct Standalone {
    sq: BareSq,
    envoy: Envoy,
    _relay: Relay,
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
            envoy_admin: ports::free().unwrap(),
            relay: ports::free().unwrap(),
            // Nobody is there.
            orchestrator: OrchestratorPorts { gate: 1, xds: 1, admin: 1 },
        };
        let registry =
            Registry::new(tools::workspace_binary("relay").unwrap(), path.join("registry.phext"));
        registry.run("init", &[]).unwrap();
        let key = registry.add("alice", "free").unwrap();
        let certs = Certs::create(&path.join("pki")).unwrap();
        let relay = Relay::new(path, listen.relay, &certs, &registry).unwrap();
        relay.start().await.unwrap();
        let sq = BareSq::start("0.6.0").unwrap();
        let setup = Setup {
            dir: path,
            node: "standalone-1",
            certs: &certs,
            listen,
            workers: 2,
            filter: &tools::filter().unwrap(),
            filter_config: &[],
            clusters: "",
            host: EnvoyHost::Process,
            hot_restart: false,
        };
        let envoy = Envoy::standalone(&setup, sq.address().port(), bare_sq::KEY).unwrap();
        envoy.start().await.unwrap();
        Self { sq, envoy, _relay: relay, https: listen.https, certs, key, dir }
    }

    fn client(&self, ca: &Path, http: Http) -> Client {
        Client::new(&format!("https://127.0.0.1:{}", self.https), ca, http).unwrap().key(&self.key)
    }
}

#[tokio::test]
async fn standalone_yaml_serves_a_tenant_whose_sq_is_always_there() {
    let standalone = Standalone::start().await;
    for (http, text) in [(Http::One, "by HTTP/1.1"), (Http::Two, "by HTTP/2")] {
        let alice = standalone.client(&standalone.certs.ca(), http);
        let answer = alice.post(&format!("/api/v2/update?{AT}"), text).await.unwrap();
        assert_eq!((answer.status, answer.text()), (200, format!("Updated {} bytes", text.len())));
        let answer = alice.get(&format!("/api/v2/select?{AT}")).await.unwrap();
        assert_eq!((answer.status, answer.text()), (200, text.to_owned()));
        assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
        assert!(answer.header("ratelimit").starts_with("\"burst\""), "{answer:?}");
    }
    let stored = String::from_utf8(standalone.sq.stored("notes")).unwrap();
    assert!(stored.ends_with("by HTTP/2"), "{stored:?}");
    // What is judged before SQ is judged here too.
    let alice = standalone.client(&standalone.certs.ca(), Http::One);
    let answer = alice.get("/api/v2/select?p=notes&c=0.1.1/1.1.1/1.1.1").await.unwrap();
    assert_eq!(answer.status, 400, "{}", answer.text());
    let nobody = alice.key("pmb-v1-00000000000000000000000000000000");
    assert_eq!(nobody.get("/api/v2/toc?p=notes").await.unwrap().status, 401);
}

#[tokio::test]
async fn a_renewed_certificate_is_served_without_a_restart_and_open_connections_stay() {
    let standalone = Standalone::start().await;
    let (old, https) = (standalone.certs.ca(), standalone.https);
    let request = format!(
        "GET /api/v2/toc?p=notes HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\r\n",
        standalone.key
    );
    let mut open = Raw::connect(https, &old).await.unwrap();
    assert!(open.request(&request).await.unwrap().starts_with("HTTP/1.1 200"));

    // Another CA's, so that a client tells the old certificate from the new one.
    let renewed = Certs::create(&standalone.dir.path().join("renewed")).unwrap();
    let tls = standalone.envoy.config().with_file_name("tls");
    for (from, to) in
        [(renewed.key("server"), "server.key"), (renewed.cert("server"), "server.pem")]
    {
        // As the README of envoy/ says: written beside it, then moved over it.
        fs::copy(from, tls.join("new")).unwrap();
        fs::rename(tls.join("new"), tls.join(to)).unwrap();
    }
    let new = renewed.ca();
    until("the new certificate", PATIENCE, || async { Raw::connect(https, &new).await.ok() })
        .await
        .unwrap();
    assert!(Raw::connect(https, &old).await.is_err(), "the old certificate is still served");
    let answer = standalone.client(&new, Http::Two).get("/api/v2/toc?p=notes").await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(open.request(&request).await.unwrap().starts_with("HTTP/1.1 200"));
    standalone.envoy.check().unwrap();
}
