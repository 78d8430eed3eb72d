//! The vault on a temporary folder. Writes of the tests stand for SQ's.

mod bounds;
mod crash;
mod running;
mod snapshots;
mod stop;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::*;
use crate::storage::atomic_file::entries;

const NAME: &str = "a.phext";

struct Setup {
    _dir: tempfile::TempDir,
    vault: Vault,
    tenant: TenantId,
    data: PathBuf,
}

impl Setup {
    /// A tenant without files that has never run.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tenant = TenantId::parse("alice").unwrap();
        let data = dir.path().join("tenants/alice");
        fs::create_dir_all(&data).unwrap();
        let vault = Vault::open(&dir.path().join("vault"), &dir.path().join("tenants")).unwrap();
        Self { _dir: dir, vault, tenant, data }
    }

    /// A stopped tenant with one phext and its good copy.
    fn stopped_with(text: &str) -> Self {
        let setup = Self::new();
        setup.start();
        setup.write(NAME, text);
        setup.stop();
        setup
    }

    /// A running tenant with one phext and its good copy.
    fn running_with(text: &str) -> Self {
        let setup = Self::stopped_with(text);
        setup.start();
        setup
    }

    fn start(&self) -> Vec<Repair> {
        let repairs = self.vault.before_start(&self.tenant).unwrap();
        self.vault.while_starting(&self.tenant).unwrap();
        repairs
    }

    fn stop(&self) -> Round {
        self.vault.after_stop(&self.tenant, 6, 3).unwrap()
    }

    /// The next start finds the marker of an earlier boot.
    fn crash_host(&self) {
        fs::write(self.vault.marker(&self.tenant), "another boot").unwrap();
    }

    /// One round of copies of a running SQ.
    fn round(&self) -> Round {
        self.round_of_sq(true)
    }

    fn round_of_sq(&self, alive: bool) -> Round {
        self.vault.while_awake(&self.tenant, &|| alive).unwrap().expect("the files are free")
    }

    /// Repeats rounds until one is as wanted.
    fn rounds_until(&self, done: impl Fn(&Round) -> bool) -> Round {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let round = self.round();
            if done(&round) {
                return round;
            }
            assert!(Instant::now() < deadline, "{round:?}");
            std::thread::yield_now();
        }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.data.join(name), text).unwrap();
    }

    /// Sets the time of a file's last write to a minute ago.
    fn backdate(&self, name: &str) {
        let file = fs::File::options().write(true).open(self.data.join(name)).unwrap();
        file.set_modified(std::time::SystemTime::now() - Duration::from_mins(1)).unwrap();
    }

    /// Makes a file so large that it is never read.
    fn make_too_large(&self, name: &str) {
        let file = fs::File::options().write(true).open(self.data.join(name)).unwrap();
        file.set_len(tenant_file::FILE_MAX_BYTES + 1).unwrap();
    }

    /// Makes a good copy so large that it is never read.
    fn make_copy_unreadable(&self, name: &str) {
        let path = self.vault.good(&self.tenant).join(name);
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_len(tenant_file::FILE_MAX_BYTES + 1).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.data.join(name)).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.data.join(name)).unwrap()
    }

    fn phexts(&self) -> Vec<String> {
        phext_files(&self.data).unwrap().into_keys().collect()
    }

    /// The good copy.
    fn copy(&self, name: &str) -> String {
        fs::read_to_string(self.vault.good(&self.tenant).join(name)).unwrap()
    }

    /// Another inode means that the copy was made again.
    fn inode_of_copy(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(self.vault.good(&self.tenant).join(NAME)).unwrap().ino()
    }

    fn set_short_of_space(&self) {
        self.vault.exclusive(&self.tenant, |track| track.set_space(false, Instant::now()));
    }

    /// Contents of the files in quarantine, oldest first.
    fn quarantine(&self, kind: &str) -> Vec<String> {
        let mut files = entries(&self.vault.home(&self.tenant).join(kind)).unwrap();
        files.sort_by_key(fs::DirEntry::file_name);
        files.iter().map(|file| fs::read_to_string(file.path()).unwrap()).collect()
    }
}

fn is_settled(round: &Round) -> bool {
    round.uncopied_since.is_none()
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn vault_is_readable_by_its_owner_alone() {
    let setup = Setup::running_with("old");
    setup.write(NAME, "");
    setup.start();
    let home = setup.vault.home(&setup.tenant);
    let taken_s = setup.vault.snapshots(&setup.tenant).unwrap()[0].taken_s;
    let snapshot = home.join("snapshots").join(taken_s.to_string());
    for folder in [&setup.vault.root, &home, &home.join("good"), &home.join("damaged"), &snapshot] {
        assert_eq!(mode(folder), 0o700, "{}", folder.display());
    }
    for file in [home.join("good").join(NAME), snapshot.join(NAME)] {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
    let damaged = entries(&home.join("damaged")).unwrap();
    assert_eq!(mode(&damaged[0].path()), 0o600);
}

#[test]
fn vault_open_to_others_is_closed() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("vault");
    fs::create_dir(&root).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    Vault::open(&root, dir.path()).unwrap();
    assert_eq!(mode(&root), 0o700);
}
