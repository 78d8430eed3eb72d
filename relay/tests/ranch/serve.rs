//! Verdicts, changes, and the effects of edits.

use std::time::{Duration, Instant};

use protocol::TenantStatus;

use crate::test_ranch::{TestRanch, id, key, registry, until};

#[tokio::test]
async fn a_key_gets_its_tenants_verdict() {
    let ranch = TestRanch::new();
    let (relay, client) = ranch.serve().await;
    let alice = client.verdict(&key(1)).await.unwrap();
    assert_eq!((alice.tenant, alice.tier.as_str()), (id("alice"), "free"));
    assert_eq!(alice.limits, protocol::Limits::default());
    assert_eq!(client.verdict(&key(2)).await.unwrap().limits.price_cents_month, 2000);
    assert_eq!(client.verdict(&key(3)).await, None);
    relay.stop().await;
}

#[tokio::test]
async fn a_save_answers_the_long_poll_in_300_ms() {
    let ranch = TestRanch::new();
    let (relay, client) = ranch.serve().await;
    let mut at = client.current_revision().await;
    assert!(at.reset, "a gateway without a revision must drop its verdicts");
    let settings = ["tier: pro\nstatus: active", "tier: pro\nstatus: suspended"];
    for (turn, by_rename) in [true, false, true, false].into_iter().enumerate() {
        let poller = client.clone();
        let from = at.clone();
        let poll = tokio::spawn(async move { poller.changes(&from, 20_000).await });
        until("the poll waits", || async {
            client.get("/metrics").await.unwrap().body.contains("sq_relay_long_polls 1")
        })
        .await;
        let text = ranch.text().replace(settings[turn % 2], settings[(turn + 1) % 2]);
        let saved = Instant::now();
        if by_rename {
            ranch.save(&text);
        } else {
            std::fs::write(ranch.registry(), &text).unwrap();
        }
        at = poll.await.unwrap();
        println!("save to answer: {:?}", saved.elapsed());
        assert!(saved.elapsed() < Duration::from_millis(300), "{:?}", saved.elapsed());
        assert_eq!((at.reset, at.changed.as_slice()), (false, [key(2).hash()].as_slice()));
    }
    let bob = client.verify(&key(2)).await;
    assert_eq!((bob.revision, bob.epoch), (at.revision, at.epoch));
    assert_eq!(bob.verdict.unwrap().status, TenantStatus::Active);
    relay.stop().await;
}

#[tokio::test]
async fn a_poll_ends_in_time_and_at_stop() {
    let ranch = TestRanch::new();
    let (relay, client) = ranch.serve().await;
    let at = client.current_revision().await;
    for wait_ms in [0, 50] {
        let none = client.changes(&at, wait_ms).await;
        assert_eq!((none.revision, none.reset, none.changed.len()), (at.revision, false, 0));
    }
    let poller = client.clone();
    let poll = tokio::spawn(async move { poller.changes(&at, 60_000).await });
    until("the poll waits", || async {
        client.get("/metrics").await.unwrap().body.contains("sq_relay_long_polls 1")
    })
    .await;
    let start = Instant::now();
    relay.stop().await;
    assert!(poll.await.unwrap().changed.is_empty());
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_bad_registry_leaves_verdicts_unchanged() {
    let ranch = TestRanch::new();
    let (relay, client) = ranch.serve().await;
    let good = ranch.text();
    let at = client.current_revision().await;
    ranch.save(&good.replace("tier: pro\nstatus", "tier: gold\nstatus"));
    until("the fault is reported", || async {
        let ready = client.get("/readyz").await.unwrap();
        ready.status == 200
            && ready.body.contains("\"source\":\"refused\"")
            && ready.body.contains("1.1.1/1.1.1/1.1.3 line 4")
    })
    .await;
    assert!(client.get("/metrics").await.unwrap().body.contains("sq_relay_registry_source_good 0"));
    assert!(client.verdict(&key(2)).await.is_some());
    assert_eq!(client.changes(&at, 0).await.revision, at.revision);

    std::fs::remove_file(ranch.registry()).unwrap();
    until("the loss is reported", || async {
        client.get("/readyz").await.unwrap().body.contains("\"source\":\"gone\"")
    })
    .await;
    assert!(client.verdict(&key(2)).await.is_some());

    std::fs::write(ranch.registry(), "").unwrap();
    until("the empty file is refused", || async {
        client.get("/readyz").await.unwrap().body.contains("\"source\":\"refused\"")
    })
    .await;
    assert!(client.verdict(&key(2)).await.is_some());

    ranch.save(&good);
    until("the registry is good again", || async {
        client.get("/readyz").await.unwrap().body.contains("\"source\":\"good\"")
    })
    .await;
    assert_eq!(client.changes(&at, 0).await.revision, at.revision, "no verdict has changed");
    relay.stop().await;
}

#[tokio::test]
async fn without_a_registry_there_is_no_verdict() {
    let ranch = TestRanch::new();
    ranch.save("nonsense");
    let relay = crate::test_ranch::start(ranch.config()).await;
    let client = ranch.client(&relay);
    until("the fault is reported", || async {
        let ready = client.get("/readyz").await.unwrap();
        ready.status == 503 && ready.body.contains("refused")
    })
    .await;
    assert_eq!(client.get("/healthz").await.unwrap().status, 200);
    let body = format!("{{\"key_sha256\":\"{}\"}}", key(1).hash());
    assert_eq!(client.send("POST", "/v1/verify", &body).await.unwrap().status, 503);
    assert_eq!(client.get("/v1/changes?wait_ms=0").await.unwrap().status, 503);
    ranch.save(&registry(&[("alice", 1, "free")]));
    until("the registry was repaired", || async {
        client.get("/readyz").await.unwrap().status == 200
    })
    .await;
    assert!(client.verdict(&key(1)).await.is_some());
    relay.stop().await;
}

#[tokio::test]
async fn the_end_of_a_key_is_pushed() {
    let ranch = TestRanch::new();
    let end = protocol::calendar::rfc3339(relay::clock::now_s() + 2);
    let digest = key(1).hash().to_string();
    ranch.save(&ranch.text().replace(&digest, &format!("{digest}; expires={end}")));
    let (relay, client) = ranch.serve().await;
    let at = client.current_revision().await;
    let changes = client.changes(&at, 10_000).await;
    assert_eq!(changes.changed, [key(1).hash()]);
    assert_eq!(client.verdict(&key(1)).await, None);
    relay.stop().await;
}

/// Each registry has forty tenants of one tier. A client that sees two tiers at one revision, or
/// misses a key, has seen one half of a registry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verifies_never_see_half_a_registry() {
    let ranch = TestRanch::new();
    let names: Vec<_> = (1..=40).map(|n| format!("t{n}")).collect();
    let texts = ["free", "team"].map(|tier| {
        let tenants: Vec<_> = names.iter().zip(1..).map(|(t, n)| (t.as_str(), n, tier)).collect();
        registry(&tenants)
    });
    ranch.save(&texts[0]);
    let (relay, client) = ranch.serve().await;
    let clients: Vec<_> = (0..4_u8)
        .map(|worker| {
            let client = client.clone();
            tokio::spawn(async move {
                let mut seen = Vec::new();
                for n in 0..150_u8 {
                    let response = client.verify(&key(1 + (n + worker * 10) % 40)).await;
                    let tier = response.verdict.unwrap().tier;
                    seen.push((response.revision, tier));
                }
                seen
            })
        })
        .collect();
    let mut turn = 0;
    while clients.iter().any(|task| !task.is_finished()) {
        turn += 1;
        let text = &texts[turn % 2];
        if turn % 4 < 2 {
            ranch.save(text);
        } else {
            std::fs::write(ranch.registry(), text).unwrap();
        }
        let tier = if turn % 2 == 1 { "team" } else { "free" };
        until("the edit is in use", || async {
            client.verdict(&key(1)).await.is_some_and(|v| v.tier.as_str() == tier)
        })
        .await;
    }
    let mut tiers = std::collections::HashMap::new();
    for task in clients {
        for (revision, tier) in task.await.unwrap() {
            assert_eq!(*tiers.entry(revision).or_insert_with(|| tier.clone()), tier);
        }
    }
    assert!(tiers.len() > 2, "too few reloads: {turn}");
    relay.stop().await;
}

#[tokio::test]
async fn malformed_requests_are_refused() {
    let ranch = TestRanch::new();
    let (relay, client) = ranch.serve().await;
    for (method, path, body, status) in [
        ("POST", "/v1/verify", "", 400),
        ("POST", "/v1/verify", "{\"key_sha256\":\"abc\"}", 400),
        ("POST", "/v1/verify", &"x".repeat(5000), 413),
        ("GET", "/v1/verify", "", 405),
        ("GET", "/v1/changes?since=many", "", 400),
        ("GET", "/v1/tenants", "", 404),
    ] {
        let response = client.send(method, path, body).await.unwrap();
        assert_eq!(response.status, status, "{method} {path}: {}", response.body);
    }
    let unknown = client.verdict(&key(9)).await;
    assert_eq!(unknown, None);
    let metrics = client.get("/metrics").await.unwrap().body;
    assert!(metrics.contains("sq_relay_verifies_total{outcome=\"unknown\"} 1"), "{metrics}");
    assert!(metrics.contains("sq_relay_registry_tenants 2"), "{metrics}");
    relay.stop().await;
}
