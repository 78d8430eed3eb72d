//! What the operator sees of the host and its tenants: the JSON of `GET /v1/tenants` and the table
//! of `orchestrator status`.

use std::fmt::Write;

use protocol::{SqVersion, TenantId, TierName, WakeKind};
use serde::{Deserialize, Serialize};

use crate::storage::disk::HostDisk;

/// Answer to `GET /v1/tenants`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The host.
    pub host: HostStatus,
    /// By name.
    pub tenants: Vec<TenantStatus>,
}

/// The host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// `docker` or `process`.
    pub runtime: String,
    /// What the runtime says of itself.
    pub notes: Vec<String>,
    /// What tenants are started with.
    pub sq_version: SqVersion,
    /// Connected Envoys.
    pub streams: usize,
    /// Memory that can be had without swapping.
    pub memory_available_bytes: Option<u64>,
    /// The disk below the data root.
    pub disk: Option<HostDisk>,
}

/// One tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantStatus {
    /// Who.
    pub tenant: TenantId,
    /// As of its last lease.
    pub tier: TierName,
    /// One of `lifecycle::State::LABELS`.
    pub state: String,
    /// How long it has been in that state.
    pub for_ms: u64,
    /// When it came into that state, seconds since 1970 UTC.
    pub since_s: u64,
    /// How long ago it was last given a lease.
    pub idle_ms: u64,
    /// Whether a lease is live.
    pub leased: bool,
    /// Askers that wait for it.
    pub waiting: usize,
    /// What it uses now; `None`: nothing runs, or it can't be told.
    pub memory_bytes: Option<u64>,
    /// Files below its folder.
    pub storage_bytes: Option<u64>,
    /// How much its folder can hold by a limit of the file system's own; `None`: no such limit, or
    /// one that can't be seen.
    #[serde(default)]
    pub storage_hard_bytes: Option<u64>,
    /// Wakes in this life of the orchestrator.
    pub wakes: u64,
    /// What the last wake took.
    pub last_wake: Option<LastWake>,
    /// Deaths in this life of the orchestrator.
    pub deaths: u64,
    /// How it last died or failed to start.
    pub last_death: Option<String>,
    /// Cut phexts put back in this life of the orchestrator.
    #[serde(default)]
    pub restored: u64,
    /// Why its last round of good copies was not complete; `None`: it was.
    #[serde(default)]
    pub copies_failing: Option<String>,
}

/// What a wake took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastWake {
    /// From which depth.
    pub kind: WakeKind,
    /// How long the runtime took.
    pub ms: u64,
}

const HEADINGS: [&str; 9] =
    ["TENANT", "TIER", "STATE", "FOR", "IDLE", "MEMORY", "STORAGE", "LAST WAKE", "LAST DEATH"];

impl Status {
    /// The table, and a line on the host.
    pub fn table(&self) -> String {
        let mut rows = vec![HEADINGS.map(str::to_owned)];
        rows.extend(self.tenants.iter().map(TenantStatus::cells));
        let mut widths = [0; HEADINGS.len()];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for row in &rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(widths) {
                // Writing into a String does not fail.
                let _ = write!(line, "{cell:width$}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        let host = &self.host;
        let _ = write!(
            text,
            "\n{} tenants; runtime {}, SQ {}, {} Envoys connected, {} of memory and {} of disk free\n",
            self.tenants.len(),
            host.runtime,
            host.sq_version,
            host.streams,
            bytes(host.memory_available_bytes),
            bytes(host.disk.as_ref().map(|d| d.free_bytes)),
        );
        if let Some(disk) = &host.disk {
            let floor = bytes(Some(disk.floor_bytes));
            let limited = self.tenants.iter().filter(|t| t.storage_hard_bytes.is_some()).count();
            let _ = writeln!(
                text,
                "mutations stop below {floor}; hard limit per tenant: {}; {limited} tenants have one",
                disk.backstop
            );
            if let Some(warning) = &disk.warning {
                let _ = writeln!(text, "warning: {warning}");
            }
        }
        for row in &self.tenants {
            if let Some(why) = &row.copies_failing {
                let _ = writeln!(text, "{}: copies can't be kept: {why}", row.tenant);
            }
        }
        for note in &host.notes {
            let _ = writeln!(text, "note: {note}");
        }
        text
    }
}

impl TenantStatus {
    fn cells(&self) -> [String; HEADINGS.len()] {
        let wake = self.last_wake.map_or_else(dash, |w| format!("{} {} ms", w.kind.as_str(), w.ms));
        let death = self.last_death.as_ref();
        [
            self.tenant.to_string(),
            self.tier.to_string(),
            self.state.clone(),
            duration(self.for_ms),
            duration(self.idle_ms),
            bytes(self.memory_bytes),
            bytes(self.storage_bytes),
            wake,
            death.map_or_else(dash, |d| match self.restored {
                0 => format!("{d} ({} in all)", self.deaths),
                n => format!("{d} ({} in all), {n} phexts put back", self.deaths),
            }),
        ]
    }
}

fn dash() -> String {
    "-".to_owned()
}

/// The two largest units.
fn duration(ms: u64) -> String {
    let s = ms / 1_000;
    match s {
        0 => format!("{ms} ms"),
        1..60 => format!("{s} s"),
        60..3_600 => format!("{} min {} s", s / 60, s % 60),
        3_600..86_400 => format!("{} h {} min", s / 3_600, s % 3_600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3_600),
    }
}

fn bytes(bytes: Option<u64>) -> String {
    let Some(bytes) = bytes else { return dash() };
    for (unit, size) in [("GB", 1_000_000_000), ("MB", 1_000_000), ("KB", 1_000)] {
        if bytes >= size {
            return format!("{}.{} {unit}", bytes / size, bytes % size * 10 / size);
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_what_the_operator_asks_for() {
        let row = TenantStatus {
            tenant: TenantId::parse("alice").unwrap(),
            tier: TierName::parse("free").unwrap(),
            state: "awake".to_owned(),
            for_ms: 61_000,
            since_s: 0,
            idle_ms: 900,
            leased: true,
            waiting: 0,
            memory_bytes: Some(1_550_000),
            storage_bytes: Some(999),
            storage_hard_bytes: Some(8_000_000),
            wakes: 1,
            last_wake: Some(LastWake { kind: WakeKind::Start, ms: 310 }),
            deaths: 0,
            last_death: None,
            restored: 0,
            copies_failing: Some("notes.phext: no room".to_owned()),
        };
        let status = Status { host: HostStatus::default(), tenants: vec![row] };
        let table = status.table();
        assert!(table.contains("alice: copies can't be kept: notes.phext: no room"), "{table}");
        let line = table.lines().nth(1).unwrap();
        assert_eq!(
            line.split("  ").filter(|c| !c.is_empty()).map(str::trim).collect::<Vec<_>>(),
            [
                "alice",
                "free",
                "awake",
                "1 min 1 s",
                "900 ms",
                "1.5 MB",
                "999 B",
                "start 310 ms",
                "-"
            ]
        );
    }

    #[test]
    fn durations_are_shown_in_their_two_largest_units() {
        let shown = [0, 59_999, 3_599_000, 86_399_000, 90_000_000].map(duration);
        assert_eq!(shown, ["0 ms", "59 s", "59 min 59 s", "23 h 59 min", "1 d 1 h"]);
    }
}
