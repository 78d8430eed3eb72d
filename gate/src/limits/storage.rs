//! Storage, decided before a write reaches SQ, for SQ itself answers 200 and truncates.
//!
//! The orchestrator measures the tenant's files and the notice says what it found. Between two
//! measurements the gateway counts on, in one record per tenant that all VMs share (`record.rs`), and
//! always upwards: an append grows its phext by its text and the delimiters that its coordinate may
//! need; a replacement may grow it by as much and may not grow it at all, for the old text is not
//! known here. What is used is at most
//!
//! ```text
//! what was measured last + what was let through and may not have been on disk at that time
//! ```
//!
//! A write is let through, and counted, when all of its body has come: an upload may take a minute,
//! and what was measured at its head is old then. Its head is judged too, so that what can't fit is
//! refused before it is sent. From its end on it may come to the disk for [`WRITE_LANDS_MS`], unless SQ
//! answers: then it is there.
//!
//! An append passes if it fits. A replacement passes if everything *else* fits. So all VMs of an Envoy
//! together overshoot a cap by at most one body, and the next measurement shows it. A refusal that
//! rests on counting and not on measuring says Retry-After: 1.
//!
//! Reads and deletes pass, but two things hold for every request, because SQ makes a file for any
//! name it is asked about: a host below its floor gets no mutation at all (SQ rewrites the whole
//! file, a delete too), and a name that is not known is refused once the tenant has twice as many
//! files as it may have phexts (the empty ones are removed while it sleeps). As reads touch no
//! shared data, they may pass that by what the rate limit lets through between two notices.
//!
//! Several Envoys share only the measurements: none knows what the others have let through since. One
//! that judges by a measurement of a moment ago lets through what fitted then, so together they may
//! overshoot by what the others wrote since, a second or two while they are in use. The host's floor
//! stands behind that; a hard limit per tenant only where the operator has set one up.

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

/// The most delimiters that one scroll adds: nine dimensions, 998 steps each (measured: 8 KB).
pub(crate) const DELIMITERS_BYTES: u64 = 9 * 998;
/// What SQ has answered is in any measurement that begins so much later: a VM's clock is a tick old.
const SEEN_MS: u64 = 100;

/// What a request does to its phext.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing; but SQ makes an empty file for a new name.
    Read,
    /// Takes a scroll away.
    Delete,
    /// Adds text (`insert`).
    Append {
        /// Bytes of text and delimiters.
        growth: u64,
    },
    /// Puts text in place of a scroll (`update`).
    Replace {
        /// Which.
        at: Coordinate,
        /// Bytes of text and delimiters.
        growth: u64,
    },
}

/// What is known of a tenant's storage: a notice and the time before which it was not measured.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// As told with a lease or a usage answer.
    pub notice: &'a TenantNotice,
    /// When it was measured, at the earliest: when the question was sent, less
    /// `storage_age_ms`. Milliseconds since 1970.
    pub measured_ms: u64,
}

impl<'a> Known<'a> {
    /// A notice that came as the answer to a question sent at `asked_ms`.
    pub(crate) fn new(notice: &'a TenantNotice, asked_ms: u64) -> Self {
        Self { notice, measured_ms: asked_ms.saturating_sub(notice.storage_age_ms) }
    }
}

/// One request to be judged.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Whose.
    pub tenant: &'a TenantId,
    /// Its limits.
    pub limits: &'a Limits,
    /// Which phext.
    pub phext: &'a str,
    /// What becomes of it.
    pub change: Change,
}

/// A write that was let through: what to say when SQ has answered it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    replaces: Option<Coordinate>,
    growth: u64,
    due_ms: u64,
}

/// Whether a request would fit. Counts nothing: its body is still to come.
pub(crate) fn check(
    asked: &Asked<'_>,
    known: Known<'_>,
    now_ms: u64,
    shared: &dyn Shared,
) -> Result<(), Refusal> {
    let Some(write) = asked.write(known)? else { return Ok(()) };
    let bytes = shared.get(&key(asked.tenant)).map(|(bytes, _)| bytes);
    write.judge(&Record::read(bytes.as_deref(), known, now_ms), known, asked)
}

/// Whether a request fits, and if it writes: counts it.
pub fn let_through(
    asked: &Asked<'_>,
    known: Known<'_>,
    now_ms: u64,
    shared: &mut dyn Shared,
) -> Result<Option<Written>, Refusal> {
    let Some(write) = asked.write(known)? else { return Ok(None) };
    let mut judged = Err(too_many_writes());
    let counted = shared::update(shared, &key(asked.tenant), |old| {
        let mut record = Record::read(old, known, now_ms);
        judged = write.judge(&record, known, asked).and_then(|()| {
            let change = (write.replaces, write.growth);
            let written = record.let_through(known, asked.phext, change, now_ms);
            written.map_err(|_full| too_many_writes())
        });
        judged.is_ok().then(|| record.encode())
    });
    if counted { judged.map(Some) } else { Err(too_many_writes()) }
}

/// SQ has answered a write: it is on disk, and the next measurement contains it. Should other VMs
/// be in the way, it counts for [`WRITE_LANDS_MS`] as if it were not.
pub fn answered(
    tenant: &TenantId,
    phext: &str,
    written: &Written,
    now_ms: u64,
    shared: &mut dyn Shared,
) {
    let nothing = TenantNotice::default();
    let known = Known { notice: &nothing, measured_ms: 0 };
    shared::update(shared, &key(tenant), |old| {
        let mut record = Record::read(Some(old?), known, now_ms);
        record.answered(phext, written, now_ms).then(|| record.encode())
    });
}

fn key(tenant: &TenantId) -> String {
    format!("storage/{tenant}")
}

/// By how much a request may make its phext grow.
struct Write {
    /// The scroll whose text it replaces.
    replaces: Option<Coordinate>,
    /// Its text, delimiters and what a scroll weighs.
    growth: u64,
}

impl Asked<'_> {
    /// What is written, of a request that is not refused for what it is; `None`: nothing.
    fn write(&self, known: Known<'_>) -> Result<Option<Write>, Refusal> {
        let notice = known.notice;
        if notice.host_full && self.change != Change::Read {
            return Err(host_full());
        }
        let (growth, replaces) = match self.change {
            Change::Read | Change::Delete => {
                return check_name(notice, self.limits, self.phext).map(|()| None);
            }
            Change::Append { growth } => (growth, None),
            Change::Replace { at, growth } => (growth, Some(at)),
        };
        if growth > phext_most(self.limits) {
            return Err(phext_too_large(growth, self.limits, false));
        }
        Ok(Some(Write { replaces, growth: growth + SCROLL_BYTES }))
    }
}

impl Write {
    fn judge(&self, record: &Record, known: Known<'_>, asked: &Asked<'_>) -> Result<(), Refusal> {
        let Asked { limits, phext: name, .. } = *asked;
        // A replacement's own growth is in doubt, and so is what it is thought to have added before.
        let own = if self.replaces.is_some() { 0 } else { self.growth };
        let used = record.used(name, self.replaces);
        if used + own > limits.storage_bytes {
            let by_counting = record.measured() + own <= limits.storage_bytes;
            return Err(storage_full(used, limits, by_counting));
        }
        let phext = record.phext(known, name, self.replaces);
        let most = phext_most(limits) + SCROLL_BYTES;
        if phext + own > most {
            let by_counting = record.measured_phext(known, name) + own <= most;
            return Err(phext_too_large(phext + own, limits, by_counting));
        }
        if !record.has_text(known, name) {
            // One more of the phexts that have text.
            let count = u64::try_from(record.with_text(known)).unwrap_or(u64::MAX);
            if count >= u64::from(limits.phexts) {
                return Err(too_many(count, limits));
            }
        }
        check_name(known.notice, limits, name)
    }
}

/// The largest phext of text without delimiters may lie at the farthest coordinate.
fn phext_most(limits: &Limits) -> u64 {
    limits.phext_max_bytes() + DELIMITERS_BYTES
}

fn too_many_writes() -> Refusal {
    let detail = "Too many writes came at the same moment. Send it again.";
    Refusal::new(RefusalKind::RateLimited, detail).retry_after_s(1)
}

/// A name that SQ would make a new file for is refused when there are far too many files.
fn check_name(notice: &TenantNotice, limits: &Limits, phext: &str) -> Result<(), Refusal> {
    let files = u64::try_from(notice.phexts.len()).unwrap_or(u64::MAX);
    let full = files >= 2 * u64::from(limits.phexts) && !notice.phexts.contains_key(phext);
    if full { Err(too_many(files, limits)) } else { Ok(()) }
}

fn host_full() -> Refusal {
    let detail = "The gateway's disk is nearly full, so nothing may be changed until its operator \
                  has made room. Reading works.";
    Refusal::new(RefusalKind::HostFull, detail).retry_after_s(60)
}

fn storage_full(used: u64, limits: &Limits, by_counting: bool) -> Refusal {
    let cap = limits.storage_bytes;
    let detail = format!(
        "{used} of {cap} bytes are used and this write might not fit. Delete scrolls or ask for a \
         higher tier."
    );
    let refusal = Refusal::new(RefusalKind::StorageFull, detail).used_and_cap(used, cap);
    // Counted, not yet measured: a moment later it may fit.
    if by_counting { refusal.retry_after_s(1) } else { refusal }
}

fn phext_too_large(size: u64, limits: &Limits, by_counting: bool) -> Refusal {
    let cap = limits.phext_max_bytes();
    let detail = format!(
        "The phext might become {size} bytes large; {cap} is the most that this tier's memory can \
         hold. Use another phext or ask for a higher tier."
    );
    let refusal =
        Refusal::new(RefusalKind::PhextTooLarge, detail).parameter("p").used_and_cap(size, cap);
    if by_counting { refusal.retry_after_s(1) } else { refusal }
}

fn too_many(count: u64, limits: &Limits) -> Refusal {
    let cap = u64::from(limits.phexts);
    let detail = format!(
        "There is no phext of this name, and {cap} is the most that there may be. Use one that is \
         there or ask for a higher tier. Phexts that only reading has made are empty and are \
         removed while the database sleeps."
    );
    Refusal::new(RefusalKind::TooManyPhexts, detail).parameter("p").used_and_cap(count, cap)
}
