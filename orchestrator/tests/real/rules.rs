//! What every runtime must do, whichever it is.

use orchestrator::runtime::{Died, ExitKind, FoundState, Runtime, RuntimeError, Stopped};
use tokio::sync::mpsc::Receiver;

use crate::tools::{ask, eventually, read, spec, tenant, write};

/// Two lives of one runtime on the same folders: `again` makes the next orchestrator's.
pub(crate) async fn an_instance_lives_through_its_states<R: Runtime>(
    runtime: R,
    again: impl AsyncFn() -> R,
    version: &str,
) {
    let alice = tenant("alice");
    let started = runtime.start(spec("alice", version)).await.unwrap();
    let first = started.endpoint;
    write(&first, "kept").await;

    // Only its own key opens it.
    let (status, _) = ask(first.address, "wrong", "GET", "toc?p=notes", "").await;
    assert_eq!(status, 401);
    assert!(runtime.memory_bytes(&alice).await.unwrap().unwrap() > 0);

    // Frozen and thawed, twice each.
    for _ in 0..2 {
        runtime.pause(&alice).await.unwrap();
    }
    assert_eq!(runtime.list().await.unwrap()[0].state, FoundState::Paused);
    for _ in 0..2 {
        runtime.resume(&alice).await.unwrap();
    }
    assert_eq!(read(&first).await, "kept");

    // The next orchestrator finds it as it is, with its key, running and paused.
    drop(runtime);
    let runtime = again().await;
    let found = runtime.list().await.unwrap().remove(0);
    assert_eq!((found.state, &found.endpoint), (FoundState::Running, &Some(first.clone())));
    assert_eq!((found.tenant.as_str(), found.tier.as_str()), ("alice", "free"));
    assert_eq!(
        (found.limits, found.sq_version),
        (spec("alice", version).limits, version.parse().unwrap())
    );
    runtime.pause(&alice).await.unwrap();
    drop(runtime);
    let runtime = again().await;
    assert_eq!(runtime.list().await.unwrap()[0].state, FoundState::Paused);
    runtime.resume(&alice).await.unwrap();

    // Stopped and started: the data stay, key and instance are new.
    assert_eq!(runtime.stop(&alice).await, Ok(Stopped::Alive));
    assert_eq!(runtime.stop(&alice).await, Ok(Stopped::Dead));
    assert_eq!(runtime.list().await.unwrap(), []);
    let gone = RuntimeError::NoInstance(alice.clone());
    assert_eq!(runtime.pause(&alice).await, Err(gone));
    let second = runtime.start(spec("alice", version)).await.unwrap().endpoint;
    assert_ne!((&first.key, &first.instance), (&second.key, &second.instance));
    assert_eq!(read(&second).await, "kept");

    // Started over: never two on one folder.
    let third = runtime.start(spec("alice", version)).await.unwrap().endpoint;
    assert_eq!(runtime.list().await.unwrap().len(), 1);
    assert_eq!(read(&third).await, "kept");

    // A paused one is stopped as well.
    runtime.pause(&alice).await.unwrap();
    assert_eq!(runtime.stop(&alice).await, Ok(Stopped::Alive));
    assert_eq!(runtime.list().await.unwrap(), []);
}

/// `kill` ends the instance from outside.
pub(crate) async fn a_death_is_told_once_and_a_stop_is_not<R: Runtime>(
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
    assert_eq!((death.tenant, death.instance), (tenant("bob"), endpoint.instance));
    assert_eq!(death.exit, ExitKind::Crashed(137));
    let found = runtime.list().await.unwrap().remove(0);
    assert_eq!((found.state, found.endpoint), (FoundState::Stopped(ExitKind::Crashed(137)), None));
    runtime.start(spec("bob", version)).await.unwrap();
    runtime.stop(&tenant("bob")).await.unwrap();
    assert!(deaths.try_recv().is_err(), "a death that was asked for was told");
}

/// The tenant asks for more memory than it has.
pub(crate) async fn a_tenant_that_uses_up_its_memory_dies_alone<R: Runtime>(
    runtime: &R,
    version: &str,
) {
    let mut deaths = runtime.events().unwrap();
    let greedy = runtime.start(spec("greedy", version)).await.unwrap().endpoint;
    let modest = runtime.start(spec("modest", version)).await.unwrap().endpoint;
    write(&modest, "here").await;
    // A coordinate this far needs more delimiters than memory holds.
    let path = "update?p=notes&c=100000000.1.1/1.1.1/1.1.1";
    let answer = ask(greedy.address, greedy.key.expose(), "POST", path, "x").await;
    assert_eq!(answer.0, 0, "it had the memory: {}", answer.1);
    let death = next(&mut deaths).await;
    assert_eq!((death.tenant, death.exit), (tenant("greedy"), ExitKind::OutOfMemory));
    assert_eq!(read(&modest).await, "here");
    // Its stop is not what ended it: its files may be cut.
    assert_eq!(runtime.stop(&tenant("greedy")).await, Ok(Stopped::Dead));
    assert_eq!(runtime.stop(&tenant("modest")).await, Ok(Stopped::Alive));
}

/// A body that ends SQ in the memory it was started with.
pub(crate) async fn a_running_instance_can_be_given_more_memory<R: Runtime>(runtime: &R) {
    let alice = runtime.start(spec("alice", "0.6.0")).await.unwrap().endpoint;
    runtime.resize(&tenant("alice"), 512 << 20).await.unwrap();
    let path = "update?p=notes&c=1.1.1/1.1.1/1.1.1";
    let answer = ask(alice.address, alice.key.expose(), "POST", path, &"x".repeat(40 << 20)).await;
    assert_eq!(answer.0, 200, "{}", answer.1);
    runtime.stop(&tenant("alice")).await.unwrap();
}

async fn next(deaths: &mut Receiver<Died>) -> Died {
    eventually("a death is told", async || deaths.try_recv().ok()).await
}
