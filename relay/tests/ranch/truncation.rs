//! Truncated registries, and the last good copy for the next start.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::sq::Sq;
use crate::test_ranch::{TestRanch, id, key, registry, start, until};

/// More tenants than may disappear at once.
const TENANTS: u8 = 12;

fn names() -> Vec<String> {
    (1..=TENANTS).map(|n| format!("t{n}")).collect()
}

/// A registry of [`TENANTS`] tenants.
fn full_registry() -> String {
    let names = names();
    let tenants: Vec<_> = names.iter().zip(1..).map(|(t, n)| (t.as_str(), n, "free")).collect();
    registry(&tenants)
}

/// Truncates a registry where the scroll of its fourth tenant ends, so that the rest is valid.
fn truncated(text: &str) -> &str {
    &text[..text.find("\ntenant: t5\n").unwrap()]
}

/// Returns true if `/readyz` reports this health of the source.
async fn source_is(client: &Client, status: &str) -> bool {
    client.get("/readyz").await.unwrap().body.contains(&format!("\"source\":\"{status}\""))
}

async fn assert_all_verified(client: &Client) {
    for n in 1..=TENANTS {
        assert_eq!(client.verdict(&key(n)).await.unwrap().tenant, id(&format!("t{n}")));
    }
}

#[tokio::test]
async fn a_stalled_copy_revokes_no_key() {
    let ranch = TestRanch::new();
    let text = full_registry();
    ranch.save(&text);
    let (relay, client) = ranch.serve().await;
    let at = client.current_revision().await;
    let valid_part = truncated(&text);
    std::fs::write(ranch.registry(), valid_part).unwrap();
    until("the truncation is reported", || source_is(&client, "suspicious")).await;
    let ready = client.get("/readyz").await.unwrap();
    assert_eq!(ready.status, 200);
    assert!(ready.body.contains("8 of 12 live keys are missing"), "{}", ready.body);
    assert_all_verified(&client).await;
    // The copy continues, and stalls in the middle of a line of the last tenant.
    let mut file = OpenOptions::new().append(true).open(ranch.registry()).unwrap();
    file.write_all(&text.as_bytes()[valid_part.len()..text.len() - 3]).unwrap();
    until("the fault is reported", || source_is(&client, "refused")).await;
    assert_all_verified(&client).await;
    file.write_all(&text.as_bytes()[text.len() - 3..]).unwrap();
    until("the copy is complete", || source_is(&client, "good")).await;
    let metrics = client.get("/metrics").await.unwrap().body;
    assert!(
        metrics.contains("sq_relay_registry_loads_total{outcome=\"suspicious\"} 1"),
        "{metrics}"
    );
    assert_eq!(client.changes(&at, 0).await.revision, at.revision, "no verdict has changed");
    relay.stop().await;
}

#[tokio::test]
async fn a_removed_tenant_is_refused_at_once() {
    let ranch = TestRanch::new();
    ranch.save(&full_registry());
    let (relay, client) = ranch.serve().await;
    for (n, by_rename) in [(TENANTS, false), (TENANTS - 1, true)] {
        let at = client.current_revision().await;
        // Without its last tenant the text looks as if it were truncated.
        let text = ranch.text();
        let text = &text[..text.find(&format!("\ntenant: t{n}\n")).unwrap() - 1];
        let saved = Instant::now();
        if by_rename {
            ranch.save(text);
        } else {
            std::fs::write(ranch.registry(), text).unwrap();
        }
        assert_eq!(client.changes(&at, 20_000).await.changed, [key(n).hash()]);
        assert!(saved.elapsed() < Duration::from_millis(500), "{:?}", saved.elapsed());
    }
    relay.stop().await;
}

/// Runs `relay registry` on the ranch's registry. It must succeed.
fn run(ranch: &TestRanch, args: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_relay"));
    let output = command.arg("registry").args(args).arg("--file").arg(ranch.registry()).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The hold time of [`TestRanch::config`] is five seconds.
#[tokio::test]
async fn removals_in_a_loop_take_effect_at_once() {
    let ranch = TestRanch::new();
    ranch.save(&full_registry());
    let (relay, client) = ranch.serve().await;
    until("the last good copy is written", || async {
        ranch.path("registry.phext.last-good").exists()
    })
    .await;
    for n in 1..TENANTS {
        run(&ranch, &["remove", &format!("t{n}")]);
    }
    let removed = Instant::now();
    for n in 1..TENANTS {
        until("the removal", || async { client.verdict(&key(n)).await.is_none() }).await;
    }
    assert!(removed.elapsed() < Duration::from_secs(1), "{:?}", removed.elapsed());
    assert!(client.verdict(&key(TENANTS)).await.is_some());
    assert!(source_is(&client, "good").await);
    relay.stop().await;
}

#[tokio::test]
async fn removal_of_many_keys_takes_effect_at_once() {
    let ranch = TestRanch::new();
    for _ in 0..4 {
        run(&ranch, &["rotate", "alice", "--overlap", "24h"]);
    }
    let (relay, client) = ranch.serve().await;
    assert!(client.verdict(&key(1)).await.is_some());
    run(&ranch, &["remove", "alice"]);
    let removed = Instant::now();
    until("the removal", || async { client.verdict(&key(1)).await.is_none() }).await;
    assert!(removed.elapsed() < Duration::from_secs(1), "{:?}", removed.elapsed());
    relay.stop().await;
}

#[tokio::test]
async fn an_unchanged_truncated_registry_is_accepted() {
    let ranch = TestRanch::new();
    let text = full_registry();
    ranch.save(&text);
    let mut config = ranch.config();
    config.hold = Duration::from_millis(400);
    let relay = start(config).await;
    let client = ranch.client(&relay);
    until("ready", || async { client.get("/readyz").await.unwrap().status == 200 }).await;
    let at = client.current_revision().await;
    let saved = Instant::now();
    ranch.save(truncated(&text));
    assert_eq!(client.changes(&at, 20_000).await.changed.len(), 8);
    assert!(saved.elapsed() >= Duration::from_millis(400), "{:?}", saved.elapsed());
    assert!(source_is(&client, "good").await);
    relay.stop().await;
}

#[tokio::test]
async fn a_phext_truncated_by_sq_revokes_no_key() {
    let ranch = TestRanch::new();
    let sq = Sq::new(&ranch, "0.6.0").await;
    sq.write(&full_registry()).await;
    let mut config = sq.config(&ranch);
    config.hold = Duration::from_mins(10);
    let relay = start(config).await;
    let client = ranch.client(&relay);
    until("ready", || async { client.get("/readyz").await.unwrap().status == 200 }).await;
    let port = sq.kill();
    let phext = ranch.path("sq/ranch.phext");
    let text = std::fs::read_to_string(&phext).unwrap();
    std::fs::write(&phext, truncated(&text)).unwrap();
    let _sq = Sq::start(&ranch, "0.6.0", port).await;
    until("the truncation is reported", || source_is(&client, "suspicious")).await;
    assert_all_verified(&client).await;
    relay.stop().await;
}

/// Breaks the registry in several ways before each restart of the relay.
#[tokio::test]
async fn the_last_good_registry_survives_a_restart() {
    let ranch = TestRanch::new();
    let text = full_registry();
    // One of the keys is in plain text.
    let digest = format!("key-sha256: {}", key(1).hash());
    ranch.save(&text.replace(&digest, &format!("key: {}", key(1).expose())));
    let (relay, client) = ranch.serve().await;
    until("the last good copy is written", || async {
        client
            .get("/metrics")
            .await
            .unwrap()
            .body
            .contains("\nsq_relay_registry_last_good_written 1\n")
    })
    .await;
    relay.stop().await;
    let copy = ranch.path("registry.phext.last-good");
    assert_eq!(std::fs::read_to_string(&copy).unwrap(), text, "with digests only");
    assert_eq!(std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);

    for (edit, status) in [
        (Some("nonsense"), "refused"),
        (Some(""), "refused"),
        (Some(truncated(&text)), "suspicious"),
        (None, "gone"),
    ] {
        match edit {
            Some(text) => ranch.save(text),
            None => std::fs::remove_file(ranch.registry()).unwrap(),
        }
        let relay = start(ranch.config()).await;
        let client = ranch.client(&relay);
        until(status, || source_is(&client, status)).await;
        assert_eq!(client.get("/readyz").await.unwrap().status, 200, "{status}");
        assert_all_verified(&client).await;
        relay.stop().await;
    }
    assert_eq!(std::fs::read_to_string(&copy).unwrap(), text, "only a good registry is copied");
}
