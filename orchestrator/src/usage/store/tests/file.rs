//! The database file: schema, damage, backup, kill -9.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::*;

#[test]
fn first_schema_is_migrated_with_every_sum() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("ledger.sqlite");
    let first = Connection::open(&path).unwrap();
    first.execute_batch(include_str!("first_ledger.sql")).unwrap();
    drop(first);
    let mut store = open_at(&path).unwrap();
    let tenants = store.sums_by_tenant(0..2 * NOW).unwrap();
    let shown: Vec<_> =
        tenants.iter().map(|t| (t.tenant.as_str(), t.price_cents_month, t.sums.reads)).collect();
    assert_eq!(shown, [("alice", 1_900, 109), ("bob", 0, 1_001)]);
    let alice = TenantId::parse("alice").unwrap();
    let newer = UsageRow { tenant: alice.clone(), ..row(1, 500_000, 8) };
    store.commit(&[report("b", vec![newer])], NOW).unwrap();
    assert_eq!(store.tenant_sums(&alice, 0..2 * NOW).unwrap().reads, 113, "4 became 8");
    let gateway = GatewayId::parse("gw").unwrap();
    assert_eq!(store.gateway_sums(&gateway, NOW - DAY_S).unwrap().reads, 14);
    drop(store);
    assert_eq!(total(&open_at(&path).unwrap()), 1_114, "and opens again");
}

#[test]
fn damaged_ledger_is_refused_with_advice() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("ledger.sqlite");
    {
        let mut store = open(&dir);
        let rows = (0..2_000).map(|n| row(n, HOUR, 1)).collect();
        store.commit(&[report("a", rows)], NOW).unwrap();
    }
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 8_192].fill(0x5a);
    std::fs::write(&path, bytes).unwrap();
    let fault = open_at(&path).unwrap_err().to_string();
    assert!(fault.contains("is damaged") && fault.contains("backup"), "{fault}");
    std::fs::write(&path, "this is no database, whatever its name says".repeat(100)).unwrap();
    assert!(matches!(open_at(&path), Err(StoreError::Damaged { .. })));
}

#[test]
fn ledger_of_newer_release_is_refused() {
    let dir = TempDir::new().unwrap();
    open(&dir).db.pragma_update(None, "user_version", 99).unwrap();
    let fault = open_at(&dir.path().join("ledger.sqlite")).unwrap_err();
    assert!(matches!(fault, StoreError::Newer { found: 99, .. }), "{fault}");
}

#[test]
fn backup_is_whole_beside_the_writer() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    store.commit(&[report("a", vec![row(1, HOUR, 4)])], NOW).unwrap();
    let reader = Store::open_read_only(&dir.path().join("ledger.sqlite")).unwrap();
    let copy = dir.path().join("copy.sqlite");
    reader.backup(&copy).unwrap();
    store.commit(&[report("a", vec![row(1, HOUR, 9)])], NOW).unwrap();
    assert_eq!(total(&open_at(&copy).unwrap()), 4);
    assert_eq!(total(&store), 9);
}

/// Child process of the next test: commits reports without end and prints each when it is
/// committed.
#[test]
fn child_that_is_killed() {
    let Ok(dir) = std::env::var("SQ_LEDGER_TEST_DIR") else { return };
    let mut store = open_at(&Path::new(&dir).join("ledger.sqlite")).unwrap();
    for reads in total(&store) + 1.. {
        store.commit(&[report("a", vec![row(1, HOUR, reads)])], NOW).unwrap();
        println!("committed {reads}");
    }
}

#[test]
fn acknowledged_reports_survive_kill_9() {
    let dir = TempDir::new().unwrap();
    let mut printed = 0;
    for round in 0..10 {
        // The harness names a test by its path within the crate.
        let (_, module) = module_path!().split_once("::").unwrap();
        let child = format!("{module}::child_that_is_killed");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &child, "--nocapture"])
            .env("SQ_LEDGER_TEST_DIR", dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut seen = 0;
        let mut killed = false;
        for line in lines {
            // The test harness prints before the first line.
            let Some((_, number)) = line.rsplit_once("committed ") else { continue };
            printed = number.parse().unwrap();
            seen += 1;
            if seen > 3 * round && !killed {
                child.kill().unwrap();
                killed = true;
            }
        }
        child.wait().unwrap();
        assert!(killed, "the child ended before it was killed");
        let store = open(&dir);
        let kept = total(&store);
        // One more may have been committed and not yet printed.
        assert!(kept == printed || kept == printed + 1, "{kept} kept, {printed} printed");
        printed = kept;
    }
    assert!(printed > 10);
}
