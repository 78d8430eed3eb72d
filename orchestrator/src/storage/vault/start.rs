//! Before and while SQ starts: repairs files that a crash damaged, and copies changed files.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use protocol::TenantId;

use super::copy::stage_for_tenant;
use super::copy_phext::Writer;
use super::examine::{Crash, Damage, Finding, examine};
use super::track::Track;
use super::{Repair, Vault};
use crate::storage::atomic_file::{self, entries, remove_if_exists, sync_folder};
use crate::storage::private::{create_private_file, create_private_folder};
use crate::storage::tenant_file::{
    self, FILE_MAX_BYTES, NotAPhext, PHEXT_SUFFIX, Stamp, phext_files,
};

/// Failure to prepare a tenant's data for a start.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// Something other than a phext has a phext's name. A retry cannot help: the operator must act.
    #[error("{0}")]
    NotAPhext(#[source] io::Error),
    /// Another failure, such as a full disk. A retry may succeed.
    #[error("{0}")]
    Io(#[source] io::Error),
}

impl From<io::Error> for PrepareError {
    fn from(error: io::Error) -> Self {
        if NotAPhext::is_cause_of(&error) { Self::NotAPhext(error) } else { Self::Io(error) }
    }
}

impl Vault {
    /// To be called before each start. Unless the last stop was orderly, examines every phext and
    /// repairs those that are damaged. On an error the tenant must not start.
    pub fn before_start(&self, tenant: &TenantId) -> Result<Vec<Repair>, PrepareError> {
        self.exclusive(tenant, |track| {
            let data = self.data(tenant);
            create_private_folder(&self.good(tenant))?;
            // 1. Refuse what SQ would stumble over, and remove what a crash of ours left behind.
            only_files(&data)?;
            atomic_file::remove_leftovers(&data)?;
            atomic_file::remove_leftovers(&self.good(tenant))?;
            // 2. Examine and repair.
            let crash = self.last_crash(tenant)?;
            track.set_after_crash(crash.is_some());
            let repairs = match crash {
                None => Vec::new(),
                Some(crash) => self.examine_all(tenant, track, crash)?,
            };
            // 3. From here until an orderly stop, a crash may damage files.
            create_private_file(&self.marker(tenant))?;
            fs::write(self.marker(tenant), &self.boot)?;
            Ok(repairs)
        })
    }

    /// To be called after [`Vault::before_start`]. SQ may be starting at the same time, but must not
    /// receive a request before this is done. On an error SQ must be stopped again.
    pub fn while_starting(&self, tenant: &TenantId) -> Result<(), PrepareError> {
        self.exclusive(tenant, |track| {
            // 1. The marker must survive a crash of the host that interrupts SQ's first write.
            let marker = self.marker(tenant);
            fs::File::open(&marker)?.sync_all()?;
            sync_folder(&self.home(tenant))?;
            // 2. Copy while nothing writes.
            let began = Instant::now();
            self.look_for_space(tenant, track)?;
            let found = phext_files(&self.data(tenant))?;
            let good = phext_files(&self.good(tenant))?;
            let files = self.bounds(tenant).divide(found.clone());
            if let Some(complaint) = files.complaint() {
                tracing::warn!(%tenant, complaint, "phext can't be copied at the start");
            }
            let mut complete = true;
            for (name, stamp) in &files.within {
                complete &= self.copy_if_changed(tenant, track, name, *stamp, good.get(name))?;
            }
            // 3. Files removed by hand stay removed. A folder without any phext, however, is more
            //    likely a disk that is not mounted than an intention.
            if !found.is_empty() {
                for name in good.keys().filter(|name| !found.contains_key(*name)) {
                    self.quarantine_copy(tenant, name)?;
                    remove_if_exists(&self.good(tenant).join(name))?;
                }
            }
            if complete {
                track.all_copied(began);
            }
            Ok(())
        })
    }

    /// Returns whether the file has a copy now. Only for a file that never had one is a failure to
    /// copy it an error; with an older copy, SQ may run.
    fn copy_if_changed(
        &self,
        tenant: &TenantId,
        track: &mut Track,
        name: &str,
        stamp: Stamp,
        good: Option<&Stamp>,
    ) -> io::Result<bool> {
        // After a crash a stamp proves nothing: SQ may have written twice within one tick of the
        // kernel's clock, and only the first of the two was copied.
        let is_copied = good.is_some_and(|good| good.is_copy_of(&stamp))
            && (!track.is_after_crash() || self.equals_copy(tenant, name)?);
        if is_copied {
            track.copied_while_stopped(name, stamp, Instant::now());
            return Ok(true);
        }
        match self.copy_phext(tenant, track, name, Writer::Stopped) {
            Err(error) if good.is_some() => {
                tracing::warn!(%tenant, name, %error, "phext can't be copied at the start");
                Ok(false)
            }
            outcome => Ok(outcome? == super::CopyOutcome::Copied),
        }
    }

    /// Returns whether a phext has the same content as its copy.
    fn equals_copy(&self, tenant: &TenantId, name: &str) -> io::Result<bool> {
        let path = self.data(tenant).join(name);
        let _alone = self.alone_if_large(&path);
        let found = tenant_file::read(&path, self.bounds(tenant).file_bytes)?;
        let good = tenant_file::read(&self.good(tenant).join(name), FILE_MAX_BYTES)?;
        Ok(found.map(|(bytes, _)| bytes) == good.map(|(bytes, _)| bytes))
    }

    /// Returns the kind of crash that ended the tenant's SQ last; `None` after an orderly stop.
    pub(super) fn last_crash(&self, tenant: &TenantId) -> io::Result<Option<Crash>> {
        match fs::read_to_string(self.marker(tenant)) {
            Ok(boot) if boot.trim() == self.boot => Ok(Some(Crash::Process)),
            Ok(_) => Ok(Some(Crash::Host)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Examines and repairs all phexts that are there, or of which there is a copy. A file beyond the
    /// tenant's bounds stays as it is.
    pub(super) fn examine_all(
        &self,
        tenant: &TenantId,
        track: &Track,
        crash: Crash,
    ) -> io::Result<Vec<Repair>> {
        let mut repairs = Vec::new();
        let files = self.bounds(tenant).divide(phext_files(&self.data(tenant))?);
        let mut names = files.within;
        names.extend(phext_files(&self.good(tenant))?);
        for name in names.keys().filter(|name| !files.beyond.contains_key(*name)) {
            repairs.extend(self.examine_one(tenant, track, name, crash)?);
        }
        self.tenant(tenant).repaired.fetch_add(repairs.len() as u64, Ordering::Relaxed);
        Ok(repairs)
    }

    fn examine_one(
        &self,
        tenant: &TenantId,
        track: &Track,
        name: &str,
        crash: Crash,
    ) -> io::Result<Option<Repair>> {
        let path = self.data(tenant).join(name);
        // 1. Compare it with its copy.
        let _alone = self.alone_if_large(&path);
        let found = tenant_file::read(&path, self.bounds(tenant).file_bytes)?;
        if let Some((_, stamp)) = &found
            && crash == Crash::Process
            && track.is_finished(name, stamp)
        {
            return Ok(None);
        }
        let good = tenant_file::read(&self.good(tenant).join(name), FILE_MAX_BYTES)?;
        let finding = match (&found, &good) {
            (Some((bytes, stamp)), Some((copy, copied)))
                if crash == Crash::Host
                    && stamp.written_ns < copied.written_ns
                    && bytes != copy =>
            {
                Finding::Damaged { damage: Damage::Older, repaired: copy.clone() }
            }
            _ => {
                let bytes = found.as_ref().map(|(bytes, _)| bytes.as_slice());
                let copy = good.as_ref().map(|(bytes, _)| bytes.as_slice());
                examine(bytes, copy, crash)
            }
        };
        let Finding::Damaged { damage, repaired } = finding else { return Ok(None) };
        // 2. Keep the damaged file for the operator, then replace it.
        let mut found_bytes = 0;
        if let Some((bytes, _)) = &found {
            found_bytes = bytes.len() as u64;
            self.quarantine_damaged(tenant, name, bytes)?;
        }
        // The runtime gives a new folder its owner.
        create_private_folder(&self.data(tenant))?;
        atomic_file::put(stage_for_tenant(&repaired, &self.data(tenant))?, &path)?;
        let repaired_bytes = repaired.len() as u64;
        Ok(Some(Repair { file: name.to_owned(), damage, found_bytes, repaired_bytes }))
    }
}

/// Returns an error if something other than a file has a phext's name: a folder kills SQ 0.5.0, while
/// 0.6.0 answers 200 and stores nothing in it, and a link could lead anywhere.
fn only_files(folder: &Path) -> io::Result<()> {
    for entry in entries(folder)? {
        let is_phext = entry.file_name().to_str().is_some_and(|n| n.ends_with(PHEXT_SUFFIX));
        if is_phext && !entry.file_type()?.is_file() {
            return Err(tenant_file::not_a_phext(&entry.path(), "not a regular file"));
        }
    }
    Ok(())
}
