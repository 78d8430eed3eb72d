//! Enforces storage limits before a write reaches SQ, which would respond 200 and truncate its file.
//!
//! The orchestrator measures a tenant's files and reports the sizes in the notice. Between two
//! measurements the gate adds up admitted writes in one record per tenant, which all VMs share (see
//! `record.rs` of this folder). It only ever adds: an append grows its phext by its text and the
//! delimiters that its coordinate may need; a replacement may grow it by as much, or not at all,
//! because the gate does not know the old text. The bound on the used storage is
//!
//! ```text
//! last measurement + writes admitted that may not have been on disk at that time
//! ```
//!
//! A write is admitted, and counted, when its body is complete: an upload may take a minute, and the
//! measurement at its head is old by then. Its head is checked too, so that a write that cannot fit
//! is refused before it is sent. After its end it may reach the disk within [`WRITE_LANDS_MS`], unless SQ
//! responds, which means that it has.
//!
//! An append passes if it fits. A replacement passes if everything *else* fits. All VMs of an Envoy
//! together therefore exceed a cap by at most one body, and the next measurement shows it. A refusal
//! that rests on counting rather than on a measurement has Retry-After: 1.
//!
//! Reads and deletes pass, with two exceptions, because SQ creates a file for any name in a request:
//! a host below its floor accepts no mutation (SQ rewrites the whole file even for a delete), and an
//! unknown name is refused once the tenant has twice as many files as it may have phexts (empty ones
//! are removed at the next stop). Reads touch no shared data, so they may exceed that by what the
//! rate limit passes between two notices.
//!
//! Several Envoys share only the measurements; none knows what the others have admitted since.
//! Together they may exceed a cap by the others' writes since the measurement in use, which is a
//! second or two old. The host's floor protects against that; a hard limit per tenant exists only
//! where the operator has set one up.

use protocol::deadlines::{LEASE_MAX_MS, WRITE_LANDS_MS};
use protocol::limits::SCROLL_BYTES;
use protocol::{Limits, TenantId, TenantNotice};

use crate::http::refusal::{Refusal, RefusalKind};
use crate::http::request::Coordinate;
use crate::shared::{self, Shared};

mod record;
#[cfg(test)]
mod tests;

use record::Record;

/// Largest number of delimiters that one scroll adds: nine dimensions, 998 steps each (measured:
/// 8 kB).
pub(crate) const DELIMITERS_BYTES: u64 = 9 * 998;
/// A completed write is part of every measurement that begins this much later: a VM's clock may be
/// one tick old.
const SEEN_MS: u64 = 100;

/// The effect of a request on its phext.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// No effect, except that SQ creates an empty file for a new name.
    Read,
    /// Removes a scroll.
    Delete,
    /// Adds text (`insert`).
    Append {
        /// Bytes of text and delimiters.
        growth: u64,
    },
    /// Replaces a scroll's text (`update`).
    Replace {
        /// Coordinate of the scroll.
        at: Coordinate,
        /// Bytes of text and delimiters.
        growth: u64,
    },
}

/// A tenant's notice, and the earliest time at which its storage may have been measured.
#[derive(Debug, Clone, Copy)]
pub struct Measurement<'a> {
    /// From a lease or usage response.
    pub notice: &'a TenantNotice,
    /// Earliest time of the measurement: when the request for the notice was sent, less
    /// `storage_age_ms`. Milliseconds since 1970.
    pub measured_ms: u64,
}

impl<'a> Measurement<'a> {
    /// Wraps the notice from the response to a request that was sent at `asked_ms`.
    pub(crate) fn new(notice: &'a TenantNotice, asked_ms: u64) -> Self {
        Self { notice, measured_ms: asked_ms.saturating_sub(notice.storage_age_ms) }
    }
}

/// A request to check.
#[derive(Debug, Clone, Copy)]
pub struct StorageRequest<'a> {
    /// The tenant that sent it.
    pub tenant: &'a TenantId,
    /// The tenant's limits.
    pub limits: &'a Limits,
    /// Name of the phext.
    pub phext: &'a str,
    /// Effect on the phext.
    pub change: Change,
}

/// An admitted write. Report it with [`completed`] when SQ has responded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdmittedWrite {
    replaces: Option<Coordinate>,
    growth: u64,
    due_ms: u64,
}

/// Checks whether a request would fit, without counting it: its body has not arrived yet.
pub(crate) fn check(
    request: &StorageRequest<'_>,
    measurement: Measurement<'_>,
    now_ms: u64,
    shared: &dyn Shared,
) -> Result<(), Refusal> {
    let Some(write) = request.write(measurement)? else { return Ok(()) };
    let bytes = shared.get(&key(request.tenant)).map(|(bytes, _)| bytes);
    write.judge(&Record::read(bytes.as_deref(), measurement, now_ms), measurement, request)
}

/// Checks whether a request fits and, if it writes, counts it.
pub fn admit(
    request: &StorageRequest<'_>,
    measurement: Measurement<'_>,
    now_ms: u64,
    shared: &mut dyn Shared,
) -> Result<Option<AdmittedWrite>, Refusal> {
    let Some(write) = request.write(measurement)? else { return Ok(None) };
    let mut judged = Err(Refusal::too_many_writes());
    let counted = shared::update(shared, &key(request.tenant), |old| {
        let mut record = Record::read(old, measurement, now_ms);
        judged = write.judge(&record, measurement, request).and_then(|()| {
            let change = (write.replaces, write.growth);
            let written = record.admit(measurement, request.phext, change, now_ms);
            written.map_err(|_full| Refusal::too_many_writes())
        });
        judged.is_ok().then(|| record.encode())
    });
    if counted { judged.map(Some) } else { Err(Refusal::too_many_writes()) }
}

/// Records that SQ has responded to a write: it is on disk, and the next measurement contains it. If
/// other VMs' updates win every time, the write counts for [`WRITE_LANDS_MS`] as if there were no response.
pub fn completed(
    tenant: &TenantId,
    phext: &str,
    written: &AdmittedWrite,
    now_ms: u64,
    shared: &mut dyn Shared,
) {
    let empty = TenantNotice::default();
    let measurement = Measurement { notice: &empty, measured_ms: 0 };
    shared::update(shared, &key(tenant), |old| {
        let mut record = Record::read(Some(old?), measurement, now_ms);
        record.completed(phext, written, now_ms).then(|| record.encode())
    });
}

fn key(tenant: &TenantId) -> String {
    format!("storage/{tenant}")
}

/// Growth that a write may cause.
struct Write {
    /// Scroll whose text it replaces; `None` if it appends.
    replaces: Option<Coordinate>,
    /// Bytes of its text and delimiters, and the minimum weight of a scroll.
    growth: u64,
}

impl StorageRequest<'_> {
    /// Checks the request on its own. Returns the growth if it writes.
    fn write(&self, measurement: Measurement<'_>) -> Result<Option<Write>, Refusal> {
        let notice = measurement.notice;
        if notice.host_full && self.change != Change::Read {
            return Err(Refusal::new(RefusalKind::HostFull));
        }
        let (growth, replaces) = match self.change {
            Change::Read | Change::Delete => {
                return check_name(notice, self.limits, self.phext).map(|()| None);
            }
            Change::Append { growth } => (growth, None),
            Change::Replace { at, growth } => (growth, Some(at)),
        };
        if growth > phext_bound(self.limits) {
            return Err(phext_too_large(growth, self.limits, false));
        }
        Ok(Some(Write { replaces, growth: growth + SCROLL_BYTES }))
    }
}

impl Write {
    fn judge(
        &self,
        record: &Record,
        measurement: Measurement<'_>,
        request: &StorageRequest<'_>,
    ) -> Result<(), Refusal> {
        let StorageRequest { limits, phext: name, .. } = *request;
        // A replacement may not grow its phext at all, so its own growth and that of earlier
        // replacements of the same scroll are left out.
        let own = if self.replaces.is_some() { 0 } else { self.growth };
        let used = record.used(name, self.replaces);
        if used + own > limits.storage_bytes {
            let by_counting = record.measured() + own <= limits.storage_bytes;
            return Err(storage_full(used, limits, by_counting));
        }
        let phext = record.phext(measurement, name, self.replaces);
        let bound = phext_bound(limits) + SCROLL_BYTES;
        if phext + own > bound {
            let by_counting = record.measured_phext(measurement, name) + own <= bound;
            return Err(phext_too_large(phext + own, limits, by_counting));
        }
        if !record.has_text(measurement, name) {
            // This write would add a phext with text.
            let count = u64::try_from(record.with_text(measurement)).unwrap_or(u64::MAX);
            if count >= u64::from(limits.phexts) {
                return Err(too_many(count, limits));
            }
        }
        check_name(measurement.notice, limits, name)
    }
}

/// Cap on a phext's file. The largest text without delimiters may lie at the farthest coordinate.
fn phext_bound(limits: &Limits) -> u64 {
    limits.phext_max_bytes() + DELIMITERS_BYTES
}

/// Refuses a name for which SQ would create a file if there are far too many files.
fn check_name(notice: &TenantNotice, limits: &Limits, phext: &str) -> Result<(), Refusal> {
    let files = u64::try_from(notice.phexts.len()).unwrap_or(u64::MAX);
    let full = files >= 2 * u64::from(limits.phexts) && !notice.phexts.contains_key(phext);
    if full { Err(too_many(files, limits)) } else { Ok(()) }
}

fn storage_full(used: u64, limits: &Limits, by_counting: bool) -> Refusal {
    retry_if_counted(Refusal::storage_full(used, limits.storage_bytes), by_counting)
}

fn phext_too_large(size: u64, limits: &Limits, by_counting: bool) -> Refusal {
    retry_if_counted(Refusal::phext_too_large(size, limits.phext_max_bytes()), by_counting)
}

/// A write refused by counters, not by a measurement, may fit a moment later.
fn retry_if_counted(refusal: Refusal, by_counting: bool) -> Refusal {
    if by_counting { refusal.retry_after_s(1) } else { refusal }
}

fn too_many(count: u64, limits: &Limits) -> Refusal {
    Refusal::too_many_phexts(count, u64::from(limits.phexts))
}
