//! The users that tenants' SQ instances run as: one for each tenant.
//!
//! The owner of a tenant's folder is the record of its user; there is no other. A folder whose owner
//! is none of the configured ids, or is that of another folder too, gets a free id before SQ is
//! started on it. The folder changes hands first and its files follow at every start, so an
//! orchestrator that is killed in between goes on at the next one (`folder.rs`).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::{self, File};
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use parking_lot::Mutex;
use rustix::fs::{Gid, Mode, OFlags, Uid, fchown, open};

use crate::runtime::RuntimeError;
use crate::runtime::folder::Owner;

/// The host's list of users.
const PASSWD: &str = "/etc/passwd";

/// The ids of tenants' users. Each is a group id as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserRange {
    /// The user of what belongs to no tenant, such as prepared networks. With a `count` of 1 it is
    /// the user of all tenants too.
    pub first: u32,
    /// Number of ids from `first` on.
    pub count: u32,
}

/// The users of one installation.
#[derive(Debug)]
pub(super) struct Users {
    /// `None` if SQ runs as we do.
    range: Option<UserRange>,
    /// The folder of each id that is in use.
    taken: Mutex<HashMap<u32, Holder>>,
}

/// The folder that an id belongs to.
#[derive(Debug, PartialEq, Eq)]
enum Holder {
    /// The folder of this name.
    One(Vec<u8>),
    /// More than one. Each of them gets another id at its next start.
    Several,
}

impl UserRange {
    /// All ids.
    pub fn ids(self) -> RangeInclusive<u32> {
        self.first..=self.first.saturating_add(self.count.saturating_sub(1))
    }

    /// The ids of tenants; `None` if they share the first one.
    fn tenants(self) -> Option<RangeInclusive<u32>> {
        let last = *self.ids().end();
        if last > self.first { Some(self.first + 1..=last) } else { None }
    }

    fn shared(self) -> Owner {
        owner(self.first)
    }
}

impl Users {
    /// Reads the owners of all folders of `data_root`. With `None`, SQ runs as we do. Fails if a
    /// user of this host has one of the tenants' ids.
    pub(super) fn open(data_root: &Path, range: Option<UserRange>) -> Result<Self, RuntimeError> {
        let mut taken = HashMap::new();
        if let Some(ids) = range.and_then(UserRange::tenants) {
            check_host(&fs::read_to_string(PASSWD).unwrap_or_default(), &ids)?;
            taken = read_owners(data_root).map_err(|error| {
                RuntimeError::Failed(format!("{}: owners: {error}", data_root.display()))
            })?;
        }
        Ok(Self { range, taken: Mutex::new(taken) })
    }

    /// The user of what belongs to no tenant; `None` if that is our own.
    pub(super) fn shared(&self) -> Option<Owner> {
        self.range.map(UserRange::shared)
    }

    /// All ids that SQ may run as; `None` if it runs as we do.
    pub(super) fn ids(&self) -> Option<RangeInclusive<u32>> {
        self.range.map(UserRange::ids)
    }

    /// The user of the tenant whose folder this is, which exists: the folder's owner, or a free id
    /// that it is given now. `None` if SQ runs as we do.
    pub(super) fn claim(&self, folder: &Path) -> Result<Option<Owner>, RuntimeError> {
        let Some(range) = self.range else { return Ok(None) };
        let Some(ids) = range.tenants() else { return Ok(Some(range.shared())) };
        let fault = |error: io::Error| RuntimeError::Unwritable {
            path: folder.display().to_string(),
            reason: error.to_string(),
        };
        let opened = open_folder(folder).map_err(fault)?;
        let present = opened.metadata().map_err(fault)?.uid();
        let name = folder.file_name().unwrap_or_default().as_bytes();
        let mut taken = self.taken.lock();
        if ids.contains(&present) && is_of(taken.entry(present), name) {
            return Ok(Some(owner(present)));
        }
        let Some(free) = ids.clone().find(|id| !taken.contains_key(id)) else {
            return Err(RuntimeError::Failed(format!(
                "runtime.uids: all ids from {} to {} belong to tenants: configure more",
                ids.start(),
                ids.end()
            )));
        };
        fchown(&opened, Some(Uid::from_raw(free)), Some(Gid::from_raw(free)))
            .map_err(|error| fault(error.into()))?;
        taken.insert(free, Holder::One(name.to_owned()));
        Ok(Some(owner(free)))
    }

    /// Text for the operator's status.
    pub(super) fn note(&self) -> String {
        match self.range.map(|range| (range.first, range.tenants())) {
            None => "SQ runs as the orchestrator's user, the same for all tenants".to_owned(),
            Some((first, None)) => format!("SQ runs as user {first}, the same for all tenants"),
            Some((_, Some(ids))) => format!(
                "SQ runs as a user of its own for each tenant, {} to {}",
                ids.start(),
                ids.end()
            ),
        }
    }
}

/// True if an id belongs to the folder of this name, or does from now on.
fn is_of(entry: Entry<'_, u32, Holder>, name: &[u8]) -> bool {
    let holder = entry.or_insert_with(|| Holder::One(name.to_owned()));
    matches!(holder, Holder::One(present) if present == name)
}

fn owner(id: u32) -> Owner {
    Owner { uid: id, gid: id }
}

/// Opens the folder itself: a link in its place could lead to a folder of the host.
fn open_folder(folder: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(open(folder, flags, Mode::empty())?))
}

fn read_owners(data_root: &Path) -> io::Result<HashMap<u32, Holder>> {
    let mut owners = HashMap::new();
    for entry in fs::read_dir(data_root)? {
        let entry = entry?;
        // Does not follow links.
        let id = entry.metadata()?.uid();
        let name = entry.file_name().as_bytes().to_owned();
        owners
            .entry(id)
            .and_modify(|holder| *holder = Holder::Several)
            .or_insert(Holder::One(name));
    }
    Ok(owners)
}

/// A user of the host with a tenant's id could read that tenant's data, and would be behind the
/// firewall of the process runtime.
fn check_host(passwd: &str, ids: &RangeInclusive<u32>) -> Result<(), RuntimeError> {
    for line in passwd.lines() {
        let mut fields = line.split(':');
        let name = fields.next().unwrap_or_default();
        let id = fields.nth(1).and_then(|id| id.parse().ok());
        if let Some(id) = id.filter(|id| ids.contains(id)) {
            return Err(RuntimeError::Failed(format!(
                "runtime.uid: {name} of {PASSWD} has the id {id}, but {} to {} are for tenants: \
                 configure other ids by `uid` and `uids`",
                ids.start(),
                ids.end()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
