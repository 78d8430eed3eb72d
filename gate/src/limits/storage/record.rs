//! The shared record of one tenant: the newest measurement that any VM has had, and the writes that
//! were let through and may not be in it.
//!
//! ```text
//!  let_through ─► due WRITE_LANDS_MS later ── answered: on disk, due in a moment ──► measured after that: gone
//!                          └──────────── no answer: may still land ──────────► measured after that: gone
//! ```
//!
//! VMs hear of measurements at different times. One with an older notice judges by the record.

use std::collections::BTreeMap;

use super::{Known, LEASE_MAX_MS, SEEN_MS, WRITE_LANDS_MS, Written};
use crate::http::request::Coordinate;

/// First byte of the record: the layout. Another one is read as absent.
const VERSION: u8 = 2;
/// Entries of a record, about 40 bytes each: what a tenant has let through within a second or two,
/// and what is on its way. One more is folded into others, which counts more and never less.
const WRITES_MAX: usize = 256;
/// Phexts written within [`LEASE_MAX_MS`]. One more takes the place of the longest unused, whose size VMs
/// with an older notice then take from that.
const PHEXTS_MAX: usize = 128;
/// Writes are put together when they fall due within the same so many milliseconds.
const ON_ITS_WAY_MS: u64 = 1_000;
const ANSWERED_MS: u64 = 250;
/// The record is further ahead than VMs' clocks can be apart: the host's clock stepped back.
const CLOCK_STEP_MS: u64 = 1_000;

/// The record, brought up to what is known now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    measured_ms: u64,
    /// All files, as measured then.
    used: u64,
    phexts: Vec<Phext>,
}

#[derive(Debug, PartialEq, Eq)]
struct Phext {
    name: String,
    /// As measured with the record.
    size: u64,
    /// When a write was last let through.
    written_ms: u64,
    writes: Vec<Writes>,
}

/// Writes that fall due together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Writes {
    /// The scroll whose text they replace; `None`: they add to the phext.
    replaces: Option<Coordinate>,
    /// By how much the phext grows at most: by all of them, or by the largest that replaces.
    growth: u64,
    /// How many of them are on their way.
    on_their_way: u32,
    /// A measurement of this time or later contains them.
    due_ms: u64,
}

/// Too many writes at the same moment: there is no room to count another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

impl Record {
    /// Reads the record and takes over what a newer measurement says.
    pub(super) fn read(bytes: Option<&[u8]>, known: Known<'_>, now_ms: u64) -> Self {
        let mut record = bytes.and_then(Self::decode).unwrap_or_default();
        if record.measured_ms > now_ms + CLOCK_STEP_MS {
            record = Self::default();
        }
        if known.measured_ms <= record.measured_ms {
            return record;
        }
        record.measured_ms = known.measured_ms;
        record.used = known.notice.storage_used_bytes;
        record.phexts.retain_mut(|phext| {
            phext.size = known.notice.phexts.get(&phext.name).copied().unwrap_or(0);
            phext.writes.retain(|writes| writes.due_ms > known.measured_ms);
            !phext.writes.is_empty() || phext.written_ms + LEASE_MAX_MS > now_ms
        });
        record
    }

    /// As measured last.
    pub(super) fn measured(&self) -> u64 {
        self.used
    }

    /// The most that the tenant can use now, but for what replaces `scroll` of `phext`.
    pub(super) fn used(&self, phext: &str, scroll: Option<Coordinate>) -> u64 {
        let growth = |p: &Phext| p.growth(scroll.filter(|_| p.name == phext));
        self.used + self.phexts.iter().map(growth).sum::<u64>()
    }

    /// What a phext was measured as last.
    pub(super) fn measured_phext(&self, known: Known<'_>, name: &str) -> u64 {
        let told = || known.notice.phexts.get(name).copied().unwrap_or(0);
        self.find(name).map_or_else(told, |phext| phext.size)
    }

    /// The most that a phext can have now, but for what replaces `scroll`.
    pub(super) fn phext(&self, known: Known<'_>, name: &str, scroll: Option<Coordinate>) -> u64 {
        let growth = self.find(name).map_or(0, |phext| phext.growth(scroll));
        self.measured_phext(known, name) + growth
    }

    /// Whether a phext has text, or may have by now.
    pub(super) fn has_text(&self, known: Known<'_>, name: &str) -> bool {
        self.measured_phext(known, name) > 0 || self.find(name).is_some_and(Phext::has_text)
    }

    /// How many phexts have text, or may have by now.
    pub(super) fn with_text(&self, known: Known<'_>) -> usize {
        let measured = known.notice.phexts.iter().filter(|(_, size)| **size > 0).count();
        let told = |phext: &&Phext| known.notice.phexts.get(&phext.name).is_some_and(|s| *s > 0);
        measured + self.phexts.iter().filter(|p| p.has_text() && !told(p)).count()
    }

    /// Counts a write that is let through.
    pub(super) fn let_through(
        &mut self,
        known: Known<'_>,
        name: &str,
        (replaces, growth): (Option<Coordinate>, u64),
        now_ms: u64,
    ) -> Result<Written, Full> {
        self.make_room(name)?;
        let written =
            Written { replaces, growth, due_ms: up_to(now_ms + WRITE_LANDS_MS, ON_ITS_WAY_MS) };
        let size = self.measured_phext(known, name);
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
        phext.add(Writes { replaces, growth, on_their_way: 1, due_ms: written.due_ms });
        Ok(written)
    }

    /// SQ has answered a write: it is on disk. `false`: nothing is left to note.
    pub(super) fn answered(&mut self, name: &str, written: &Written, now_ms: u64) -> bool {
        let due_ms = up_to(now_ms + SEEN_MS, ANSWERED_MS);
        let phext = self.phexts.iter_mut().find(|phext| phext.name == name);
        phext.is_some_and(|phext| phext.answered(written, due_ms))
    }

    fn make_room(&mut self, name: &str) -> Result<(), Full> {
        if self.phexts.len() >= PHEXTS_MAX && self.find(name).is_none() {
            let idle = self.phexts.iter().enumerate().filter(|(_, p)| p.writes.is_empty());
            let oldest = idle.min_by_key(|(_, p)| p.written_ms).map(|(at, _)| at).ok_or(Full)?;
            self.phexts.swap_remove(oldest);
        }
        if self.entries() >= WRITES_MAX {
            self.phexts.iter_mut().for_each(Phext::fold);
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

    /// By how much it can have grown, but for what replaces `scroll`. Of several texts that replace
    /// one scroll, one stays.
    fn growth(&self, scroll: Option<Coordinate>) -> u64 {
        let mut replaced = BTreeMap::new();
        let mut sum = 0;
        for writes in &self.writes {
            match writes.replaces {
                None => sum += writes.growth,
                Some(at) if scroll == Some(at) => {}
                Some(at) => {
                    let most: &mut u64 = replaced.entry(at).or_default();
                    *most = writes.growth.max(*most);
                }
            }
        }
        sum + replaced.values().sum::<u64>()
    }

    fn add(&mut self, new: Writes) {
        let same = |w: &&mut Writes| w.replaces == new.replaces && w.due_ms == new.due_ms;
        let Some(writes) = self.writes.iter_mut().find(same) else { return self.writes.push(new) };
        writes.on_their_way += new.on_their_way;
        writes.growth = match new.replaces {
            Some(_) => writes.growth.max(new.growth),
            None => writes.growth + new.growth,
        };
    }

    fn answered(&mut self, written: &Written, due_ms: u64) -> bool {
        let found = |replaces| {
            let on_its_way = |w: &Writes| w.replaces == replaces && w.on_their_way > 0;
            self.writes.iter().position(|w| w.due_ms == written.due_ms && on_its_way(w))
        };
        // It may have been folded.
        let Some(at) = found(written.replaces).or_else(|| found(None)) else { return false };
        if due_ms >= written.due_ms {
            return false;
        }
        let writes = &mut self.writes[at];
        writes.on_their_way -= 1;
        if writes.replaces.is_none() {
            writes.growth = writes.growth.saturating_sub(written.growth);
        }
        if writes.on_their_way == 0 {
            self.writes.swap_remove(at);
        }
        let Written { replaces, growth, .. } = *written;
        self.add(Writes { replaces, growth, on_their_way: 0, due_ms });
        true
    }

    /// Takes what replaces for what adds: fewer entries, and never less growth.
    fn fold(&mut self) {
        for mut writes in std::mem::take(&mut self.writes) {
            if writes.replaces.take().is_some() {
                writes.growth *= u64::from(writes.on_their_way.max(1));
            }
            self.add(writes);
        }
    }
}

fn up_to(ms: u64, step_ms: u64) -> u64 {
    ms.div_ceil(step_ms) * step_ms
}

/// Little endian: version, measured, used; then for each phext its name behind a length, size,
/// written, number of entries; then for each entry whether it replaces, the coordinate if so, growth,
/// number on their way, due.
impl Record {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32 + 48 * self.phexts.len() + 40 * self.entries());
        out.push(VERSION);
        out.extend(self.measured_ms.to_le_bytes());
        out.extend(self.used.to_le_bytes());
        for phext in &self.phexts {
            // Names have 120 bytes at most, and there are no more entries than WRITES_MAX.
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
                out.extend(writes.on_their_way.to_le_bytes());
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
        let mut record = Self { measured_ms: rest.long()?, used: rest.long()?, phexts: Vec::new() };
        while !rest.0.is_empty() {
            let [length] = rest.take()?;
            let (name, after) = rest.0.split_at_checked(length.into())?;
            rest.0 = after;
            let name = std::str::from_utf8(name).ok()?.to_owned();
            let (size, written_ms) = (rest.long()?, rest.long()?);
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

/// What is left to read.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn long(&mut self) -> Option<u64> {
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
        let growth = self.long()?;
        let on_their_way = u32::from_le_bytes(self.take()?);
        Some(Writes { replaces, growth, on_their_way, due_ms: self.long()? })
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_rubbish_as_none() {
        let writes = [None, Coordinate::new([9, 999, 1, 2, 3, 4, 5, 6, 7])]
            .map(|replaces| Writes { replaces, growth: 5, on_their_way: 2, due_ms: 77 });
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
