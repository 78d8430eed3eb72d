use std::os::unix::fs::{chown, symlink};
use std::path::PathBuf;

use super::*;
use crate::runtime::folder;

/// The single id of earlier releases.
const OLD: u32 = 10_001;
const RANGE: UserRange = UserRange { first: OLD, count: 4 };

/// A data root with folders of tenants. Ownership can be given away by root only.
struct DataRoot {
    dir: tempfile::TempDir,
}

impl DataRoot {
    /// `None` unless we are root.
    fn new(folders: &[(&str, u32)]) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let root = Self { dir: tempfile::tempdir().unwrap() };
        for (name, id) in folders {
            fs::create_dir(root.folder(name)).unwrap();
            chown(root.folder(name), Some(*id), Some(*id)).unwrap();
        }
        Some(root)
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn users(&self) -> Users {
        Users::open(self.dir.path(), Some(RANGE)).unwrap()
    }

    fn claim(&self, users: &Users, name: &str) -> Result<u32, RuntimeError> {
        folder::create(&self.folder(name))?;
        users.claim(&self.folder(name)).map(|owner| owner.unwrap().uid)
    }
}

fn owner_of(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().uid()
}

#[test]
fn tenant_keeps_its_user_across_runs() {
    let Some(root) = DataRoot::new(&[]) else { return };
    let users = root.users();
    assert_eq!(root.claim(&users, "alice"), Ok(10_002));
    assert_eq!(root.claim(&users, "bob"), Ok(10_003));
    assert_eq!(root.claim(&users, "alice"), Ok(10_002));
    let users = root.users();
    assert_eq!(root.claim(&users, "carol"), Ok(10_004), "the others' ids are not free");
    assert_eq!(root.claim(&users, "bob"), Ok(10_003));
    assert_eq!(owner_of(&root.folder("bob")), 10_003);
}

#[test]
fn folders_of_the_old_single_user_are_moved() {
    let Some(root) = DataRoot::new(&[("alice", OLD), ("bob", OLD)]) else { return };
    let file = root.folder("alice").join("a.phext");
    let host = root.folder("host");
    fs::write(&file, "text").unwrap();
    fs::write(&host, "the host's").unwrap();
    chown(&file, Some(OLD), Some(OLD)).unwrap();
    symlink(&host, root.folder("alice").join("link.phext")).unwrap();
    let users = root.users();
    assert_eq!(root.claim(&users, "alice"), Ok(10_002));
    assert_eq!(owner_of(&file), OLD, "files follow with the proof of the folder");

    // An orchestrator that is killed here goes on at the next start.
    let users = root.users();
    let owner = users.claim(&root.folder("alice")).unwrap();
    folder::prepare(&root.folder("alice"), owner).unwrap();
    assert_eq!([owner_of(&root.folder("alice")), owner_of(&file)], [10_002; 2]);
    assert_eq!(owner_of(&host), 0, "links are not followed");
    assert_eq!(owner_of(&root.folder("bob")), OLD, "until its own next start");
    assert_eq!(root.claim(&users, "bob"), Ok(10_003));
}

#[test]
fn no_two_tenants_share_a_user() {
    let folders = [("alice", 10_002), ("copy-of-alice", 10_002), ("root", 0), ("other", 70_000)];
    let Some(root) = DataRoot::new(&folders) else { return };
    let users = Users::open(root.dir.path(), Some(UserRange { count: 6, ..RANGE })).unwrap();
    let ids = folders.map(|(name, _)| root.claim(&users, name).unwrap());
    let different: std::collections::BTreeSet<u32> = ids.into_iter().collect();
    assert_eq!(different, (10_003..=10_006).collect());
}

#[test]
fn starts_at_once_never_share_a_user() {
    let Some(root) = DataRoot::new(&[]) else { return };
    let users = Users::open(root.dir.path(), Some(UserRange { count: 65, ..RANGE })).unwrap();
    let ids = std::thread::scope(|scope| {
        let claim = |n: u32| root.claim(&users, &format!("tenant-{n}")).unwrap();
        let threads: Vec<_> = (0..64).map(|n| scope.spawn(move || claim(n))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect::<std::collections::BTreeSet<_>>()
    });
    assert_eq!(ids.len(), 64);
}

#[test]
fn exhausted_ids_are_an_error() {
    let Some(root) = DataRoot::new(&[("a", 10_002), ("b", 10_003), ("c", 10_004)]) else { return };
    let users = root.users();
    let error = root.claim(&users, "d").unwrap_err().to_string();
    assert_eq!(
        error,
        "runtime.uids: all ids from 10002 to 10004 belong to tenants: configure more"
    );
    assert_eq!(root.claim(&users, "a"), Ok(10_002));
}

#[test]
fn link_in_place_of_a_folder_is_refused() {
    let Some(root) = DataRoot::new(&[("host", 0)]) else { return };
    symlink(root.folder("host"), root.folder("alice")).unwrap();
    assert!(matches!(root.claim(&root.users(), "alice"), Err(RuntimeError::Unwritable { .. })));
    assert_eq!(owner_of(&root.folder("host")), 0);
}

#[test]
fn single_id_is_shared_by_all() {
    let dir = tempfile::tempdir().unwrap();
    let users = Users::open(dir.path(), Some(UserRange { count: 1, ..RANGE })).unwrap();
    assert_eq!(users.claim(dir.path()), Ok(users.shared()));
    assert_eq!(Users::open(dir.path(), None).unwrap().claim(dir.path()), Ok(None));
}

#[test]
fn user_of_the_host_has_no_tenants_id() {
    let passwd = "root:x:0:0::/root:/bin/sh\nsq:x:10001:10001::/:/bin/false\n";
    assert_eq!(check_host(passwd, &(10_002..=60_000)), Ok(()));
    let error = check_host(passwd, &(10_000..=10_001)).unwrap_err().to_string();
    assert!(error.starts_with("runtime.uid: sq of /etc/passwd has the id 10001"), "{error}");
}
