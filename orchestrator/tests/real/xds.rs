//! The xDS server against a real Envoy, with a real SQ behind it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use orchestrator::runtime::{Endpoint, Runtime};
use orchestrator::sockets::{Access, AllowedUsers, PeerListener};
use orchestrator::xds::cluster::{BearerToken, ClusterSpec};
use orchestrator::xds::{self, Publisher, Seq, XdsEvent};
use prometheus_client::metrics::counter::Counter;
use protocol::Limits;
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::process::Installation;
use crate::tools::{
    SCROLL, VERSIONS, envoy, eventually, request, spec, split_response, tenant, write,
};

/// Time-out of a wait for an event.
const PATIENCE: Duration = Duration::from_secs(20);

/// An xDS server, in place of the orchestrator's.
struct Server {
    publisher: Publisher,
    events: mpsc::Receiver<XdsEvent>,
    socket: PathBuf,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Server {
    /// Starts a server in `home` that sends its set of clusters at once.
    async fn start_ready(home: &Installation) -> Self {
        let server = Self::start(home.socket("xds.sock")).await;
        server.publisher.ready();
        server
    }

    async fn start(socket: PathBuf) -> Self {
        let access = Access { users: AllowedUsers::own_and([]), group: None, mode: 0o600 };
        let listener = PeerListener::bind("xds", &socket, access, Counter::default()).await;
        let listener = listener.unwrap();
        let (publisher, events) = Publisher::new();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(xds::serve(listener, publisher.clone(), async {
            let _ = stopped.await;
        }));
        Self { publisher, events, socket, stop, task }
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }

    async fn next(&mut self) -> XdsEvent {
        let event = tokio::time::timeout(PATIENCE, self.events.recv());
        event.await.expect("an xDS event").unwrap()
    }

    /// Waits until one Envoy has acknowledged a change.
    async fn acked(&mut self, wanted: Seq) {
        loop {
            match self.next().await {
                XdsEvent::Acked { seq, .. } if seq >= wanted => return,
                XdsEvent::Nacked { reason, .. } => panic!("rejected: {reason}"),
                _ => {}
            }
        }
    }

    /// Waits for the next Envoy and returns its `node.id`.
    async fn connected(&mut self) -> String {
        loop {
            if let XdsEvent::Connected { gateway, .. } = self.next().await {
                return gateway.to_string();
            }
        }
    }
}

/// An Envoy that routes by `x-sq-cluster` and gets its clusters from the socket `xds`. Dropping it
/// ends it, after a failed test with its log.
struct Envoy {
    process: Child,
    dir: TempDir,
}

impl Envoy {
    fn start(xds: &Path, id: &str) -> Self {
        Self::start_with(BOOTSTRAP, xds, id)
    }

    fn start_with(bootstrap: &str, xds: &Path, id: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let bootstrap = bootstrap
            .replace("XDS_SOCKET", &xds.display().to_string())
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
            let (_, listeners) = http(admin, "/listeners?format=json", "").await;
            let json = json_of(&listeners)?;
            let address = &json["listener_statuses"][0]["local_address"]["socket_address"];
            let port = u16::try_from(address["port_value"].as_u64()?).ok()?;
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            // It is listed before the workers accept connections.
            (http(address, "/", "sq/unknown").await.0 > 0).then_some(address)
        })
        .await
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            eprintln!("Envoy's log:\n{log}");
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
      endpoints: [{ lb_endpoints: [{ endpoint: { address: { pipe: { path: XDS_SOCKET } } } }] }]
"#;

/// Sends a GET with a client's key, which must not reach SQ, and returns status and body.
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
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    split_response(&response)
}

/// The JSON of a chunked body: from the first brace to the last.
fn json_of(body: &str) -> Option<serde_json::Value> {
    let start = body.find('{')?;
    let end = body.rfind('}')?;
    serde_json::from_str(&body[start..=end]).ok()
}

/// Reads the scroll of [`SCROLL`] through Envoy and returns status and body.
async fn select(listener: SocketAddr, cluster: &str) -> (u16, String) {
    http(listener, &format!("/api/v2/select?{SCROLL}"), cluster).await
}

async fn select_status(listener: SocketAddr, cluster: &str) -> u16 {
    select(listener, cluster).await.0
}

fn cluster_of(endpoint: &Endpoint, version: &str) -> ClusterSpec {
    let token = BearerToken::new(endpoint.key.expose());
    ClusterSpec::new(endpoint.address, token, &Limits::default(), version.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn published_tenant_is_routed_until_withdrawn() {
    for version in VERSIONS {
        let home = Installation::new();
        let alice = home.runtime().start(spec("alice", version)).await.unwrap().endpoint;
        write(&alice, "through envoy").await;
        let mut server = Server::start_ready(&home).await;
        let envoy = Envoy::start(&server.socket, "gw-1");
        assert_eq!(server.connected().await, "gw-1");
        let listener = envoy.listener().await;
        assert_eq!(select_status(listener, "sq/alice").await, 503);

        let seq = server.publisher.publish(&tenant("alice"), &cluster_of(&alice, version));
        server.acked(seq).await;
        let (status, body) = select(listener, "sq/alice").await;
        assert_eq!(status, 200, "{body}");
        assert!(body.contains("through envoy"), "{body}");

        let seq = server.publisher.withdraw(&tenant("alice"));
        server.acked(seq).await;
        assert_eq!(select_status(listener, "sq/alice").await, 503);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn restarted_server_removes_only_gone_clusters() {
    let home = Installation::new();
    let runtime = home.runtime();
    let alice = runtime.start(spec("alice", "0.6.0")).await.unwrap().endpoint;
    let bob = runtime.start(spec("bob", "0.6.0")).await.unwrap().endpoint;
    let mut server = Server::start_ready(&home).await;
    server.publisher.publish(&tenant("alice"), &cluster_of(&alice, "0.6.0"));
    let seq = server.publisher.publish(&tenant("bob"), &cluster_of(&bob, "0.6.0"));
    let envoy = Envoy::start(&server.socket, "gw-1");
    server.acked(seq).await;
    let listener = envoy.listener().await;
    let both = async || {
        (select_status(listener, "sq/alice").await, select_status(listener, "sq/bob").await)
    };
    assert_eq!(both().await, (200, 200));

    let socket = server.socket.clone();
    server.stop().await;
    assert_eq!(both().await, (200, 200));

    // The new server knows nothing yet. Until it is ready it sends nothing, so nothing is lost.
    let mut server = Server::start(socket).await;
    assert_eq!(server.connected().await, "gw-1");
    assert_eq!(both().await, (200, 200));
    let seq = server.publisher.publish(&tenant("alice"), &cluster_of(&alice, "0.6.0"));
    server.publisher.ready();
    server.acked(seq).await;
    assert_eq!(both().await, (200, 503));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_envoys_get_and_acknowledge_the_same() {
    let home = Installation::new();
    let alice = home.runtime().start(spec("alice", "0.6.0")).await.unwrap().endpoint;
    let mut server = Server::start_ready(&home).await;
    let envoys = [Envoy::start(&server.socket, "gw-1"), Envoy::start(&server.socket, "gw-2")];
    let mut ids = [server.connected().await, server.connected().await];
    ids.sort();
    assert_eq!(ids, ["gw-1", "gw-2"]);
    let seq = server.publisher.publish(&tenant("alice"), &cluster_of(&alice, "0.6.0"));
    server.acked(seq).await;
    server.acked(seq).await;
    for envoy in &envoys {
        assert_eq!(select_status(envoy.listener().await, "sq/alice").await, 200);
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

/// Our clusters are valid, so this Envoy's own configuration is one that rejects all clusters.
#[tokio::test(flavor = "multi_thread")]
async fn rejected_cluster_is_reported_with_its_reason() {
    let home = Installation::new();
    let alice = home.runtime().start(spec("alice", "0.6.0")).await.unwrap().endpoint;
    let mut server = Server::start_ready(&home).await;
    let at = "{ address: 127.0.0.1, port_value: 0 }";
    let own = format!("  - name: xds\n    upstream_bind_config: {{ source_address: {at} }}\n");
    let bootstrap = BOOTSTRAP.replace("  - name: xds\n", &own);
    let extra = format!("extra_source_addresses: [{{ address: {at} }}]");
    let manager = format!("cluster_manager: {{ upstream_bind_config: {{ {extra} }} }}");
    let envoy = Envoy::start_with(&format!("{manager}{bootstrap}"), &server.socket, "gw-1");
    assert_eq!(server.connected().await, "gw-1");
    let seq = server.publisher.publish(&tenant("alice"), &cluster_of(&alice, "0.6.0"));
    let (tenants, rejected_seq, reason) = loop {
        if let XdsEvent::Nacked { tenants, seq, reason, .. } = server.next().await {
            break (tenants, seq, reason);
        }
    };
    assert_eq!(tenants, [tenant("alice")]);
    assert_eq!(rejected_seq, seq);
    assert!(reason.contains("sq/alice"), "{reason}");
    // Rejected changes count as acknowledged, so that they block nothing.
    server.acked(seq).await;
    assert_eq!(select_status(envoy.listener().await, "sq/alice").await, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_with_an_invalid_id_is_refused() {
    let home = Installation::new();
    let mut server = Server::start_ready(&home).await;
    let envoy = Envoy::start(&server.socket, "Not An Id");
    eventually("the reason is in Envoy's log", async || {
        let log = fs::read_to_string(envoy.dir.path().join("log")).ok()?;
        // gRPC encodes its messages like this.
        log.contains("is%20not%20a%20valid%20gateway%20id").then_some(())
    })
    .await;
    assert!(server.events.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn sq_0_5_0_serves_a_herd_of_requests() {
    let home = Installation::new();
    let alice = home.runtime().start(spec("alice", "0.5.0")).await.unwrap().endpoint;
    write(&alice, "x").await;
    let mut server = Server::start_ready(&home).await;
    let envoy = Envoy::start(&server.socket, "gw-1");
    let seq = server.publisher.publish(&tenant("alice"), &cluster_of(&alice, "0.5.0"));
    server.acked(seq).await;
    let listener = envoy.listener().await;
    let herd: Vec<_> =
        (0..100).map(|_| tokio::spawn(select_status(listener, "sq/alice"))).collect();
    for status in herd {
        assert_eq!(status.await.unwrap(), 200);
    }
    let path = format!("select?{SCROLL}");
    let direct = request(alice.address, alice.key.expose(), "GET", &path, "").await;
    assert_eq!(direct.0, 200);
}
