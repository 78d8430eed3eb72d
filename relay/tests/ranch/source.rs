//! The registry in a real SQ server.

use std::time::Duration;

use relay::config::SourceConfig;

use crate::sq::Sq;
use crate::test_ranch::{TestRanch, id, key, registry, start, until};

#[tokio::test]
async fn the_registry_in_sq_0_6_0_is_followed() {
    check_followed("0.6.0").await;
}

#[tokio::test]
async fn the_registry_in_sq_0_5_0_is_followed() {
    check_followed("0.5.0").await;
}

/// Follows edits in SQ, and keeps answering while SQ is gone.
async fn check_followed(version: &str) {
    let ranch = TestRanch::new();
    let sq = Sq::new(&ranch, version).await;
    sq.write(&registry(&[("alice", 1, "free"), ("bob", 2, "pro")])).await;
    let relay = start(sq.config(&ranch)).await;
    let client = ranch.client(&relay);
    until("ready", || async { client.get("/readyz").await.unwrap().status == 200 }).await;
    assert_eq!(client.verdict(&key(1)).await.unwrap().tenant, id("alice"));

    let at = client.current_revision().await;
    let digest = key(2).hash();
    let bob = format!("tenant: bob\nkey-sha256: {digest}\ntier: team\n");
    sq.update("1.1.1/1.1.1/1.1.3", &bob).await;
    assert_eq!(client.changes(&at, 10_000).await.changed, [digest]);

    sq.update("1.1.1/1.1.1/1.1.3", "tenant: bob\ntier: gold\n").await;
    until("the bad edit is reported", || async {
        client.get("/readyz").await.unwrap().body.contains("1.1.1/1.1.1/1.1.3 line 2")
    })
    .await;
    let port = sq.kill();
    until("the loss is reported", || async {
        client.get("/readyz").await.unwrap().body.contains("\"source\":\"gone\"")
    })
    .await;
    assert_eq!(client.verdict(&key(2)).await.unwrap().tier.as_str(), "team");

    let sq = Sq::start(&ranch, version, port).await;
    sq.update("1.1.1/1.1.1/1.1.3", "").await;
    until("the tenant is gone", || async { client.verdict(&key(2)).await.is_none() }).await;
    relay.stop().await;
}

/// Polls that are shorter than a tick must not keep the tick from coming.
#[tokio::test]
async fn a_key_ends_in_time_despite_frequent_polls() {
    let ranch = TestRanch::new();
    let sq = Sq::new(&ranch, "0.6.0").await;
    let end_s = relay::clock::now_s() + 3;
    let digest = key(1).hash().to_string();
    let ending = format!("{digest}; expires={}", protocol::calendar::rfc3339(end_s));
    sq.write(&registry(&[("alice", 1, "free"), ("bob", 2, "pro")]).replace(&digest, &ending)).await;
    let mut config = sq.config(&ranch);
    if let SourceConfig::Sq(address) = &mut config.source {
        address.poll = Duration::from_millis(20);
    }
    let relay = start(config).await;
    let client = ranch.client(&relay);
    until("ready", || async { client.get("/readyz").await.unwrap().status == 200 }).await;
    assert!(client.verdict(&key(1)).await.is_some(), "the key ends later");
    until("the key has ended", || async { client.verdict(&key(1)).await.is_none() }).await;
    assert!(client.verdict(&key(2)).await.is_some());
    relay.stop().await;
}

#[tokio::test]
async fn a_wrong_key_for_sq_is_reported() {
    let ranch = TestRanch::new();
    let sq = Sq::new(&ranch, "0.6.0").await;
    std::fs::write(ranch.path("sq.key"), "pmb-v1-00000000000000000000000000000000").unwrap();
    let relay = start(sq.config(&ranch)).await;
    let client = ranch.client(&relay);
    until("the wrong key is reported", || async {
        let ready = client.get("/readyz").await.unwrap();
        ready.status == 503 && ready.body.contains("status 401")
    })
    .await;
    relay.stop().await;
}
