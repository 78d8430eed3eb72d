//! The shared record of a bucket: for each pair of rate and burst, the time at which it is full.
//!
//! It has room for two pairs, because VMs learn of changed limits within a second of each other.
//! Every draw is charged to both, and each VM reads its own. While they disagree, they pass together
//! at most the larger burst plus both rates, and switching back and forth gains nothing. A pair
//! whose time has passed is a full bucket, which equals an absent one, so records need no expiry.

use protocol::limits::DEBT_MAX_S;
use protocol::time::SECOND_NS;
use protocol::{Limits, TenantId};

use crate::shared::Shared;

/// First byte of a record, its layout. A record with another layout counts as absent.
const VERSION: u8 = 1;
/// Version, then two entries of rate, burst (u32) and full, seen (u64), little endian.
const BYTES: usize = 1 + 2 * ENTRY_BYTES;
const ENTRY_BYTES: usize = 24;
/// A record that was read, or is full, further ahead than any record can be by more than this was
/// written before the clock stepped back; it keeps the debt that it had when it was last read.
/// Smaller steps only delay.
const CLOCK_STEP_NS: u64 = SECOND_NS;
/// The most that an empty bucket owes, as time.
const DEBT_MAX_NS: u64 = DEBT_MAX_S * SECOND_NS;

/// Rate and burst, with the time per token that the arithmetic uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Pace {
    pub(super) rate: u32,
    pub(super) burst: u32,
    /// Time in which one token is added, rounded up so that the rate is never exceeded.
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

    /// Time in which a bucket that owes the most becomes full.
    fn owed_max_ns(self) -> u64 {
        self.depth_ns().saturating_add(DEBT_MAX_NS)
    }

    /// Time in which an empty bucket becomes full.
    pub(super) fn depth_ns(self) -> u64 {
        u64::from(self.burst) * self.token_ns
    }

    /// Whole tokens that are added in `ns`, at most the burst.
    pub(super) fn tokens_within(self, ns: u64) -> u32 {
        u32::try_from(ns / self.token_ns).unwrap_or(u32::MAX).min(self.burst)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    pace: Pace,
    /// Time at which the bucket is full.
    full_ns: u64,
    /// Time of the last read by a VM with these limits.
    seen_ns: u64,
}

/// The record of one tenant; `entries[0]` is the selected one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Record {
    entries: [Option<Entry>; 2],
}

impl Record {
    pub(super) fn key(tenant: &TenantId) -> String {
        format!("bucket/{tenant}")
    }

    /// Reads the record, and the version with which to write it back.
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
        for (entry, chunk) in record.entries.iter_mut().zip(bytes[1..].chunks_exact(ENTRY_BYTES)) {
            let burst = read_u32(chunk, 4);
            if burst > 0 {
                let pace = Pace::new(read_u32(chunk, 0), burst);
                *entry =
                    Some(Entry { pace, full_ns: read_u64(chunk, 8), seen_ns: read_u64(chunk, 16) });
            }
        }
        record
    }

    pub(super) fn encode(&self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[0] = VERSION;
        for (entry, chunk) in self.entries.iter().zip(bytes[1..].chunks_exact_mut(ENTRY_BYTES)) {
            if let Some(entry) = entry {
                chunk[..4].copy_from_slice(&entry.pace.rate.to_le_bytes());
                chunk[4..8].copy_from_slice(&entry.pace.burst.to_le_bytes());
                chunk[8..16].copy_from_slice(&entry.full_ns.to_le_bytes());
                chunk[16..].copy_from_slice(&entry.seen_ns.to_le_bytes());
            }
        }
        bytes
    }

    /// Returns whether there is a bucket of this pace. Tokens drawn from another are not refunded.
    pub(super) fn has(&self, pace: Pace) -> bool {
        self.entries.iter().flatten().any(|entry| entry.pace == pace)
    }

    /// Makes the entry of `pace` the selected one, and repairs entries from before a backward clock
    /// step. Returns whether a repair was made: it must be written even if nothing is drawn, or the
    /// bucket would stay empty until the clock has caught up.
    pub(super) fn select(&mut self, pace: Pace, now_ns: u64) -> bool {
        if self.entries[1].is_some_and(|entry| entry.pace == pace) {
            self.entries.swap(0, 1);
        }
        if self.entries[0].is_none_or(|entry| entry.pace != pace) {
            self.add(pace, now_ns);
        }
        // One entry may have been charged when the other was read.
        let seen_ns = self.entries.iter().flatten().map(|entry| entry.seen_ns).max().unwrap_or(0);
        let mut is_repaired = false;
        for entry in self.entries.iter_mut().flatten() {
            is_repaired |= entry.repair(seen_ns, now_ns);
        }
        if let Some(entry) = &mut self.entries[0] {
            entry.seen_ns = now_ns;
        }
        is_repaired
    }

    /// Replaces the entry that was read longest ago. The new one inherits the largest debt in tokens,
    /// so that an empty bucket stays empty and fills at the new rate.
    fn add(&mut self, pace: Pace, now_ns: u64) {
        let debts = self.entries.iter().flatten().map(|entry| entry.debt(now_ns));
        let debt = debts.max().unwrap_or(0);
        let owed_ns = (u64::from(debt) * pace.token_ns).min(pace.owed_max_ns());
        let [first_ns, second_ns] = self.entries.map(|entry| entry.map_or(0, |e| e.seen_ns));
        if first_ns >= second_ns {
            self.entries.swap(0, 1);
        }
        let full_ns = now_ns.saturating_add(owed_ns);
        self.entries[0] = Some(Entry { pace, full_ns, seen_ns: now_ns });
    }

    /// Number of tokens in the selected bucket.
    pub(super) fn available(&self, now_ns: u64) -> u32 {
        self.entries[0].map_or(0, |entry| {
            let owed_ns = entry.full_ns.saturating_sub(now_ns);
            entry.pace.tokens_within(entry.pace.depth_ns().saturating_sub(owed_ns))
        })
    }

    /// Time until the selected bucket has `tokens`.
    pub(super) fn wait_ns(&self, tokens: u32, now_ns: u64) -> u64 {
        self.entries[0].map_or(0, |entry| {
            (entry.full_ns.max(now_ns) + u64::from(tokens) * entry.pace.token_ns)
                .saturating_sub(now_ns + entry.pace.depth_ns())
        })
    }

    /// Time at which the selected bucket is full.
    pub(super) fn full_ns(&self) -> u64 {
        self.entries[0].map_or(0, |entry| entry.full_ns)
    }

    /// Charges `tokens` to both buckets. The one that is not selected cannot become more than empty.
    pub(super) fn draw(&mut self, tokens: u32, now_ns: u64) {
        for (index, entry) in self.entries.iter_mut().enumerate() {
            let Some(entry) = entry else { continue };
            let cost_ns = u64::from(tokens) * entry.pace.token_ns;
            let full_ns = entry.full_ns.max(now_ns).saturating_add(cost_ns);
            let empty_ns = now_ns.saturating_add(entry.pace.depth_ns()).max(entry.full_ns);
            entry.full_ns = if index == 0 { full_ns } else { full_ns.min(empty_ns) };
        }
    }

    /// Charges `tokens` to both buckets, which may then owe up to [`DEBT_MAX_S`]. Nothing beyond
    /// that is charged.
    pub(super) fn owe(&mut self, tokens: u32, now_ns: u64) {
        for entry in self.entries.iter_mut().flatten() {
            let cost_ns = u64::from(tokens).saturating_mul(entry.pace.token_ns);
            let full_ns = entry.full_ns.max(now_ns).saturating_add(cost_ns);
            let most_ns = now_ns.saturating_add(entry.pace.owed_max_ns()).max(entry.full_ns);
            entry.full_ns = full_ns.min(most_ns);
        }
    }

    /// Refunds unspent tokens, to the selected bucket only: no other is certain to have been charged
    /// for all of them.
    pub(super) fn refund(&mut self, tokens: u32, now_ns: u64) {
        if let Some(entry) = &mut self.entries[0] {
            let cost_ns = u64::from(tokens) * entry.pace.token_ns;
            entry.full_ns = entry.full_ns.saturating_sub(cost_ns).max(entry.full_ns.min(now_ns));
        }
    }
}

impl Entry {
    /// Moves an entry that was written before a backward clock step to the present clock, with the
    /// debt that it had at `seen_ns`, the last read of the record. Returns whether it did.
    fn repair(&mut self, seen_ns: u64, now_ns: u64) -> bool {
        let most_ns = now_ns.saturating_add(self.pace.owed_max_ns());
        if seen_ns.max(self.full_ns.saturating_sub(self.pace.owed_max_ns()))
            <= now_ns.saturating_add(CLOCK_STEP_NS)
        {
            return false;
        }
        let owed_ns = self.full_ns.saturating_sub(seen_ns);
        self.full_ns = now_ns.saturating_add(owed_ns).min(most_ns);
        self.seen_ns = now_ns;
        true
    }

    /// Number of missing tokens, rounded up.
    fn debt(&self, now_ns: u64) -> u32 {
        let owed_ns = self.full_ns.saturating_sub(now_ns);
        u32::try_from(owed_ns.div_ceil(self.pace.token_ns)).unwrap_or(u32::MAX)
    }
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}
