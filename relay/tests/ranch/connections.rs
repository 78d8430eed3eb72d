//! Limits on the number and the duration of connections.

use std::time::Duration;

use protocol::ChangesResponse;
use rustls::HandshakeKind;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::client::{Client, Connection};
use crate::test_ranch::{Ca, Running, TestRanch, key, start, until};

/// Starts a relay with unusual limits.
async fn start_limited(
    ranch: &TestRanch,
    max: usize,
    idle_ms: u64,
    age_ms: u64,
) -> (Running, Client) {
    let mut config = ranch.config();
    config.connections.max = max;
    config.connections.idle = Duration::from_millis(idle_ms);
    config.connections.age = Duration::from_millis(age_ms);
    let relay = start(config).await;
    let client = ranch.client(&relay);
    until("ready", || async {
        client.get("/readyz").await.is_ok_and(|response| response.status == 200)
    })
    .await;
    (relay, client)
}

const LONG_MS: u64 = 3_600_000;

async fn wait_until_closed(connection: &Connection) {
    until("the connection is closed", async || connection.is_closed()).await;
}

#[tokio::test]
async fn new_certificates_end_connections_after_their_response() {
    let ranch = TestRanch::new();
    let (relay, client) = ranch.serve().await;
    let at = client.current_revision().await;
    let mut idle = client.open().await.unwrap();
    assert_eq!(idle.get("/healthz").await.unwrap().status, 200);
    let mut polling = client.open().await.unwrap();
    let poll = tokio::spawn(async move {
        let path = format!("/v1/changes?epoch={}&since={}&wait_ms=4000", at.epoch.0, at.revision);
        let response = polling.get(&path).await.unwrap();
        (response, polling)
    });
    until("the poll waits", || async {
        client.get("/metrics").await.unwrap().body.contains("sq_relay_long_polls 1")
    })
    .await;
    ranch.trust(&Ca::new());
    wait_until_closed(&idle).await;
    let (response, polling) = poll.await.unwrap();
    let response: ChangesResponse = serde_json::from_str(&response.body).unwrap();
    assert!(response.changed.is_empty());
    wait_until_closed(&polling).await;
    assert!(
        client.open().await.unwrap().get("/healthz").await.is_err(),
        "the old certificate is refused"
    );
    relay.stop().await;
}

#[tokio::test]
async fn silent_connections_do_not_delay_a_gateway() {
    // Envoy gives up on a connection to the relay after this time.
    const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
    let ranch = TestRanch::new();
    let (relay, client) = ranch.serve().await;
    let mut silent = Vec::new();
    for _ in 0..600 {
        silent.push(TcpStream::connect(relay.address).await.unwrap());
    }
    let mut gateway = timeout(CONNECT_TIMEOUT, client.open()).await.expect("in time").unwrap();
    assert_eq!(gateway.get("/healthz").await.unwrap().status, 200);
    let metrics = gateway.get("/metrics").await.unwrap().body;
    let displaced = metrics
        .lines()
        .find_map(|line| line.strip_prefix("sq_relay_tls_handshakes_displaced_total "))
        .and_then(|value| value.parse::<u32>().ok());
    assert!(displaced.is_some_and(|count| (300..600).contains(&count)), "{metrics}");
    drop(silent);
    relay.stop().await;
}

#[tokio::test]
async fn old_and_idle_connections_are_closed() {
    let ranch = TestRanch::new();
    for (idle_ms, age_ms) in [(300, LONG_MS), (LONG_MS, 300)] {
        let (relay, client) = start_limited(&ranch, 8, idle_ms, age_ms).await;
        let mut connection = client.open().await.unwrap();
        assert_eq!(connection.get("/healthz").await.unwrap().status, 200);
        wait_until_closed(&connection).await;
        assert!(client.verdict(&key(1)).await.is_some(), "a new connection works");
        relay.stop().await;
    }
}

/// A resumed session would keep an expired certificate in use.
#[tokio::test]
async fn every_connection_shows_its_certificate() {
    let ranch = TestRanch::new();
    let (relay, client) = ranch.serve().await;
    for _ in 0..3 {
        let mut connection = client.open().await.unwrap();
        assert_eq!(connection.get("/healthz").await.unwrap().status, 200);
        assert_eq!(connection.handshake, Some(HandshakeKind::Full));
    }
    relay.stop().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed() {
    let ranch = TestRanch::new();
    let (relay, client) = start_limited(&ranch, 2, LONG_MS, LONG_MS).await;
    let mut open = Vec::new();
    until("two connections are open", async || {
        if let Ok(mut connection) = client.open().await
            && connection.get("/healthz").await.is_ok()
        {
            open.push(connection);
        }
        open.len() == 2
    })
    .await;
    assert!(client.get("/healthz").await.is_err());
    let metrics = open[0].get("/metrics").await.unwrap().body;
    assert!(metrics.contains("sq_relay_connections 2\n"), "{metrics}");
    let refused = metrics.lines().find(|l| l.starts_with("sq_relay_connections_refused_total "));
    assert_ne!(refused, Some("sq_relay_connections_refused_total 0"));
    drop(open.pop());
    until("a connection is free again", async || client.get("/healthz").await.is_ok()).await;
    relay.stop().await;
}

#[tokio::test]
async fn clients_without_certificate_use_no_connection() {
    let ranch = TestRanch::new();
    let (relay, client) = start_limited(&ranch, 1, LONG_MS, LONG_MS).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(relay.address).await.unwrap());
    }
    until("the gateway is served", async || client.get("/healthz").await.is_ok()).await;
    relay.stop().await;
}

#[tokio::test]
async fn only_named_gateways_are_served() {
    let ranch = TestRanch::new();
    let mut config = ranch.config();
    config.clients = vec!["gateway-2".try_into().unwrap(), "gateway-3".try_into().unwrap()];
    let relay = start(config).await;
    for (name, is_served) in [("gateway-1", false), ("gateway-2", true), ("gateway-3", true)] {
        let client = Client::new(relay.address, &ranch.ca.pem, Some(&ranch.ca.sign(name)));
        assert_eq!(client.get("/healthz").await.is_ok(), is_served, "{name}");
    }
    relay.stop().await;
}
