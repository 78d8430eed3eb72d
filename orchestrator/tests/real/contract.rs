//! Rules that every runtime must keep. Each is run by the tests of the single runtimes.

use std::fs;

use orchestrator::runtime::{Died, ExitKind, FoundState, Runtime, RuntimeError, Stopped};
use tokio::sync::mpsc::Receiver;

use crate::tools::{SCROLL, eventually, read, request, spec, tenant, write};

/// Takes an instance through all states, and through two restarts of the orchestrator: `reopen`
/// makes another runtime on the same folders.
pub(crate) async fn instance_passes_through_all_states<R: Runtime>(
    runtime: R,
    reopen: impl AsyncFn() -> R,
    version: &str,
) {
    let alice = tenant("alice");
    let started = runtime.start(spec("alice", version)).await.unwrap();
    let first = started.endpoint;
    write(&first, "kept").await;

    // Another key is refused.
    let (status, _) = request(first.address, "wrong", "GET", "toc?p=notes", "").await;
    assert_eq!(status, 401);
    assert!(runtime.memory_bytes(&alice).await.unwrap().unwrap() > 0);

    // Pause and resume are idempotent.
    runtime.pause(&alice).await.unwrap();
    runtime.pause(&alice).await.unwrap();
    assert_eq!(runtime.list().await.unwrap()[0].state, FoundState::Paused);
    runtime.resume(&alice).await.unwrap();
    runtime.resume(&alice).await.unwrap();
    assert_eq!(read(&first).await, "kept");

    // The next orchestrator adopts it with its key, running and then paused.
    drop(runtime);
    let runtime = reopen().await;
    let found = runtime.list().await.unwrap().remove(0);
    assert_eq!(found.state, FoundState::Running);
    assert_eq!(found.endpoint, Some(first.clone()));
    assert_eq!(found.tenant.as_str(), "alice");
    assert_eq!(found.tier.as_str(), "free");
    assert_eq!(found.limits, spec("alice", version).limits);
    assert_eq!(found.sq_version, version.parse().unwrap());
    runtime.pause(&alice).await.unwrap();
    drop(runtime);
    let runtime = reopen().await;
    assert_eq!(runtime.list().await.unwrap()[0].state, FoundState::Paused);
    runtime.resume(&alice).await.unwrap();

    // After a stop and a start the data is there, under a new key.
    assert_eq!(runtime.stop(&alice).await, Ok(Stopped::Alive));
    assert_eq!(runtime.stop(&alice).await, Ok(Stopped::Dead));
    assert_eq!(runtime.list().await.unwrap(), []);
    let gone = RuntimeError::NoInstance(alice.clone());
    assert_eq!(runtime.pause(&alice).await, Err(gone));
    let second = runtime.start(spec("alice", version)).await.unwrap().endpoint;
    assert_ne!(first.key, second.key);
    assert_ne!(first.instance, second.instance);
    assert_eq!(read(&second).await, "kept");

    // A start without a stop replaces the instance: never two on one folder.
    let third = runtime.start(spec("alice", version)).await.unwrap().endpoint;
    assert_eq!(runtime.list().await.unwrap().len(), 1);
    assert_eq!(read(&third).await, "kept");

    // A paused instance can be stopped.
    runtime.pause(&alice).await.unwrap();
    assert_eq!(runtime.stop(&alice).await, Ok(Stopped::Alive));
    assert_eq!(runtime.list().await.unwrap(), []);
}

/// Any user of the host reads the command lines. SQ 0.5.0 takes its key on no other way, which shows
/// that the search can find one.
pub(crate) async fn key_is_on_no_command_line<R: Runtime>(runtime: &R) {
    let started = runtime.start(spec("alice", "0.6.0")).await.unwrap();
    let old = runtime.start(spec("bob", "0.5.0")).await.unwrap();
    let texts = command_lines_and_environments();
    let contains = |key: &str| texts.iter().any(|text| text.contains(key));
    assert!(!contains(started.endpoint.key.expose()));
    assert!(contains(old.endpoint.key.expose()), "the search finds nothing");
    for name in ["alice", "bob"] {
        runtime.stop(&tenant(name)).await.unwrap();
    }
}

fn command_lines_and_environments() -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap();
    let folders = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let files = folders.flat_map(|folder| ["cmdline", "environ"].map(|name| folder.join(name)));
    let texts = files.filter_map(|file| fs::read(file).ok());
    texts.map(|text| String::from_utf8_lossy(&text).into_owned()).collect()
}

/// `kill` ends the instance from outside.
pub(crate) async fn death_is_an_event_and_stop_is_none<R: Runtime>(
    runtime: &R,
    version: &str,
    kill: impl AsyncFnOnce(),
) {
    let mut deaths = runtime.events().unwrap();
    assert!(runtime.events().is_none());
    runtime.start(spec("bob", version)).await.unwrap();
    runtime.stop(&tenant("bob")).await.unwrap();
    let endpoint = runtime.start(spec("bob", version)).await.unwrap().endpoint;

    kill().await;
    let death = next(&mut deaths).await;
    assert_eq!(death.tenant, tenant("bob"));
    assert_eq!(death.instance, endpoint.instance);
    assert_eq!(death.exit, ExitKind::Crashed(137));
    let found = runtime.list().await.unwrap().remove(0);
    assert_eq!(found.state, FoundState::Stopped(ExitKind::Crashed(137)));
    assert_eq!(found.endpoint, None);

    runtime.start(spec("bob", version)).await.unwrap();
    runtime.stop(&tenant("bob")).await.unwrap();
    assert!(deaths.try_recv().is_err(), "a requested death was reported");
}

pub(crate) async fn out_of_memory_kills_one_tenant_only<R: Runtime>(runtime: &R, version: &str) {
    let mut deaths = runtime.events().unwrap();
    let greedy = runtime.start(spec("greedy", version)).await.unwrap().endpoint;
    let modest = runtime.start(spec("modest", version)).await.unwrap().endpoint;
    write(&modest, "here").await;

    // A coordinate this far away needs more delimiters than memory holds.
    let path = "update?p=notes&c=100000000.1.1/1.1.1/1.1.1";
    let (status, body) = request(greedy.address, greedy.key.expose(), "POST", path, "x").await;
    assert_eq!(status, 0, "SQ had the memory: {body}");
    let death = next(&mut deaths).await;
    assert_eq!(death.tenant, tenant("greedy"));
    assert_eq!(death.exit, ExitKind::OutOfMemory);
    assert_eq!(read(&modest).await, "here");

    // The stop did not cause the end, so the files may be truncated.
    assert_eq!(runtime.stop(&tenant("greedy")).await, Ok(Stopped::Dead));
    assert_eq!(runtime.stop(&tenant("modest")).await, Ok(Stopped::Alive));
}

/// Sends a body that kills an SQ with the memory it was started with.
pub(crate) async fn resize_raises_the_memory_limit<R: Runtime>(runtime: &R) {
    let alice = runtime.start(spec("alice", "0.6.0")).await.unwrap().endpoint;
    runtime.resize(&tenant("alice"), 512 << 20).await.unwrap();
    let path = format!("update?{SCROLL}");
    let body = "x".repeat(40 << 20);
    let (status, body) = request(alice.address, alice.key.expose(), "POST", &path, &body).await;
    assert_eq!(status, 200, "{body}");
    runtime.stop(&tenant("alice")).await.unwrap();
}

async fn next(deaths: &mut Receiver<Died>) -> Died {
    eventually("a death is reported", async || deaths.try_recv().ok()).await
}
