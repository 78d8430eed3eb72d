//! The counters of one tenant, one row per hour.

use std::collections::BTreeMap;
use std::rc::Rc;

use protocol::{Counters, Verdict, WakeKind};

use super::{Class, Fate, GONE, Served};
use crate::http::refusal::RefusalKind;

/// The usage rows of one tenant.
#[derive(Debug)]
pub(super) struct Tenant {
    /// The newest verdict, for tier and limits.
    pub(super) verdict: Rc<Verdict>,
    /// Oldest first. There is one, except at the turn of the hour and while the orchestrator is away.
    pub(super) rows: Vec<Row>,
    /// The tenant stands in the queue of changed tenants.
    pub(super) queued: bool,
}

/// The counters of one hour. Compact, because most rows have no refusals.
#[derive(Debug, Clone, Default)]
pub(super) struct Row {
    pub(super) generation: u32,
    pub(super) hour: u64,
    pub(super) reads: u64,
    pub(super) writes: u64,
    refused: Vec<(RefusalKind, u64)>,
    gone: u64,
    status: [u64; 6],
    bytes_in: u64,
    pub(super) bytes_out: u64,
    /// Finer than the reported milliseconds, because most requests take less than one.
    service_us: u64,
    /// Wakes by kind, in the order of [`WAKES`].
    wakes: [u64; WAKES.len()],
    /// Number of changes to this row.
    changes: u64,
    /// State at the last acknowledged flush.
    pub(super) acked: Mark,
    /// State at the last flush, acknowledged or not.
    pub(super) sent: Mark,
}

/// The state of a row at a flush.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Mark {
    changes: u64,
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) bytes_out: u64,
}

impl Tenant {
    pub(super) fn new(verdict: &Rc<Verdict>) -> Self {
        Self { verdict: verdict.clone(), rows: Vec::with_capacity(1), queued: false }
    }

    pub(super) fn find(&mut self, generation: u32, hour: u64) -> Option<&mut Row> {
        self.rows.iter_mut().find(|r| r.generation == generation && r.hour == hour)
    }

    /// Returns the row of `hour`, and whether it is new.
    pub(super) fn row(&mut self, generation: u32, hour: u64) -> (&mut Row, bool) {
        let found = self.rows.iter().position(|r| r.generation == generation && r.hour == hour);
        let index = found.unwrap_or_else(|| {
            self.rows.push(Row { generation, hour, ..Row::default() });
            self.rows.len() - 1
        });
        (&mut self.rows[index], found.is_none())
    }

    /// Adds unsent rows to later ones. Returns the number of rows removed.
    pub(super) fn merge(&mut self) -> usize {
        let before = self.rows.len();
        self.rows.sort_by_key(|r| (r.generation, r.hour));
        let mut merged: Vec<Row> = Vec::with_capacity(1);
        for mut row in std::mem::take(&mut self.rows) {
            if let Some(earlier) = merged.pop_if(|earlier| !earlier.was_sent()) {
                row.absorb(&earlier);
            }
            merged.push(row);
        }
        self.rows = merged;
        before - self.rows.len()
    }
}

impl Row {
    pub(super) fn count(&mut self, served: &Served) {
        match served.fate {
            Fate::Forwarded(Class::Read) => self.reads += 1,
            Fate::Forwarded(Class::Write) => self.writes += 1,
            Fate::Refused(kind) => self.refuse(kind, 1),
            Fate::Gone => self.gone += 1,
        }
        let class = usize::from(served.status / 100);
        self.status[if class < self.status.len() { class } else { 0 }] += 1;
        self.bytes_in += served.bytes_in;
        self.bytes_out += served.bytes_out;
        self.service_us += served.service_us;
        self.changes += 1;
    }

    pub(super) fn count_wake(&mut self, kind: WakeKind) {
        if let Some(at) = WAKES.iter().position(|k| *k == kind) {
            self.wakes[at] += 1;
            self.changes += 1;
        }
    }

    fn refuse(&mut self, kind: RefusalKind, times: u64) {
        match self.refused.iter_mut().find(|(k, _)| *k == kind) {
            Some((_, n)) => *n += times,
            None => self.refused.push((kind, times)),
        }
    }

    fn absorb(&mut self, other: &Self) {
        self.reads += other.reads;
        self.writes += other.writes;
        for (kind, times) in &other.refused {
            self.refuse(*kind, *times);
        }
        self.gone += other.gone;
        for (mine, more) in self.status.iter_mut().zip(other.status) {
            *mine += more;
        }
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.service_us += other.service_us;
        for (mine, more) in self.wakes.iter_mut().zip(other.wakes) {
            *mine += more;
        }
        self.changes += other.changes;
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.changes != self.acked.changes
    }

    fn was_sent(&self) -> bool {
        self.sent.changes > 0
    }

    pub(super) fn mark(&self) -> Mark {
        Mark {
            changes: self.changes,
            reads: self.reads,
            writes: self.writes,
            bytes_out: self.bytes_out,
        }
    }

    pub(super) fn counters(&self) -> Counters {
        let mut refused: BTreeMap<String, u64> =
            self.refused.iter().map(|(kind, n)| (kind.row().name.to_owned(), *n)).collect();
        if self.gone > 0 {
            refused.insert(GONE.to_owned(), self.gone);
        }
        let wakes = WAKES.iter().zip(self.wakes).filter(|(_, n)| *n > 0);
        Counters {
            reads: self.reads,
            writes: self.writes,
            refused,
            status: self.status,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            service_ms: self.service_us / 1_000,
            wakes: wakes.map(|(kind, n)| (*kind, n)).collect(),
        }
    }
}

/// The kinds of wakes that are counted.
const WAKES: [WakeKind; 3] = [WakeKind::Doze, WakeKind::Start, WakeKind::Create];
