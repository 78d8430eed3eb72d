//! Files from which SQ reads its key, so that the key is on no command line.
//!
//! From 0.6.0 on, SQ takes its key from the field `inbound.auth_key` of the JSON file that
//! `--mesh-config` names, and reads that file once, at its start. Only SQ's user may read it (mode
//! 0400). A process inherits the file as its standard input, in memory. A container gets it as a
//! mount: the file lies in a folder of the orchestrator, which no other user can enter, and is
//! removed with the container. An orchestrator that adopts the container reads the key there.
//!
//! SQ serves without a key if it can't read the file. The readiness probe finds that, because it
//! accepts nothing but 401.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Seek, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use protocol::TenantId;
use rustix::fs::{Gid, MemfdFlags, Uid, fchown, memfd_create};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::runtime::folder::Owner;
use crate::runtime::instance_key::InstanceKey;
use crate::storage::private;

/// Path at which a process finds the file that is its standard input.
pub(super) const STDIN: &str = "/proc/self/fd/0";

/// Mode of a key's file.
const MODE: u32 = 0o400;

/// Suffix of a key file's name; the rest is the tenant's.
const SUFFIX: &str = ".json";

/// The key files of containers, one for each tenant.
#[derive(Debug, Clone)]
pub(super) struct KeyFiles {
    folder: PathBuf,
}

impl KeyFiles {
    /// Opens the folder of the files, or creates it. No other user can enter it.
    pub(super) fn open(state_dir: &Path) -> io::Result<Self> {
        let folder = state_dir.join("instance-keys");
        private::create_private_folder(&folder)?;
        private::restrict(&folder, private::PRIVATE_FOLDER)?;
        // The daemon mounts the files and takes absolute paths only.
        Ok(Self { folder: folder.canonicalize()? })
    }

    /// Replaces the file of a tenant, and returns its path. A running container keeps the file that
    /// it was started with.
    pub(super) fn create(
        &self,
        tenant: &TenantId,
        key: &InstanceKey,
        owner: Option<Owner>,
    ) -> io::Result<PathBuf> {
        self.remove(tenant)?;
        let path = self.path(tenant);
        let file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&path)?;
        write_key(file, key, owner)?;
        Ok(path)
    }

    /// Reads the key of a tenant. `digest` tells that it is the key of this container and not of an
    /// earlier or a later one.
    pub(super) fn read(&self, tenant: &TenantId, digest: &str) -> Option<InstanceKey> {
        let key = parse(&fs::read(self.path(tenant)).ok()?)?;
        if self::digest(&key) == digest { Some(key) } else { None }
    }

    /// Removes the file of a tenant, if there is one.
    pub(super) fn remove(&self, tenant: &TenantId) -> io::Result<()> {
        match fs::remove_file(self.path(tenant)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes the files of all tenants but these: an orchestrator was killed during their stop or
    /// start.
    pub(super) fn retain(&self, is_kept: impl Fn(&TenantId) -> bool) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            let tenant = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
            if let Some(tenant) = tenant.and_then(|tenant| TenantId::parse(tenant).ok())
                && !is_kept(&tenant)
            {
                self.remove(&tenant)?;
            }
        }
        Ok(())
    }

    fn path(&self, tenant: &TenantId) -> PathBuf {
        self.folder.join(format!("{tenant}{SUFFIX}"))
    }
}

/// Creates a key file in memory, which ends with the last process that has it open.
pub(super) fn in_memory(key: &InstanceKey, owner: Option<Owner>) -> io::Result<File> {
    let file = File::from(memfd_create("instance-key", MemfdFlags::CLOEXEC)?);
    file.set_permissions(Permissions::from_mode(MODE))?;
    let mut file = write_key(file, key, owner)?;
    file.rewind()?;
    Ok(file)
}

/// Digest that tells keys apart and reveals nothing about them.
pub(super) fn digest(key: &InstanceKey) -> String {
    hex::encode(Sha256::digest(key.expose()))
}

fn write_key(mut file: File, key: &InstanceKey, owner: Option<Owner>) -> io::Result<File> {
    file.write_all(content(key).as_bytes())?;
    if let Some(Owner { uid, gid }) = owner {
        fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    Ok(file)
}

/// The configuration of a mesh with one node and no peers: SQ requires every field. Only `auth_key`
/// has effect; port and data folder are on the command line.
fn content(key: &InstanceKey) -> String {
    json!({
        "version": "1.0",
        "node": { "id": "sq", "name": "sq", "emoji": "", "coordinate": "1.1.1/1.1.1/1.1.1" },
        "inbound": { "enabled": true, "port": 0, "auth_key": key.expose(), "data_dir": "" },
        "outbound": { "enabled": false, "peers": [] },
        "mesh": {
            "sync_interval_seconds": 0,
            "health_check_interval_seconds": 0,
            "retry_backoff_seconds": 0,
            "max_retries": 0,
        },
    })
    .to_string()
}

fn parse(content: &[u8]) -> Option<InstanceKey> {
    let config: Value = serde_json::from_slice(content).ok()?;
    InstanceKey::parse(config["inbound"]["auth_key"].as_str()?).ok()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::parse(name).unwrap()
    }

    #[test]
    fn file_belongs_to_its_tenant_alone() {
        let state = tempfile::tempdir().unwrap();
        let files = KeyFiles::open(state.path()).unwrap();
        let alice = tenant("alice");
        let bob = tenant("bob");
        let key = InstanceKey::generate().unwrap();
        let path = files.create(&alice, &key, None).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o400);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(files.read(&alice, &digest(&key)), Some(key.clone()));
        assert_eq!(files.read(&bob, &digest(&key)), None);
    }

    #[test]
    fn key_of_another_instance_is_not_used() {
        let state = tempfile::tempdir().unwrap();
        let files = KeyFiles::open(state.path()).unwrap();
        let alice = tenant("alice");
        let first = InstanceKey::generate().unwrap();
        files.create(&alice, &first, None).unwrap();
        let second = InstanceKey::generate().unwrap();
        files.create(&alice, &second, None).unwrap();
        assert_eq!(files.read(&alice, &digest(&first)), None);
        assert_eq!(files.read(&alice, &digest(&second)), Some(second));
    }

    #[test]
    fn files_without_an_instance_are_removed() {
        let state = tempfile::tempdir().unwrap();
        let files = KeyFiles::open(state.path()).unwrap();
        let key = InstanceKey::generate().unwrap();
        for name in ["alice", "bob"] {
            files.create(&tenant(name), &key, None).unwrap();
        }
        files.retain(|present| *present == tenant("bob")).unwrap();
        let entries = fs::read_dir(state.path().join("instance-keys")).unwrap();
        let left: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["bob.json"]);
        files.remove(&tenant("bob")).unwrap();
        files.remove(&tenant("bob")).unwrap();
    }

    #[test]
    fn file_in_memory_is_read_from_its_start() {
        let key = InstanceKey::generate().unwrap();
        let mut file = in_memory(&key, None).unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o400);
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        assert_eq!(parse(&content), Some(key));
    }
}
