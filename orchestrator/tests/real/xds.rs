//! The xDS server against a real Envoy, with a real SQ behind it.

use std::fs;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use orchestrator::runtime::{Endpoint, Runtime};
use orchestrator::xds::cluster::{BearerToken, ClusterSpec};
use orchestrator::xds::{self, Publisher, Seq, XdsEvent};
use protocol::Limits;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::process::Home;
use crate::tools::{ask, envoy, eventually, spec, tenant, write};

/// An xDS server that can be stopped.
struct Server {
    publisher: Publisher,
    events: mpsc::Receiver<XdsEvent>,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Server {
    async fn start(address: &str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (publisher, events) = Publisher::new();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(xds::serve(listener, publisher.clone(), async {
            let _ = stopped.await;
        }));
        Self { publisher, events, address, stop, task }
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }

    async fn next(&mut self) -> XdsEvent {
        let event = tokio::time::timeout(Duration::from_secs(20), self.events.recv());
        event.await.expect("an xDS event").unwrap()
    }

    async fn acked(&mut self, wanted: Seq) {
        loop {
            match self.next().await {
                XdsEvent::Acked { seq, .. } if seq >= wanted => return,
                XdsEvent::Nacked { reason, .. } => panic!("refused: {reason}"),
                _ => {}
            }
        }
    }

    async fn connected(&mut self) -> String {
        loop {
            if let XdsEvent::Connected { gateway, .. } = self.next().await {
                return gateway.to_string();
            }
        }
    }
}

/// An Envoy that routes by `x-sq-cluster` and learns its clusters from `xds`.
struct Envoy {
    process: Child,
    dir: TempDir,
}

impl Envoy {
    fn start(xds: SocketAddr, id: &str) -> Self {
        Self::start_with(BOOTSTRAP, xds, id)
    }

    fn start_with(bootstrap: &str, xds: SocketAddr, id: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let bootstrap = bootstrap
            .replace("XDS_PORT", &xds.port().to_string())
            .replace("NODE_ID", id)
            .replace("DIR", &dir.path().display().to_string());
        fs::write(dir.path().join("envoy.yaml"), bootstrap).unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let process = Command::new(envoy())
            .args(["--concurrency", "2", "--disable-hot-restart", "-l", "warning", "-c"])
            .arg(dir.path().join("envoy.yaml"))
            .arg("--admin-address-path")
            .arg(dir.path().join("admin"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { process, dir }
    }

    async fn listener(&self) -> SocketAddr {
        let admin = eventually("Envoy's admin", async || {
            fs::read_to_string(self.dir.path().join("admin")).ok()?.trim().parse().ok()
        })
        .await;
        eventually("Envoy's listener", async || {
            let listeners = http(admin, "/listeners?format=json", "").await;
            let json: serde_json::Value = serde_json::from_str(&listeners.1).ok()?;
            let address = &json["listener_statuses"][0]["local_address"]["socket_address"];
            let port = u16::try_from(address["port_value"].as_u64()?).ok()?;
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            // Listed before its workers accept.
            (http(address, "/", "sq/nobody").await.0 > 0).then_some(address)
        })
        .await
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            eprintln!("Envoy said:\n{log}");
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const BOOTSTRAP: &str = r#"
node: { id: "NODE_ID", cluster: gateway }
admin: { address: { socket_address: { address: 127.0.0.1, port_value: 0 } } }
dynamic_resources:
  ads_config:
    api_type: DELTA_GRPC
    transport_api_version: V3
    grpc_services: [{ envoy_grpc: { cluster_name: xds } }]
  cds_config: { ads: {}, resource_api_version: V3 }
static_resources:
  listeners:
  - name: main
    address: { socket_address: { address: 127.0.0.1, port_value: 0 } }
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: main
          http_filters:
          - name: router
            typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - { match: { prefix: "/" }, route: { cluster_header: x-sq-cluster } }
  clusters:
  - name: xds
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: { http2_protocol_options: {} }
    load_assignment:
      cluster_name: xds
      endpoints: [{ lb_endpoints: [{ endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: XDS_PORT } } } }] }]
"#;

/// A GET with a client's key that must not reach SQ.
async fn http(address: SocketAddr, path: &str, cluster: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer the-clients-own\r\n\
         x-sq-cluster: {cluster}\r\nConnection: close\r\n\r\n"
    );
    let Ok(mut stream) = tokio::net::TcpStream::connect(address).await else {
        return (0, String::new());
    };
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned();
    // Admin answers come chunked: the JSON is what is between the first and the last brace.
    let json = body.find('{').zip(body.rfind('}')).map(|(a, b)| body[a..=b].to_owned());
    (status, json.filter(|_| cluster.is_empty()).unwrap_or(body))
}

const SELECT: &str = "/api/v2/select?p=notes&c=1.1.1/1.1.1/1.1.1";

fn cluster_of(endpoint: &Endpoint, version: &str) -> ClusterSpec {
    let token = BearerToken::new(endpoint.key.expose());
    ClusterSpec::new(endpoint.address, token, &Limits::default(), version.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_tenant_is_routed_to_with_its_own_key_and_a_withdrawn_one_is_not() {
    for version in crate::tools::VERSIONS {
        let home = Home::new();
        let alice = home.runtime().start(spec("alice", version)).await.unwrap().endpoint;
        write(&alice, "through envoy").await;
        let mut server = Server::start("127.0.0.1:0").await;
        server.publisher.ready();
        let envoy = Envoy::start(server.address, "gw-1");
        assert_eq!(server.connected().await, "gw-1");
        let listener = envoy.listener().await;
        assert_eq!(http(listener, SELECT, "sq/alice").await.0, 503);

        let seq = server.publisher.publish(&tenant("alice"), &cluster_of(&alice, version));
        server.acked(seq).await;
        let (status, body) = http(listener, SELECT, "sq/alice").await;
        assert_eq!(status, 200, "{body}");
        assert!(body.contains("through envoy"), "{body}");

        let seq = server.publisher.withdraw(&tenant("alice"));
        server.acked(seq).await;
        assert_eq!(http(listener, SELECT, "sq/alice").await.0, 503);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_server_removes_only_what_is_gone() {
    let home = Home::new();
    let runtime = home.runtime();
    let alice = runtime.start(spec("alice", "0.6.0")).await.unwrap().endpoint;
    let bob = runtime.start(spec("bob", "0.6.0")).await.unwrap().endpoint;
    let mut server = Server::start("127.0.0.1:0").await;
    server.publisher.ready();
    server.publisher.publish(&tenant("alice"), &cluster_of(&alice, "0.6.0"));
    let seq = server.publisher.publish(&tenant("bob"), &cluster_of(&bob, "0.6.0"));
    let envoy = Envoy::start(server.address, "gw-1");
    server.acked(seq).await;
    let listener = envoy.listener().await;
    let both = async || {
        (http(listener, SELECT, "sq/alice").await.0, http(listener, SELECT, "sq/bob").await.0)
    };
    assert_eq!(both().await, (200, 200));

    let address = server.address.to_string();
    server.stop().await;
    assert_eq!(both().await, (200, 200));

    // The new one knows nothing yet: it says nothing, and nothing is lost.
    let mut server = Server::start(&address).await;
    assert_eq!(server.connected().await, "gw-1");
    assert_eq!(both().await, (200, 200));
    let seq = server.publisher.publish(&tenant("alice"), &cluster_of(&alice, "0.6.0"));
    server.publisher.ready();
    server.acked(seq).await;
    assert_eq!(both().await, (200, 503));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_envoys_are_told_the_same_and_acked_each() {
    let home = Home::new();
    let alice = home.runtime().start(spec("alice", "0.6.0")).await.unwrap().endpoint;
    let mut server = Server::start("127.0.0.1:0").await;
    server.publisher.ready();
    let envoys = [Envoy::start(server.address, "gw-1"), Envoy::start(server.address, "gw-2")];
    let mut ids = [server.connected().await, server.connected().await];
    ids.sort();
    assert_eq!(ids, ["gw-1", "gw-2"]);
    let seq = server.publisher.publish(&tenant("alice"), &cluster_of(&alice, "0.6.0"));
    server.acked(seq).await;
    server.acked(seq).await;
    for envoy in &envoys {
        assert_eq!(http(envoy.listener().await, SELECT, "sq/alice").await.0, 200);
    }
    drop(envoys);
    let mut left = 0;
    while left < 2 {
        if matches!(server.next().await, XdsEvent::Disconnected { .. }) {
            left += 1;
        }
    }
    assert_eq!(server.publisher.streams(), 0);
}

/// No cluster of ours is wrong; so an Envoy whose own configuration can't have any.
#[tokio::test(flavor = "multi_thread")]
async fn an_envoy_that_refuses_a_cluster_says_which_and_why() {
    let home = Home::new();
    let alice = home.runtime().start(spec("alice", "0.6.0")).await.unwrap().endpoint;
    let mut server = Server::start("127.0.0.1:0").await;
    server.publisher.ready();
    let at = "{ address: 127.0.0.1, port_value: 0 }";
    let own = format!("  - name: xds\n    upstream_bind_config: {{ source_address: {at} }}\n");
    let bootstrap = BOOTSTRAP.replace("  - name: xds\n", &own);
    let extra = format!("extra_source_addresses: [{{ address: {at} }}]");
    let manager = format!("cluster_manager: {{ upstream_bind_config: {{ {extra} }} }}");
    let envoy = Envoy::start_with(&format!("{manager}{bootstrap}"), server.address, "gw-1");
    assert_eq!(server.connected().await, "gw-1");
    let seq = server.publisher.publish(&tenant("alice"), &cluster_of(&alice, "0.6.0"));
    let (tenants, refused, reason) = loop {
        if let XdsEvent::Nacked { tenants, seq, reason, .. } = server.next().await {
            break (tenants, seq, reason);
        }
    };
    assert_eq!((tenants, refused), (vec![tenant("alice")], seq));
    assert!(reason.contains("sq/alice"), "{reason}");
    // It holds up nobody: what it has refused counts as told.
    server.acked(seq).await;
    assert_eq!(http(envoy.listener().await, SELECT, "sq/alice").await.0, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_envoy_without_a_proper_id_is_turned_away() {
    let mut server = Server::start("127.0.0.1:0").await;
    server.publisher.ready();
    let envoy = Envoy::start(server.address, "Not An Id");
    eventually("the reason is in Envoy's log", async || {
        let log = fs::read_to_string(envoy.dir.path().join("log")).ok()?;
        // As gRPC encodes a message.
        log.contains("is%20not%20a%20valid%20gateway%20id").then_some(())
    })
    .await;
    assert!(server.events.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_at_a_time_reaches_sq_0_5_0_and_all_are_answered() {
    let home = Home::new();
    let alice = home.runtime().start(spec("alice", "0.5.0")).await.unwrap().endpoint;
    write(&alice, "x").await;
    let mut server = Server::start("127.0.0.1:0").await;
    server.publisher.ready();
    let envoy = Envoy::start(server.address, "gw-1");
    let seq = server.publisher.publish(&tenant("alice"), &cluster_of(&alice, "0.5.0"));
    server.acked(seq).await;
    let listener = envoy.listener().await;
    let asked: Vec<_> =
        (0..100).map(|_| tokio::spawn(http(listener, SELECT, "sq/alice"))).collect();
    for answer in asked {
        assert_eq!(answer.await.unwrap().0, 200);
    }
    let direct =
        ask(alice.address, alice.key.expose(), "GET", "select?p=notes&c=1.1.1/1.1.1/1.1.1", "");
    assert_eq!(direct.await.0, 200);
}
