//! The shared record of a bucket: per pair of rate and burst, when it would be full.
//!
//! Two pairs are kept, because VMs learn of changed limits within a second of each other. Every
//! draw is charged to both, each VM is judged by its own: while they disagree they pass together
//! at most the larger burst plus both rates, and nobody can gain by switching back and forth.
//! A pair whose time has passed is a full bucket and is as good as absent, so the record expires
//! by itself.

use protocol::{Limits, TenantId};

use crate::shared::Shared;

/// First byte of a record: the layout. Another one is read as absent.
const VERSION: u8 = 1;
/// Version, then two slots of rate, burst (u32) and full, seen (u64), little endian.
const BYTES: usize = 1 + 2 * SLOT_BYTES;
const SLOT_BYTES: usize = 24;
/// A bucket can't be fuller in debt than its depth; a record further ahead than this was written
/// before the clock stepped back, and gets the debt that it had when it was last looked at. Smaller
/// steps only delay.
const CLOCK_STEP_NS: u64 = 1_000_000_000;

/// Rate and burst in the form that the arithmetic wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Pace {
    pub(super) rate: u32,
    pub(super) burst: u32,
    /// Time in which one token grows, rounded up: never faster than the rate.
    pub(super) token_ns: u64,
}

impl Pace {
    pub(super) fn of(limits: &Limits) -> Self {
        Self::new(limits.requests_per_s, limits.burst)
    }

    fn new(rate: u32, burst: u32) -> Self {
        let rate = rate.max(1);
        Self { rate, burst: burst.max(1), token_ns: 1_000_000_000_u64.div_ceil(u64::from(rate)) }
    }

    /// Time in which an empty bucket fills.
    pub(super) fn depth_ns(self) -> u64 {
        u64::from(self.burst) * self.token_ns
    }

    /// Whole tokens that grow in `ns`, at most the burst.
    pub(super) fn tokens_within(self, ns: u64) -> u32 {
        u32::try_from(ns / self.token_ns).unwrap_or(u32::MAX).min(self.burst)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot {
    pace: Pace,
    /// When the bucket is full.
    full_ns: u64,
    /// When a VM with these limits last looked.
    seen_ns: u64,
}

/// The record of one tenant; `slots[0]` is the one selected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Record {
    slots: [Option<Slot>; 2],
}

impl Record {
    pub(super) fn key(tenant: &TenantId) -> String {
        format!("bucket/{tenant}")
    }

    /// The record and the version to write it with.
    pub(super) fn read(shared: &dyn Shared, key: &str) -> (Self, Option<u32>) {
        match shared.get(key) {
            Some((bytes, version)) => (Self::decode(&bytes), Some(version)),
            None => (Self::default(), None),
        }
    }

    fn decode(bytes: &[u8]) -> Self {
        let mut record = Self::default();
        if bytes.len() != BYTES || bytes.first() != Some(&VERSION) {
            return record;
        }
        for (slot, chunk) in record.slots.iter_mut().zip(bytes[1..].chunks_exact(SLOT_BYTES)) {
            let burst = word(chunk, 4);
            if burst > 0 {
                let pace = Pace::new(word(chunk, 0), burst);
                let (full_ns, seen_ns) = (long(chunk, 8), long(chunk, 16));
                *slot = Some(Slot { pace, full_ns, seen_ns });
            }
        }
        record
    }

    pub(super) fn encode(&self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[0] = VERSION;
        for (slot, chunk) in self.slots.iter().zip(bytes[1..].chunks_exact_mut(SLOT_BYTES)) {
            if let Some(slot) = slot {
                chunk[..4].copy_from_slice(&slot.pace.rate.to_le_bytes());
                chunk[4..8].copy_from_slice(&slot.pace.burst.to_le_bytes());
                chunk[8..16].copy_from_slice(&slot.full_ns.to_le_bytes());
                chunk[16..].copy_from_slice(&slot.seen_ns.to_le_bytes());
            }
        }
        bytes
    }

    /// Whether there is a bucket of this pace: tokens drawn from another are not put back.
    pub(super) fn knows(&self, pace: Pace) -> bool {
        self.slots.iter().flatten().any(|s| s.pace == pace)
    }

    /// Makes the slot of `pace` the first one. A new one starts with the debt in tokens that the
    /// others have: an empty bucket stays empty and fills at the new rate. `true`: a clock that went
    /// back was made up for, which must be written even if nothing is drawn, or the bucket would
    /// stay empty until the clock has caught up.
    pub(super) fn select(&mut self, pace: Pace, now_ns: u64) -> bool {
        if self.slots[1].is_some_and(|s| s.pace == pace) {
            self.slots.swap(0, 1);
        }
        if self.slots[0].is_none_or(|s| s.pace != pace) {
            let debt = self.slots.iter().flatten().map(|s| s.debt(now_ns)).max().unwrap_or(0);
            let owed_ns = u64::from(debt.min(pace.burst)) * pace.token_ns;
            // The slot seen last stays; limits that nobody has any more go.
            let seen = |slot: &Option<Slot>| slot.map_or(0, |s| s.seen_ns);
            if seen(&self.slots[0]) >= seen(&self.slots[1]) {
                self.slots.swap(0, 1);
            }
            let full_ns = now_ns.saturating_add(owed_ns);
            self.slots[0] = Some(Slot { pace, full_ns, seen_ns: now_ns });
        }
        let mut repaired = false;
        for slot in self.slots.iter_mut().flatten() {
            let most_ns = now_ns.saturating_add(slot.pace.depth_ns());
            if slot.full_ns > most_ns.saturating_add(CLOCK_STEP_NS) {
                let owed_ns = slot.full_ns.saturating_sub(slot.seen_ns);
                slot.full_ns = now_ns.saturating_add(owed_ns).min(most_ns);
                slot.seen_ns = now_ns;
                repaired = true;
            }
        }
        if let Some(slot) = &mut self.slots[0] {
            slot.seen_ns = now_ns;
        }
        repaired
    }

    /// Tokens that the selected bucket has.
    pub(super) fn available(&self, now_ns: u64) -> u32 {
        self.slots[0].map_or(0, |s| {
            let owed_ns = s.full_ns.saturating_sub(now_ns);
            s.pace.tokens_within(s.pace.depth_ns().saturating_sub(owed_ns))
        })
    }

    /// Time until the selected bucket has `tokens`.
    pub(super) fn wait_ns(&self, tokens: u32, now_ns: u64) -> u64 {
        self.slots[0].map_or(0, |s| {
            (s.full_ns.max(now_ns) + u64::from(tokens) * s.pace.token_ns)
                .saturating_sub(now_ns + s.pace.depth_ns())
        })
    }

    /// When the selected bucket is full.
    pub(super) fn full_ns(&self) -> u64 {
        self.slots[0].map_or(0, |s| s.full_ns)
    }

    /// Charges `tokens` to both buckets; the one not selected can't become more than empty.
    pub(super) fn draw(&mut self, tokens: u32, now_ns: u64) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let Some(slot) = slot else { continue };
            let cost_ns = u64::from(tokens) * slot.pace.token_ns;
            let full_ns = slot.full_ns.max(now_ns).saturating_add(cost_ns);
            let most_ns = now_ns.saturating_add(slot.pace.depth_ns()).max(slot.full_ns);
            slot.full_ns = if index == 0 { full_ns } else { full_ns.min(most_ns) };
        }
    }

    /// Gives back `tokens` drawn and not spent, to the selected bucket only: it alone was sure to
    /// be charged for all of them.
    pub(super) fn put_back(&mut self, tokens: u32, now_ns: u64) {
        if let Some(slot) = &mut self.slots[0] {
            let cost_ns = u64::from(tokens) * slot.pace.token_ns;
            slot.full_ns = slot.full_ns.saturating_sub(cost_ns).max(slot.full_ns.min(now_ns));
        }
    }
}

impl Slot {
    /// Tokens that are missing, rounded up.
    fn debt(&self, now_ns: u64) -> u32 {
        let owed_ns = self.full_ns.saturating_sub(now_ns);
        u32::try_from(owed_ns.div_ceil(self.pace.token_ns)).unwrap_or(u32::MAX)
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}
