//! Copies while SQ runs.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::storage::vault::copy_phext::Writer;

/// The window that docs/copies.md promises.
const WINDOW: Duration = Duration::from_secs(5);

/// Ends a writer, also when the test fails.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs rounds while a phext is rewritten with `texts` without a pause, until it has been copied.
fn copy_under_writes(setup: &Setup, texts: impl Iterator<Item = String> + Send) -> Round {
    let path = setup.data.join(NAME);
    let stop = AtomicBool::new(false);
    fs::write(&path, "begin").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for text in texts {
                fs::write(&path, text).unwrap();
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        let _stop = SetOnDrop(&stop);
        setup.rounds_until(|round| round.copied > 0)
    })
}

#[test]
fn unchanged_phext_is_copied_once() {
    let setup = Setup::new();
    setup.start();
    setup.write(NAME, "one");
    setup.rounds_until(is_settled);
    assert_eq!(setup.round().copied, 0);
    // Nor is it copied after a stop and another start.
    setup.stop();
    let inode = setup.inode_of_copy();
    setup.start();
    assert_eq!(setup.round().copied, 0);
    assert_eq!(setup.inode_of_copy(), inode);
}

#[test]
fn write_after_a_start_is_no_older_than_it() {
    let setup = Setup::stopped_with("one");
    let started = Instant::now();
    setup.start();
    setup.write(NAME, "two");
    let round = setup.round();
    assert!(round.uncopied_since.unwrap() >= started);
    assert_eq!(round.copied, 0, "it is not overdue");
}

#[test]
fn new_phext_is_copied_at_the_first_look() {
    let setup = Setup::new();
    setup.start();
    // SQ creates the file when the name is read first.
    setup.write(NAME, "");
    assert_eq!(setup.round().copied, 0, "there is nothing to lose yet");
    setup.write(NAME, "one");
    assert_eq!(setup.round().copied, 1);
    assert_eq!(setup.copy(NAME), "one");
    setup.write(NAME, "two");
    assert_eq!(setup.round().copied, 0, "it has a copy");
}

#[test]
fn quiet_phext_is_copied_before_it_is_overdue() {
    let setup = Setup::running_with("one");
    setup.write(NAME, "two");
    let began = Instant::now();
    setup.rounds_until(|round| round.copied == 1);
    assert!(began.elapsed() < COPY_AFTER, "{:?}", began.elapsed());
}

#[test]
fn phext_written_all_the_time_is_copied_in_time() {
    let setup = Setup::new();
    setup.start();
    let began = Instant::now();
    let texts = (1_000..2_000).cycle().map(|length| "a".repeat(length));
    let round = copy_under_writes(&setup, texts);
    assert!(began.elapsed() < WINDOW + QUIET, "{:?}", began.elapsed());
    assert_eq!(round.copied, 1);
}

#[test]
fn busy_phext_that_looks_truncated_is_copied_too() {
    let setup = Setup::running_with("old");
    // A multiple of 512 bytes, with another last scroll each time.
    let texts = ('a'..='z').cycle().map(|letter| letter.to_string().repeat(1_024));
    let round = copy_under_writes(&setup, texts);
    assert_eq!(round.copied, 1);
    assert_eq!(setup.copy(NAME).len(), 1_024);
    assert_eq!(setup.quarantine("replaced"), ["old"]);
}

#[test]
fn truncated_phext_of_a_dead_sq_is_not_copied() {
    let setup = Setup::running_with("one");
    setup.write(NAME, "");
    let began = Instant::now();
    while began.elapsed() < 2 * QUIET {
        assert_eq!(setup.round_of_sq(false).copied, 0);
    }
    assert_eq!(setup.copy(NAME), "one");
    setup.rounds_until(|round| round.copied == 1);
    assert_eq!(setup.copy(NAME), "", "a tenant whose SQ lives has emptied it");
}

#[test]
fn half_written_phext_is_not_copied() {
    let setup = Setup::running_with("old");
    // Between truncation and write.
    let writer = fs::File::create(setup.data.join(NAME)).unwrap();
    let outcome = setup.vault.exclusive(&setup.tenant, |track| {
        let running = Writer::Running { sq_is_alive: &|| true, quiet: true };
        setup.vault.copy_phext(&setup.tenant, track, NAME, running).unwrap()
    });
    assert_eq!((outcome, setup.copy(NAME).as_str()), (CopyOutcome::Waiting, "old"));
    drop(writer);
}

#[test]
fn doubtful_phext_is_not_copied_and_later_repaired() {
    let setup = Setup::running_with("one");
    setup.write(NAME, "");
    setup.set_short_of_space();
    let round = setup.rounds_until(|round| round.doubtful > 0);
    assert_eq!((round.copied, round.doubtful), (0, 1));
    let round = setup.stop();
    assert_eq!((round.copied, round.doubtful), (0, 1));
    assert_eq!(setup.start()[0].damage, Damage::Emptied);
    assert_eq!(setup.read(NAME), "one");
}

#[test]
fn phext_that_cannot_be_copied_delays_no_other() {
    let setup = Setup::new();
    setup.start();
    setup.write(NAME, "one");
    setup.write("b.phext", "two");
    setup.make_too_large("b.phext");
    setup.write("c.phext", "three");
    let round = setup.rounds_until(|round| round.copied > 0);
    assert_eq!(round.copied, 2);
    let reason = round.failed.unwrap();
    assert!(reason.starts_with("b.phext: "), "{reason}");
    assert_eq!(setup.vault.failing(&setup.tenant), Some(reason));
    setup.remove("b.phext");
    setup.round();
    assert_eq!(setup.vault.failing(&setup.tenant), None);
}

#[test]
fn round_does_not_wait_for_a_start() {
    let setup = Setup::new();
    setup.start();
    let round = setup
        .vault
        .exclusive(&setup.tenant, |_| setup.vault.while_awake(&setup.tenant, &|| true).unwrap());
    assert_eq!(round, None);
}
