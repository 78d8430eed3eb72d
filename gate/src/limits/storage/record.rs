//! The shared record of one tenant: the newest measurement that any VM has received, and the admitted
//! writes that it may not contain.
//!
//! ```text
//!  admitted ─► due WRITE_LANDS_MS later ── response: on disk, due in a moment ──► measured later: removed
//!                       └──────────── no response: may still land ────────► measured later: removed
//! ```
//!
//! VMs receive measurements at different times. A VM with an older notice uses the record.

use std::collections::BTreeMap;

use super::{AdmittedWrite, LEASE_MAX_MS, Measurement, SEEN_MS, WRITE_LANDS_MS};
use crate::http::request::Coordinate;

/// First byte of the record, its layout. A record with another layout counts as absent.
const VERSION: u8 = 2;
/// Bound on the entries of a record, about 40 bytes each: one tenant's writes of a second or two, and
/// those in flight. Beyond it entries are merged, which may count more but never less.
const WRITES_MAX: usize = 256;
/// Bound on the phexts of a record, those written within [`LEASE_MAX_MS`]. A further one replaces the one
/// unused for longest, whose size VMs with an older notice then take from that notice.
const PHEXTS_MAX: usize = 128;
/// Writes whose due times fall into the same interval share an entry.
const IN_FLIGHT_STEP_MS: u64 = 1_000;
const COMPLETED_STEP_MS: u64 = 250;
/// A record further ahead than the skew between VMs' clocks shows that the host's clock stepped back.
const CLOCK_STEP_MS: u64 = 1_000;

/// The record, updated with the notice at hand.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    measured_ms: u64,
    /// Bytes of all files at that time.
    used: u64,
    phexts: Vec<Phext>,
}

#[derive(Debug, PartialEq, Eq)]
struct Phext {
    name: String,
    /// Size in bytes, as measured with the record.
    size: u64,
    /// Time of the last admitted write.
    written_ms: u64,
    writes: Vec<Writes>,
}

/// Writes that fall due in the same interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Writes {
    /// Scroll whose text they replace; `None` if they append.
    replaces: Option<Coordinate>,
    /// Largest growth of the phext: the sum of appends, or the largest replacement.
    growth: u64,
    /// Number of writes without a response yet.
    in_flight: u32,
    /// Measurements at this time or later contain them.
    due_ms: u64,
}

/// The record has no room for another write: too many came at the same moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

impl Record {
    /// Reads the record and applies the notice if it is newer.
    pub(super) fn read(bytes: Option<&[u8]>, measurement: Measurement<'_>, now_ms: u64) -> Self {
        let mut record = bytes.and_then(Self::decode).unwrap_or_default();
        if record.measured_ms > now_ms + CLOCK_STEP_MS {
            record = Self::default();
        }
        if measurement.measured_ms <= record.measured_ms {
            return record;
        }
        record.measured_ms = measurement.measured_ms;
        record.used = measurement.notice.storage_used_bytes;
        record.phexts.retain_mut(|phext| {
            phext.size = measurement.notice.phexts.get(&phext.name).copied().unwrap_or(0);
            phext.writes.retain(|writes| writes.due_ms > measurement.measured_ms);
            !phext.writes.is_empty() || phext.written_ms + LEASE_MAX_MS > now_ms
        });
        record
    }

    /// Bytes of all files in the last measurement.
    pub(super) fn measured(&self) -> u64 {
        self.used
    }

    /// Upper bound on the used bytes, without replacements of `scroll` in `phext`.
    pub(super) fn used(&self, phext: &str, scroll: Option<Coordinate>) -> u64 {
        let growth = |p: &Phext| p.growth(scroll.filter(|_| p.name == phext));
        self.used + self.phexts.iter().map(growth).sum::<u64>()
    }

    /// Size of a phext in the last measurement.
    pub(super) fn measured_phext(&self, measurement: Measurement<'_>, name: &str) -> u64 {
        match self.find(name) {
            Some(phext) => phext.size,
            None => measurement.notice.phexts.get(name).copied().unwrap_or(0),
        }
    }

    /// Upper bound on the size of a phext, without replacements of `scroll`.
    pub(super) fn phext(
        &self,
        measurement: Measurement<'_>,
        name: &str,
        scroll: Option<Coordinate>,
    ) -> u64 {
        let growth = self.find(name).map_or(0, |phext| phext.growth(scroll));
        self.measured_phext(measurement, name) + growth
    }

    /// Returns whether a phext has text, or may have by now.
    pub(super) fn has_text(&self, measurement: Measurement<'_>, name: &str) -> bool {
        self.measured_phext(measurement, name) > 0 || self.find(name).is_some_and(Phext::has_text)
    }

    /// Number of phexts that have text, or may have by now.
    pub(super) fn with_text(&self, measurement: Measurement<'_>) -> usize {
        let measured = &measurement.notice.phexts;
        let added = self.phexts.iter().filter(|phext| {
            phext.has_text() && measured.get(&phext.name).is_none_or(|size| *size == 0)
        });
        measured.values().filter(|size| **size > 0).count() + added.count()
    }

    /// Counts an admitted write.
    pub(super) fn admit(
        &mut self,
        measurement: Measurement<'_>,
        name: &str,
        (replaces, growth): (Option<Coordinate>, u64),
        now_ms: u64,
    ) -> Result<AdmittedWrite, Full> {
        self.make_room(name)?;
        let written = AdmittedWrite {
            replaces,
            growth,
            due_ms: up_to(now_ms + WRITE_LANDS_MS, IN_FLIGHT_STEP_MS),
        };
        let size = self.measured_phext(measurement, name);
        let phext = match self.phexts.iter_mut().position(|phext| phext.name == name) {
            Some(at) => &mut self.phexts[at],
            None => self.phexts.push_mut(Phext {
                name: name.to_owned(),
                size,
                written_ms: now_ms,
                writes: Vec::with_capacity(1),
            }),
        };
        phext.written_ms = now_ms;
        phext.add(Writes { replaces, growth, in_flight: 1, due_ms: written.due_ms });
        Ok(written)
    }

    /// Records that SQ has responded to a write. Returns `false` if the record does not change.
    pub(super) fn completed(&mut self, name: &str, written: &AdmittedWrite, now_ms: u64) -> bool {
        let due_ms = up_to(now_ms + SEEN_MS, COMPLETED_STEP_MS);
        let phext = self.phexts.iter_mut().find(|phext| phext.name == name);
        phext.is_some_and(|phext| phext.completed(written, due_ms))
    }

    fn make_room(&mut self, name: &str) -> Result<(), Full> {
        if self.phexts.len() >= PHEXTS_MAX && self.find(name).is_none() {
            let idle = self.phexts.iter().enumerate().filter(|(_, p)| p.writes.is_empty());
            let oldest = idle.min_by_key(|(_, p)| p.written_ms).map(|(at, _)| at).ok_or(Full)?;
            self.phexts.swap_remove(oldest);
        }
        if self.entries() >= WRITES_MAX {
            self.phexts.iter_mut().for_each(Phext::merge);
        }
        if self.entries() >= WRITES_MAX { Err(Full) } else { Ok(()) }
    }

    fn entries(&self) -> usize {
        self.phexts.iter().map(|phext| phext.writes.len()).sum()
    }

    fn find(&self, name: &str) -> Option<&Phext> {
        self.phexts.iter().find(|phext| phext.name == name)
    }
}

impl Phext {
    fn has_text(&self) -> bool {
        self.size > 0 || !self.writes.is_empty()
    }

    /// Upper bound on the growth, without replacements of `scroll`. Of several replacements of one
    /// scroll only the largest counts.
    fn growth(&self, scroll: Option<Coordinate>) -> u64 {
        let mut replaced = BTreeMap::new();
        let mut sum = 0;
        for writes in &self.writes {
            match writes.replaces {
                None => sum += writes.growth,
                Some(at) if scroll == Some(at) => {}
                Some(at) => {
                    let largest: &mut u64 = replaced.entry(at).or_default();
                    *largest = writes.growth.max(*largest);
                }
            }
        }
        sum + replaced.values().sum::<u64>()
    }

    fn add(&mut self, new: Writes) {
        let same = |w: &&mut Writes| w.replaces == new.replaces && w.due_ms == new.due_ms;
        let Some(writes) = self.writes.iter_mut().find(same) else { return self.writes.push(new) };
        writes.in_flight += new.in_flight;
        writes.growth = match new.replaces {
            Some(_) => writes.growth.max(new.growth),
            None => writes.growth + new.growth,
        };
    }

    fn completed(&mut self, written: &AdmittedWrite, due_ms: u64) -> bool {
        // A merged entry no longer names the scroll.
        let Some(at) = self
            .find_in_flight(written.replaces, written.due_ms)
            .or_else(|| self.find_in_flight(None, written.due_ms))
        else {
            return false;
        };
        if due_ms >= written.due_ms {
            return false;
        }
        let writes = &mut self.writes[at];
        writes.in_flight -= 1;
        if writes.replaces.is_none() {
            writes.growth = writes.growth.saturating_sub(written.growth);
        }
        if writes.in_flight == 0 {
            self.writes.swap_remove(at);
        }
        let AdmittedWrite { replaces, growth, .. } = *written;
        self.add(Writes { replaces, growth, in_flight: 0, due_ms });
        true
    }

    fn find_in_flight(&self, replaces: Option<Coordinate>, due_ms: u64) -> Option<usize> {
        self.writes.iter().position(|writes| {
            writes.replaces == replaces && writes.due_ms == due_ms && writes.in_flight > 0
        })
    }

    /// Merges replacements into appends: fewer entries, and never less growth.
    fn merge(&mut self) {
        for mut writes in std::mem::take(&mut self.writes) {
            if writes.replaces.take().is_some() {
                writes.growth *= u64::from(writes.in_flight.max(1));
            }
            self.add(writes);
        }
    }
}

fn up_to(ms: u64, step_ms: u64) -> u64 {
    ms.div_ceil(step_ms) * step_ms
}

/// Layout, little endian: version, measured, used; for each phext the length of its name, the name,
/// size, written, number of entries; for each entry whether it replaces, the coordinate if so,
/// growth, number in flight, due.
impl Record {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32 + 48 * self.phexts.len() + 40 * self.entries());
        out.push(VERSION);
        out.extend(self.measured_ms.to_le_bytes());
        out.extend(self.used.to_le_bytes());
        for phext in &self.phexts {
            // A name has at most 120 bytes, a record at most WRITES_MAX entries.
            out.push(u8::try_from(phext.name.len()).unwrap_or(u8::MAX));
            out.extend(phext.name.bytes().take(usize::from(u8::MAX)));
            out.extend(phext.size.to_le_bytes());
            out.extend(phext.written_ms.to_le_bytes());
            out.extend(u16::try_from(phext.writes.len()).unwrap_or(u16::MAX).to_le_bytes());
            for writes in &phext.writes {
                out.push(u8::from(writes.replaces.is_some()));
                if let Some(at) = writes.replaces {
                    out.extend(at.parts().iter().flat_map(|part| part.to_le_bytes()));
                }
                out.extend(writes.growth.to_le_bytes());
                out.extend(writes.in_flight.to_le_bytes());
                out.extend(writes.due_ms.to_le_bytes());
            }
        }
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = Rest(bytes);
        if rest.take::<1>()? != [VERSION] {
            return None;
        }
        let mut record =
            Self { measured_ms: rest.read_u64()?, used: rest.read_u64()?, phexts: Vec::new() };
        while !rest.0.is_empty() {
            let [length] = rest.take()?;
            let (name, after) = rest.0.split_at_checked(length.into())?;
            rest.0 = after;
            let name = std::str::from_utf8(name).ok()?.to_owned();
            let size = rest.read_u64()?;
            let written_ms = rest.read_u64()?;
            let entries = u16::from_le_bytes(rest.take()?);
            let mut writes = Vec::with_capacity(entries.into());
            for _ in 0..entries {
                writes.push(rest.writes()?);
            }
            record.phexts.push(Phext { name, size, written_ms, writes });
        }
        Some(record)
    }
}

/// The unread part of an encoded record.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn read_u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn writes(&mut self) -> Option<Writes> {
        let mut replaces = None;
        if self.take()? != [0] {
            let mut parts = [0; 9];
            for part in &mut parts {
                *part = u16::from_le_bytes(self.take()?);
            }
            replaces = Some(Coordinate::new(parts)?);
        }
        let growth = self.read_u64()?;
        let in_flight = u32::from_le_bytes(self.take()?);
        Some(Writes { replaces, growth, in_flight, due_ms: self.read_u64()? })
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn record_round_trips_and_garbage_is_absent() {
        let writes = [None, Coordinate::new([9, 999, 1, 2, 3, 4, 5, 6, 7])]
            .map(|replaces| Writes { replaces, growth: 5, in_flight: 2, due_ms: 77 });
        let phext = |name: &str, writes: &[Writes]| Phext {
            name: name.to_owned(),
            size: 3,
            written_ms: 4,
            writes: writes.to_vec(),
        };
        let phexts = vec![phext("a", &writes), phext("straße", &[])];
        let record = Record { measured_ms: 1, used: 2, phexts };
        let bytes = record.encode();
        assert_eq!(Record::decode(&bytes), Some(record));
        for cut in 0..bytes.len() {
            let _ = Record::decode(&bytes[..cut]);
        }
        assert_eq!(Record::decode(b"\x01rubbish"), None);
        assert_eq!(Record::decode(&bytes[..bytes.len() - 1]), None);
    }
}
