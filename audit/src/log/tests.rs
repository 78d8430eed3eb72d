use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::*;
use crate::{Actor, Broken, reports};

const NOW: u64 = 1_800_000_000;

fn log(dir: &TempDir) -> AuditLog {
    AuditLog::new(&dir.path().join("audit.jsonl"))
}

fn action(name: &str) -> Action {
    Action {
        actor: Actor { uid: Some(0), pid: Some(7), sudo_uid: Some(1_000) },
        name: name.to_owned(),
        tenant: Some("alice".to_owned()),
        detail: "force=true".to_owned(),
    }
}

/// Writes this many actions with their outcomes.
fn act(log: &AuditLog, count: usize) {
    for n in 0..count {
        let begin = log.begin(&action(&format!("sleep-{n}")), NOW).unwrap();
        log.end(begin, Outcome::Done, "202", NOW + 1).unwrap();
    }
}

#[test]
fn action_and_outcome_are_joined() {
    let dir = TempDir::new().unwrap();
    let log = log(&dir);
    act(&log, 1);
    log.begin(&action("restore\nevil"), NOW).unwrap();
    let verified = log.verify(None).unwrap();
    let reports = reports(&verified.entries);
    assert_eq!((reports[0].action.as_str(), reports[0].outcome), ("sleep-0", Some(Outcome::Done)));
    assert_eq!(reports[0].actor.to_string(), "uid 0 by sudo of uid 1000, pid 7");
    assert_eq!((reports[1].action.as_str(), reports[1].outcome), ("restore evil", None));
    let mode = fs::metadata(log.path()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
}

#[test]
fn any_changed_byte_breaks_the_chain() {
    let dir = TempDir::new().unwrap();
    let log = log(&dir);
    act(&log, 2);
    let good = fs::read(log.path()).unwrap();
    for at in (0..good.len()).filter(|at| good[*at] != b'\n') {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(log.path(), bad).unwrap();
        assert!(log.verify(None).is_err(), "byte {at}");
    }
    fs::write(log.path(), good).unwrap();
    assert!(log.verify(None).is_ok());
}

#[test]
fn removed_moved_and_inserted_lines_are_found() {
    let dir = TempDir::new().unwrap();
    let log = log(&dir);
    act(&log, 3);
    let text = fs::read_to_string(log.path()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let tampered = [
        lines[1..3].iter().chain(&lines[4..]).copied().collect::<Vec<_>>(),
        vec![lines[1], lines[0], lines[2]],
        vec![lines[0], lines[0], lines[1]],
    ];
    for lines in tampered {
        fs::write(log.path(), lines.join("\n") + "\n").unwrap();
        let fault = log.verify(None).unwrap_err();
        assert!(matches!(fault, Broken::Line { .. }), "{fault}");
    }
}

#[test]
fn cut_off_end_is_found_by_a_noted_hash() {
    let dir = TempDir::new().unwrap();
    let log = log(&dir);
    act(&log, 2);
    let noted = log.verify(None).unwrap().head;
    let text = fs::read_to_string(log.path()).unwrap();
    act(&log, 1);
    assert!(log.verify(Some(&noted)).is_ok(), "the log has grown since");
    let end = text.trim_end().rfind('\n').unwrap();
    fs::write(log.path(), &text[..=end]).unwrap();
    assert!(log.verify(None).is_ok());
    assert!(matches!(log.verify(Some(&noted)), Err(Broken::Missing(_))));
}

#[test]
fn rotation_keeps_the_chain_and_bounds_files() {
    let dir = TempDir::new().unwrap();
    let log = AuditLog { file_max_bytes: 2_000, ..log(&dir) };
    act(&log, 3);
    let begun = log.verify(None).unwrap();
    assert_eq!(begun.entries[0].n, 1);
    act(&log, 100);
    let files = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(files, FILES_MAX);
    let verified = log.verify(None).unwrap();
    assert_eq!(verified.entries.last().unwrap().n, 206);
    assert!(verified.entries[0].n > 1, "the oldest lines are gone");
    fs::remove_file(log.rotated(3)).unwrap();
    assert!(log.verify(None).is_err(), "a missing file is found");
}

#[test]
fn line_torn_by_a_power_loss_is_cut_off() {
    let dir = TempDir::new().unwrap();
    let log = log(&dir);
    act(&log, 1);
    let mut file = OpenOptions::new().append(true).open(log.path()).unwrap();
    file.write_all(b"{\"n\":3,\"at\":\"20").unwrap();
    assert!(log.verify(None).is_err());
    act(&log, 1);
    assert_eq!(log.verify(None).unwrap().entries.len(), 4);
}

#[test]
fn damaged_end_takes_no_further_action() {
    let dir = TempDir::new().unwrap();
    let log = log(&dir);
    fs::write(log.path(), "no entry\n").unwrap();
    let fault = log.begin(&action("sleep"), NOW).unwrap_err().to_string();
    assert!(fault.contains("damaged") && fault.contains("Move it away"), "{fault}");
}

#[test]
fn concurrent_writers_share_one_chain() {
    let dir = TempDir::new().unwrap();
    let log = AuditLog { file_max_bytes: 4_000, ..log(&dir) };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| act(&log, 10));
        }
    });
    let verified = log.verify(None).unwrap();
    assert_eq!(verified.entries.last().unwrap().n, 80);
    assert!(reports(&verified.entries).iter().all(|report| report.outcome.is_some()));
}

#[test]
fn rotation_among_writers_breaks_no_chain() {
    let dir = TempDir::new().unwrap();
    // Each line is the last one of its file.
    let log = AuditLog { file_max_bytes: 1, ..log(&dir) };
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| act(&log, 20));
        }
    });
    let verified = log.verify(None).unwrap();
    assert_eq!(verified.entries.last().unwrap().n, 320);
}
