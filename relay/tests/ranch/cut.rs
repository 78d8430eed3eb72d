//! Texts that are cut, and what is kept for the next start.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::sq::Sq;
use crate::world::{World, id, key, registry, start, until};

/// More tenants than may go at once.
const TENANTS: u8 = 12;

fn names() -> Vec<String> {
    (1..=TENANTS).map(|n| format!("t{n}")).collect()
}

fn many() -> String {
    let names = names();
    let tenants: Vec<_> = names.iter().zip(1..).map(|(t, n)| (t.as_str(), n, "free")).collect();
    registry(&tenants)
}

/// Where the scroll of the fourth tenant ends: up to here it is a valid registry.
fn boundary(text: &str) -> usize {
    text.find("\ntenant: t5\n").unwrap()
}

async fn says(client: &Client, status: &str) -> bool {
    client.get("/readyz").await.unwrap().body.contains(&format!("\"source\":\"{status}\""))
}

async fn everybody_is_served(client: &Client) {
    for n in 1..=TENANTS {
        assert_eq!(client.verdict(&key(n)).await.unwrap().tenant, id(&format!("t{n}")));
    }
}

#[tokio::test]
async fn a_copy_in_place_that_stalls_revokes_nobody() {
    let world = World::new();
    let text = many();
    world.save(&text);
    let (relay, client) = world.serve().await;
    let at = client.beginning().await;
    let cut = boundary(&text);
    std::fs::write(world.registry(), &text[..cut]).unwrap();
    until("the cut shows", || says(&client, "suspicious")).await;
    let ready = client.get("/readyz").await.unwrap();
    assert_eq!(ready.status, 200);
    assert!(ready.body.contains("8 of 12 good keys are not in it"), "{}", ready.body);
    everybody_is_served(&client).await;
    // It goes on, and stalls in the middle of a line of the last tenant.
    let mut file = OpenOptions::new().append(true).open(world.registry()).unwrap();
    file.write_all(&text.as_bytes()[cut..text.len() - 3]).unwrap();
    until("the cut is not valid", || says(&client, "refused")).await;
    everybody_is_served(&client).await;
    file.write_all(&text.as_bytes()[text.len() - 3..]).unwrap();
    until("it is whole", || says(&client, "good")).await;
    let metrics = client.get("/metrics").await.unwrap().body;
    assert!(metrics.contains("sq_relay_registry_loads_total{outcome=\"held\"} 1"), "{metrics}");
    assert_eq!(client.changes(&at, 0).await.revision, at.revision, "nobody was told anything");
    relay.stop().await;
}

#[tokio::test]
async fn a_tenant_that_is_removed_is_refused_at_once_however_it_is_saved() {
    let world = World::new();
    world.save(&many());
    let (relay, client) = world.serve().await;
    for (n, by_rename) in [(TENANTS, false), (TENANTS - 1, true)] {
        let at = client.beginning().await;
        // The last one: what is left begins like what was there, as after a cut.
        let text = world.text();
        let text = &text[..text.find(&format!("\ntenant: t{n}\n")).unwrap() - 1];
        let saved = Instant::now();
        if by_rename {
            world.save(text);
        } else {
            std::fs::write(world.registry(), text).unwrap();
        }
        assert_eq!(client.changes(&at, 20_000).await.changed, [key(n).hash()]);
        assert!(saved.elapsed() < Duration::from_millis(500), "{:?}", saved.elapsed());
    }
    relay.stop().await;
}

#[tokio::test]
async fn what_looks_cut_and_does_not_change_is_believed() {
    let world = World::new();
    let text = many();
    world.save(&text);
    let mut config = world.config();
    config.hold = Duration::from_millis(400);
    let relay = start(config).await;
    let client = world.client(&relay);
    until("ready", || async { client.get("/readyz").await.unwrap().status == 200 }).await;
    let at = client.beginning().await;
    let saved = Instant::now();
    world.save(&text[..boundary(&text)]);
    assert_eq!(client.changes(&at, 20_000).await.changed.len(), 8);
    assert!(saved.elapsed() >= Duration::from_millis(400), "{:?}", saved.elapsed());
    assert!(says(&client, "good").await);
    relay.stop().await;
}

#[tokio::test]
async fn a_phext_that_sq_cut_when_it_was_killed_revokes_nobody_for_ten_minutes() {
    let world = World::new();
    let sq = Sq::new(&world, "0.6.0").await;
    sq.write(&many()).await;
    let mut config = sq.config(&world);
    config.hold = Duration::from_mins(10);
    let relay = start(config).await;
    let client = world.client(&relay);
    until("ready", || async { client.get("/readyz").await.unwrap().status == 200 }).await;
    let port = sq.kill();
    let phext = world.path("sq/ranch.phext");
    let text = std::fs::read_to_string(&phext).unwrap();
    std::fs::write(&phext, &text[..boundary(&text)]).unwrap();
    let _sq = Sq::start(&world, "0.6.0", port).await;
    until("the cut shows", || says(&client, "suspicious")).await;
    everybody_is_served(&client).await;
    relay.stop().await;
}

/// The registry is broken while the relay runs, or while it does not; then it starts.
#[tokio::test]
async fn the_last_good_registry_is_answered_after_a_restart() {
    let world = World::new();
    let text = many();
    // One of the keys is in plain text.
    let digest = format!("key-sha256: {}", key(1).hash());
    world.save(&text.replace(&digest, &format!("key: {}", key(1).expose())));
    let (relay, client) = world.serve().await;
    until("it is kept", || async {
        client.get("/metrics").await.unwrap().body.contains("\nsq_relay_registry_kept 1\n")
    })
    .await;
    relay.stop().await;
    let kept = world.path("registry.phext.last-good");
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), text, "with digests only");
    assert_eq!(std::fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);

    let cut = &text[..boundary(&text)];
    for (edit, status) in [
        (Some("nonsense"), "refused"),
        (Some(""), "refused"),
        (Some(cut), "suspicious"),
        (None, "gone"),
    ] {
        match edit {
            Some(text) => world.save(text),
            None => std::fs::remove_file(world.registry()).unwrap(),
        }
        let relay = start(world.config()).await;
        let client = world.client(&relay);
        until(status, || says(&client, status)).await;
        assert_eq!(client.get("/readyz").await.unwrap().status, 200, "{status}");
        everybody_is_served(&client).await;
        relay.stop().await;
    }
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), text, "only what was good is kept");
}
