//! Before a start: what an abnormal death cut is put back. While SQ starts, and before anybody can
//! reach it: what is flushed to disk.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Instant;

use protocol::TenantId;

use super::copy::{self, Stamp};
use super::examine::{Death, Finding, Why, examine};
use super::keep::While;
use super::track::Track;
use super::{PHEXT_SUFFIX, Restored, STAGED, Vault, entries, files, phext_files, private_folder};

impl Vault {
    /// To be called before each start. Examines every phext unless the last stop was orderly.
    /// An error means that the tenant must not start. Of the kind `InvalidData` it is one that no
    /// further try heals: something that is no phext stands in a phext's place.
    pub fn before_start(&self, tenant: &TenantId) -> io::Result<Vec<Restored>> {
        self.turn(tenant, |track| {
            private_folder(&self.good(tenant))?;
            only_files(&self.data(tenant))?;
            for name in staged(&self.data(tenant))? {
                files::remove_if_there(&self.data(tenant).join(name))?;
            }
            let end = self.last_end(tenant)?;
            let restored = match end {
                None => Vec::new(),
                Some(death) => self.examine_all(tenant, track, death)?,
            };
            self.mark_running(tenant)?;
            track.in_order = end.is_none();
            track.starts(Instant::now());
            self.note_failing(tenant, None);
            Ok(restored)
        })
    }

    /// To be called after [`Vault::before_start`]; SQ may start meanwhile, but not be asked for
    /// anything before this is done. On an error it must be stopped again.
    pub fn while_starting(&self, tenant: &TenantId) -> io::Result<()> {
        self.turn(tenant, |track| {
            // Before SQ writes anything: a crash of the host must not lose it.
            let marker = self.marker(tenant);
            fs::File::open(&marker)?.sync_all()?;
            copy::sync_parent(&marker)?;
            if std::mem::take(&mut track.in_order) {
                self.learn(tenant, track)?;
            }
            Ok(())
        })
    }

    /// What ended the tenant's SQ last; `None`: a stop in order.
    pub(super) fn last_end(&self, tenant: &TenantId) -> io::Result<Option<Death>> {
        match fs::read_to_string(self.marker(tenant)) {
            Ok(boot) if boot.trim() == self.boot => Ok(Some(Death::Process)),
            Ok(_) => Ok(Some(Death::Host)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn mark_running(&self, tenant: &TenantId) -> io::Result<()> {
        use std::io::Write;
        files::create(&self.marker(tenant))?.write_all(self.boot.as_bytes())
    }

    /// After an orderly stop: what has its copy, what came by hand since, and what went. No better
    /// moment than now, when nobody writes them.
    fn learn(&self, tenant: &TenantId, track: &mut Track) -> io::Result<()> {
        let good = phext_files(&self.good(tenant))?;
        let there = phext_files(&self.data(tenant))?;
        for (name, stamp) in &there {
            match good.get(name) {
                None => {
                    self.keep_one(tenant, track, name, While::Stopped)?;
                }
                Some(copy) if (copy.bytes, copy.written_ns) == (stamp.bytes, stamp.written_ns) => {
                    track.copied(name, *stamp, Instant::now(), true);
                }
                Some(_) => {}
            }
        }
        // A folder without any phext is more likely a disk that is not mounted than a wish.
        if !there.is_empty() {
            for name in good.keys().filter(|name| !there.contains_key(*name)) {
                self.set_copy_aside(tenant, name)?;
                files::remove_if_there(&self.good(tenant).join(name))?;
            }
        }
        Ok(())
    }

    pub(super) fn examine_all(
        &self,
        tenant: &TenantId,
        track: &mut Track,
        death: Death,
    ) -> io::Result<Vec<Restored>> {
        let mut restored = Vec::new();
        let mut names = phext_files(&self.data(tenant))?;
        names.extend(phext_files(&self.good(tenant))?);
        for name in names.keys() {
            restored.extend(self.examine_one(tenant, track, name, death)?);
        }
        // One that dies again and again before it is looked at would never have copies of what it
        // wrote between its deaths.
        for (name, stamp) in phext_files(&self.data(tenant))? {
            if track.overdue(&name, stamp, Instant::now())
                && let Err(e) = self.keep_one(tenant, track, &name, While::Stopped)
            {
                tracing::warn!(%tenant, name, error = %e, "a copy can't be kept");
            }
        }
        if let (false, Ok(mut count)) = (restored.is_empty(), self.restored.lock()) {
            *count.entry(tenant.clone()).or_default() += restored.len() as u64;
        }
        Ok(restored)
    }

    fn examine_one(
        &self,
        tenant: &TenantId,
        track: &mut Track,
        name: &str,
        death: Death,
    ) -> io::Result<Option<Restored>> {
        let path = self.data(tenant).join(name);
        let there = opened(&path)?;
        if death == Death::Process
            && there.as_ref().is_some_and(|(_, stamp)| track.is_copied(name, stamp))
        {
            return Ok(None);
        }
        let read = |at: &Option<(fs::File, Stamp)>, path: &Path| match at {
            Some((file, _)) => files::read_all(file, path).map(Some),
            None => Ok(None),
        };
        let good_path = self.good(tenant).join(name);
        let copy = opened(&good_path)?;
        let (now, good) = (read(&there, &path)?, read(&copy, &good_path)?);
        let written = |at: &Option<(fs::File, Stamp)>| at.as_ref().map(|(_, s)| s.written_ns);
        if let (true, Some((_, stamp))) = (now == good, &there) {
            track.copied(name, *stamp, Instant::now(), true);
        }
        let older = death == Death::Host
            && written(&there).zip(written(&copy)).is_some_and(|(now, copy)| now < copy)
            && now != good;
        let finding = match good.as_ref().filter(|_| older) {
            Some(good) => Finding::Cut { why: Why::Older, restored: good.clone() },
            None => examine(now.as_deref(), good.as_deref(), death),
        };
        let Finding::Cut { why, restored } = finding else { return Ok(None) };
        if let Some(now) = &now {
            self.set_damaged_aside(tenant, name, now)?;
        }
        // The runtime gives a folder its owner, should it be missing.
        private_folder(&self.data(tenant))?;
        copy::put(&restored, &path)?;
        Ok(Some(Restored {
            file: name.to_owned(),
            why,
            found_bytes: now.map_or(0, |n| n.len() as u64),
            restored_bytes: restored.len() as u64,
        }))
    }
}

/// An error if something else than a file stands in a phext's place: a folder kills SQ 0.5.0, 0.6.0
/// answers 200 and stores nothing in it; a link would be out of our sight.
fn only_files(folder: &Path) -> io::Result<()> {
    for entry in entries(folder)? {
        let named = entry.file_name().to_str().is_some_and(|n| n.ends_with(PHEXT_SUFFIX));
        if named && !entry.file_type()?.is_file() {
            let text = format!("{} is not a regular file", entry.path().display());
            return Err(io::Error::new(ErrorKind::InvalidData, text));
        }
    }
    Ok(())
}

/// What a restore that was broken off has left.
fn staged(folder: &Path) -> io::Result<Vec<String>> {
    let names = entries(folder)?.into_iter().filter_map(|e| e.file_name().into_string().ok());
    Ok(names.filter(|name| name.starts_with(STAGED)).collect())
}

fn opened(path: &Path) -> io::Result<Option<(fs::File, Stamp)>> {
    match files::open(path) {
        Ok((file, metadata)) => Ok(Some((file, Stamp::from_metadata(&metadata)))),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
