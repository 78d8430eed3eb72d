//! The vault on a folder of its own; writing from here stands for SQ's.

mod snapshots;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use super::*;

struct Setup {
    _dir: tempfile::TempDir,
    vault: Vault,
    tenant: TenantId,
    data: PathBuf,
}

fn setup() -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let tenant = TenantId::parse("alice").unwrap();
    let data = dir.path().join("tenants/alice");
    fs::create_dir_all(&data).unwrap();
    let vault = Vault::open(&dir.path().join("vault"), &dir.path().join("tenants")).unwrap();
    Setup { _dir: dir, vault, tenant, data }
}

struct Sq {
    alive: bool,
}

impl Awake for Sq {
    fn alive(&self) -> bool {
        self.alive
    }
}

impl Setup {
    fn write(&self, name: &str, text: &str) {
        fs::write(self.data.join(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.data.join(name)).unwrap()
    }

    fn start(&self) -> Vec<Restored> {
        let restored = self.vault.before_start(&self.tenant).unwrap();
        self.vault.while_starting(&self.tenant).unwrap();
        restored
    }

    fn stop(&self) {
        self.vault.after_stop(&self.tenant, 6, 3).unwrap();
    }

    fn look(&self, sq: &dyn Awake) -> Round {
        self.vault.while_awake(&self.tenant, sq).unwrap().expect("nobody else is at it")
    }

    /// Looks until it is so.
    fn until(&self, done: impl Fn(&Round) -> bool, sq: &dyn Awake) -> Round {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let round = self.look(sq);
            if done(&round) {
                return round;
            }
            assert!(Instant::now() < deadline, "{round:?}");
            std::thread::yield_now();
        }
    }

    fn copied(&self, name: &str) -> bool {
        let stamp = phext_files(&self.data).unwrap()[name];
        self.vault.turn(&self.tenant, |track| track.is_copied(name, &stamp))
    }

    fn copy(&self, name: &str) -> String {
        fs::read_to_string(self.vault.good(&self.tenant).join(name)).unwrap()
    }

    fn aside(&self, kind: &str) -> Vec<Vec<u8>> {
        let mut files: Vec<_> = entries(&self.vault.home(&self.tenant).join(kind)).unwrap();
        files.sort_by_key(fs::DirEntry::file_name);
        files.iter().map(|file| fs::read(file.path()).unwrap()).collect()
    }

    /// The host has crashed: the marker is of an earlier boot.
    fn host_crashes(&self) {
        fs::write(self.vault.marker(&self.tenant), "another boot").unwrap();
    }

    fn death_cuts(&self, name: &str) {
        self.write(name, "");
    }
}

#[test]
fn a_file_cut_by_a_death_is_put_back_and_kept_aside() {
    let s = setup();
    s.start();
    s.write("a.phext", "one");
    s.stop();
    s.start();
    s.write("a.phext", "one two\x17");
    let restored = s.start();
    assert_eq!(restored.len(), 1);
    assert_eq!((restored[0].file.as_str(), restored[0].found_bytes), ("a.phext", 8));
    assert_eq!(s.read("a.phext"), "one two");
    assert_eq!(fs::read_dir(s.vault.home(&s.tenant).join("damaged")).unwrap().count(), 1);
}

#[test]
fn what_was_written_long_before_a_death_has_a_copy_before_the_next_life() {
    let s = setup();
    s.start();
    s.write("a.phext", "one");
    s.stop();
    s.start();
    s.write("a.phext", "two");
    assert_eq!(s.start(), []);
    assert_eq!(s.copy("a.phext"), "one", "just written");
    s.vault.turn(&s.tenant, |track| *track = Track::default());
    assert_eq!(s.start(), []);
    assert_eq!(s.copy("a.phext"), "two", "nobody knows since when");
}

#[test]
fn a_healthy_newer_file_is_left_alone_after_a_death() {
    let s = setup();
    s.start();
    s.write("a.phext", "one");
    s.stop();
    s.start();
    s.write("a.phext", "newer");
    assert_eq!(s.start(), vec![]);
    assert_eq!(s.read("a.phext"), "newer");
}

#[test]
fn nothing_is_examined_after_an_orderly_stop() {
    let s = setup();
    s.start();
    s.write("a.phext", "one");
    s.stop();
    fs::remove_file(s.data.join("a.phext")).unwrap();
    assert_eq!(s.start(), vec![]);
    assert!(!s.data.join("a.phext").exists());
}

#[test]
fn a_cut_file_becomes_no_copy_when_sq_is_dead() {
    let s = setup();
    s.start();
    s.write("a.phext", "one");
    s.stop();
    s.start();
    s.death_cuts("a.phext");
    let began = Instant::now();
    let polled = |alive: bool| {
        s.until(|round| round.copied > 0 || began.elapsed() > 2 * QUIET, &Sq { alive }).copied
    };
    assert_eq!(polled(false), 0);
    assert_eq!(s.start()[0].why, Why::Emptied);
    assert_eq!(s.read("a.phext"), "one");
    s.death_cuts("a.phext");
    let round = s.until(|round| round.copied > 0, &Sq { alive: true });
    assert_eq!(round.copied, 1, "emptied by a tenant whose SQ lives");
}

#[test]
fn an_unchanged_file_is_not_copied_again() {
    let s = setup();
    s.start();
    s.write("a.phext", "one");
    s.until(|round| round.copied == 1, &Sq { alive: true });
    s.until(Round::is_settled, &Sq { alive: true });
    assert!(s.copied("a.phext"));
    // Nor after a stop and another start.
    s.stop();
    s.start();
    assert!(s.copied("a.phext"));
    assert!(s.look(&Sq { alive: true }).is_settled());
}

#[test]
fn empty_phexts_that_reads_left_behind_are_gone_after_a_stop() {
    let s = setup();
    s.start();
    s.write("looked-at.phext", "");
    s.write("a.phext", "one");
    s.stop();
    assert_eq!(phext_files(&s.data).unwrap().into_keys().collect::<Vec<_>>(), ["a.phext"]);
}

#[test]
fn zero_bytes_of_a_text_survive_any_number_of_deaths() {
    let s = setup();
    s.start();
    let text = "a\0b\x17two";
    s.write("a.phext", text);
    s.stop();
    s.start();
    assert_eq!(s.start(), vec![]);
    assert_eq!(s.read("a.phext"), text);
}

#[test]
fn a_file_that_a_full_disk_cut_becomes_no_copy_and_is_put_back() {
    let s = setup();
    s.start();
    s.write("a.phext", "one");
    s.stop();
    s.start();
    s.death_cuts("a.phext");
    *s.vault.short.lock().unwrap() = Some(Instant::now());
    let round = s.vault.after_stop(&s.tenant, 6, 3).unwrap();
    assert_eq!((round.copied, round.doubtful), (0, 1));
    assert_eq!(s.start()[0].why, Why::Emptied);
    assert_eq!(s.read("a.phext"), "one");
}

/// Looks at a file that is `texts` in turn, without a pause, until a copy of it is made.
fn busy(s: &Setup, texts: impl Iterator<Item = String> + Send) -> Round {
    let path = s.data.join("a.phext");
    let stop = AtomicBool::new(false);
    fs::write(&path, "b").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for text in texts {
                fs::write(&path, text).unwrap();
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        let round = s.until(|round| round.copied > 0, &Sq { alive: true });
        stop.store(true, Ordering::Relaxed);
        round
    })
}

#[test]
fn a_phext_that_is_written_all_the_time_has_a_copy_within_the_window() {
    let s = setup();
    s.start();
    let began = Instant::now();
    let round = busy(&s, (1_000..2_000).cycle().map(|length| "a".repeat(length)));
    assert!(began.elapsed() < WINDOW + QUIET, "{:?}", began.elapsed());
    assert_eq!((round.copied, round.waiting), (1, 0));
}

#[test]
fn a_phext_that_never_rests_and_always_looks_cut_has_a_copy_all_the_same() {
    let s = setup();
    s.start();
    s.write("a.phext", "old");
    s.stop();
    s.start();
    // A multiple of 512 bytes, and another last scroll each time.
    let round = busy(&s, ('a'..='z').cycle().map(|letter| letter.to_string().repeat(1_024)));
    assert_eq!((round.copied, round.waiting), (1, 0));
    assert_eq!(s.copy("a.phext").len(), 1_024);
    assert_eq!(s.aside("replaced"), [b"old"], "the copy it took the place of");
}

#[test]
fn a_file_that_is_being_written_becomes_no_copy() {
    let s = setup();
    s.start();
    s.write("a.phext", "old");
    s.stop();
    s.start();
    // Between truncating and writing.
    let writing = fs::File::create(s.data.join("a.phext")).unwrap();
    let kept = s.vault.turn(&s.tenant, |track| {
        let awake = While::Awake { sq: &Sq { alive: true }, quiet: true };
        s.vault.keep_one(&s.tenant, track, "a.phext", awake).unwrap()
    });
    assert_eq!((kept, s.copy("a.phext").as_str()), (Kept::Waiting, "old"));
    drop(writing);
}

#[test]
fn a_file_that_can_t_be_copied_keeps_no_other_from_it() {
    let s = setup();
    s.start();
    s.write("a.phext", "one");
    fs::File::create(s.data.join("b.phext")).unwrap().set_len(files::FILE_MAX_BYTES + 1).unwrap();
    s.write("c.phext", "three");
    let round = s.until(|round| round.copied > 0, &Sq { alive: true });
    assert_eq!(round.copied, 2);
    let why = round.failed.unwrap();
    assert!(why.starts_with("b.phext: "), "{why}");
    assert_eq!(s.vault.failing(&s.tenant), Some(why));
    fs::remove_file(s.data.join("b.phext")).unwrap();
    s.look(&Sq { alive: true });
    assert_eq!(s.vault.failing(&s.tenant), None);
}

#[test]
fn while_a_start_examines_nobody_waits_for_it() {
    let s = setup();
    s.start();
    let round =
        s.vault.turn(&s.tenant, |_| s.vault.while_awake(&s.tenant, &Sq { alive: true }).unwrap());
    assert_eq!(round, None);
}

#[test]
fn a_copy_that_a_cut_looking_file_takes_the_place_of_is_set_aside() {
    let s = setup();
    s.start();
    s.write("a.phext", "precious");
    s.stop();
    s.start();
    s.write("a.phext", "");
    s.stop();
    assert!(!s.data.join("a.phext").exists());
    assert_eq!(s.aside("replaced"), [b"precious"]);
}

#[test]
fn after_a_crash_of_the_host_a_file_older_than_its_copy_is_taken_for_missing() {
    let s = setup();
    s.start();
    s.write("a.phext", "flushed long ago");
    let old = SystemTime::now() - Duration::from_mins(1);
    let back = || {
        let file = fs::File::options().write(true).open(s.data.join("a.phext")).unwrap();
        file.set_modified(old).unwrap();
    };
    back();
    s.until(Round::is_settled, &Sq { alive: true });
    s.write("a.phext", "acknowledged and copied");
    s.until(|_| s.copy("a.phext").starts_with("ack"), &Sq { alive: true });
    // What the disk had when the power went.
    s.write("a.phext", "flushed long ago");
    back();
    assert_eq!(s.start(), [], "the host lives: it has the last word");
    s.host_crashes();
    let restored = s.start();
    assert_eq!((restored.len(), restored[0].why), (1, Why::Older));
    assert_eq!(s.read("a.phext"), "acknowledged and copied");
    assert_eq!(s.aside("damaged"), [b"flushed long ago"]);
    assert_eq!(s.start(), [], "once");
}

#[test]
fn phexts_removed_by_hand_do_not_come_back_after_a_crash() {
    let s = setup();
    s.start();
    s.write("a.phext", "one");
    s.write("b.phext", "two");
    s.stop();
    fs::remove_file(s.data.join("a.phext")).unwrap();
    s.start();
    assert_eq!(s.start(), []);
    assert!(!s.data.join("a.phext").exists());
    assert_eq!(s.aside("replaced"), [b"one"]);
}

#[test]
fn what_is_no_file_in_a_phext_s_place_is_the_operator_s() {
    let s = setup();
    fs::create_dir(s.data.join("a.phext")).unwrap();
    let refused = s.vault.before_start(&s.tenant).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidData);
    assert!(refused.to_string().contains("a.phext"), "{refused}");
}

#[test]
fn an_empty_folder_is_no_reason_to_drop_good_copies() {
    let s = setup();
    s.start();
    s.write("a.phext", "one");
    s.stop();
    fs::remove_file(s.data.join("a.phext")).unwrap();
    s.start();
    assert_eq!(s.copy("a.phext"), "one");
}

#[test]
fn a_disk_short_of_room_makes_a_tenant_s_cut_files_doubtful_until_it_has_been_well_for_long() {
    let s = setup();
    s.start();
    s.write("a.phext", "one");
    s.stop();
    s.start();
    s.death_cuts("a.phext");
    s.vault.turn(&s.tenant, |track| track.short = Some(Instant::now()));
    let round = s.vault.after_stop(&s.tenant, 6, 3).unwrap();
    assert_eq!((round.copied, round.doubtful), (0, 1));
    assert_eq!(s.copy("a.phext"), "one");
}

#[test]
fn a_file_that_came_by_hand_has_a_copy_before_sq_writes_it() {
    let s = setup();
    s.write("a.phext", "one");
    s.start();
    s.death_cuts("a.phext");
    assert_eq!(s.start()[0].why, Why::Emptied);
    assert_eq!(s.read("a.phext"), "one");
}
