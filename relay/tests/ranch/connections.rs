//! How many connections there may be, and when they end.

use std::time::Duration;

use protocol::ChangesResponse;
use rustls::HandshakeKind;
use tokio::net::TcpStream;

use crate::client::{Client, Open};
use crate::world::{Ca, Running, World, key, start, until};

/// A relay with other limits than usual.
async fn limited(world: &World, max: usize, idle_ms: u64, age_ms: u64) -> (Running, Client) {
    let mut config = world.config();
    config.connections.max = max;
    config.connections.idle = Duration::from_millis(idle_ms);
    config.connections.age = Duration::from_millis(age_ms);
    let relay = start(config).await;
    let client = world.client(&relay);
    until("ready", || async { client.get("/readyz").await.is_ok_and(|a| a.status == 200) }).await;
    (relay, client)
}

const LONG_MS: u64 = 3_600_000;

async fn ended(open: &Open) {
    until("the connection ends", async || open.ended()).await;
}

#[tokio::test]
async fn other_certificates_end_open_connections_after_the_answer_under_way() {
    let world = World::new();
    let (relay, client) = world.serve().await;
    let at = client.beginning().await;
    let mut idle = client.open().await.unwrap();
    assert_eq!(idle.get("/healthz").await.unwrap().status, 200);
    let mut polling = client.open().await.unwrap();
    let poll = tokio::spawn(async move {
        let path = format!("/v1/changes?epoch={}&since={}&wait_ms=4000", at.epoch.0, at.revision);
        let answer = polling.get(&path).await.unwrap();
        (answer, polling)
    });
    until("the poll waits", || async {
        client.get("/metrics").await.unwrap().body.contains("sq_relay_long_polls 1")
    })
    .await;
    world.trust(&Ca::new());
    ended(&idle).await;
    let (answer, polling) = poll.await.unwrap();
    let answer: ChangesResponse = serde_json::from_str(&answer.body).unwrap();
    assert!(answer.changed.is_empty());
    ended(&polling).await;
    assert!(client.open().await.unwrap().get("/healthz").await.is_err(), "and nobody comes back");
    relay.stop().await;
}

#[tokio::test]
async fn a_connection_ends_when_it_is_old_or_idle() {
    let world = World::new();
    for (idle_ms, age_ms) in [(300, LONG_MS), (LONG_MS, 300)] {
        let (relay, client) = limited(&world, 8, idle_ms, age_ms).await;
        let mut open = client.open().await.unwrap();
        assert_eq!(open.get("/healthz").await.unwrap().status, 200);
        ended(&open).await;
        assert!(client.verdict(&key(1)).await.is_some(), "another one is as good");
        relay.stop().await;
    }
}

/// A session that is resumed would go on with a certificate that has ended.
#[tokio::test]
async fn each_connection_shows_its_certificate() {
    let world = World::new();
    let (relay, client) = world.serve().await;
    for _ in 0..3 {
        let mut open = client.open().await.unwrap();
        assert_eq!(open.get("/healthz").await.unwrap().status, 200);
        assert_eq!(open.handshake, Some(HandshakeKind::Full));
    }
    relay.stop().await;
}

#[tokio::test]
async fn a_connection_beyond_the_most_is_closed_and_counted() {
    let world = World::new();
    let (relay, client) = limited(&world, 2, LONG_MS, LONG_MS).await;
    let mut open = Vec::new();
    until("both can be opened", async || {
        if let Ok(mut one) = client.open().await
            && one.get("/healthz").await.is_ok()
        {
            open.push(one);
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
    until("there is room again", async || client.get("/healthz").await.is_ok()).await;
    relay.stop().await;
}

#[tokio::test]
async fn who_shows_no_certificate_takes_no_room() {
    let world = World::new();
    let (relay, client) = limited(&world, 1, LONG_MS, LONG_MS).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(relay.address).await.unwrap());
    }
    until("there is room", async || client.get("/healthz").await.is_ok()).await;
    relay.stop().await;
}

#[tokio::test]
async fn only_gateways_that_are_named_are_answered() {
    let world = World::new();
    let mut config = world.config();
    config.clients = vec!["gateway-2".try_into().unwrap(), "gateway-3".try_into().unwrap()];
    let relay = start(config).await;
    for (name, answered) in [("gateway-1", false), ("gateway-2", true), ("gateway-3", true)] {
        let client = Client::new(relay.address, &world.ca.pem, Some(&world.ca.sign(name)));
        assert_eq!(client.get("/healthz").await.is_ok(), answered, "{name}");
    }
    relay.stop().await;
}
