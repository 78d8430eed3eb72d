//! The table of `orchestrator status`.

use std::fmt::Write;

use super::table;
use crate::api::{HostStatus, Status, TenantStatus};
use crate::storage::disk::HostDisk;

const HEADINGS: [&str; 9] =
    ["TENANT", "TIER", "STATE", "FOR", "IDLE", "MEMORY", "STORAGE", "LAST WAKE", "LAST DEATH"];

/// Renders the tenants as a table, and the host as a few lines below it.
pub(super) fn render(status: &Status) -> String {
    let mut table = table::new(&HEADINGS, HEADINGS.len());
    for tenant in &status.tenants {
        table.add_row(cells(tenant));
    }
    let mut text = table::render(&table);
    text.push('\n');
    text += &summary(&status.host, status.tenants.len());
    if let Some(disk) = &status.host.disk {
        let limited = status.tenants.iter().filter(|tenant| tenant.storage_hard_bytes.is_some());
        text += &disk_lines(disk, limited.count());
    }
    // Writing into a String does not fail.
    for tenant in &status.tenants {
        if let Some(reason) = &tenant.copies_failing {
            let _ = writeln!(text, "{}: good copies fail: {reason}", tenant.tenant);
        }
    }
    for note in &status.host.notes {
        let _ = writeln!(text, "note: {note}");
    }
    text
}

fn summary(host: &HostStatus, tenants: usize) -> String {
    format!(
        "{}; runtime {}, SQ {}, {} connected, {} of memory and {} of disk free\n",
        table::count(tenants as u64, "tenant"),
        host.runtime,
        host.sq_version,
        table::count(host.streams as u64, "Envoy"),
        bytes_or_dash(host.memory_available_bytes),
        bytes_or_dash(host.disk.as_ref().map(|disk| disk.free_bytes)),
    )
}

fn disk_lines(disk: &HostDisk, limited: usize) -> String {
    let mut text = format!(
        "writes stop below {} of free disk; hard limit per tenant: {} (set for {})\n",
        table::bytes(disk.floor_bytes),
        disk.backstop,
        table::count(limited as u64, "tenant"),
    );
    if let Some(warning) = &disk.warning {
        text += "warning: ";
        text += warning;
        text.push('\n');
    }
    text
}

fn cells(tenant: &TenantStatus) -> [String; HEADINGS.len()] {
    [
        tenant.tenant.to_string(),
        tenant.tier.to_string(),
        tenant.state.clone(),
        table::duration(tenant.for_ms),
        table::duration(tenant.idle_ms),
        bytes_or_dash(tenant.memory_bytes),
        bytes_or_dash(tenant.storage_bytes),
        tenant.last_wake.map_or_else(dash, |wake| format!("{} {} ms", wake.kind.as_str(), wake.ms)),
        last_death(tenant).unwrap_or_else(dash),
    ]
}

fn last_death(tenant: &TenantStatus) -> Option<String> {
    let death = tenant.last_death.as_ref()?;
    let mut text = format!("{death} ({} in all)", tenant.deaths);
    if tenant.restored > 0 {
        let _ = write!(text, ", {} restored", table::count(tenant.restored, "phext"));
    }
    Some(text)
}

fn bytes_or_dash(bytes: Option<u64>) -> String {
    bytes.map_or_else(dash, table::bytes)
}

fn dash() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use protocol::{TenantId, TierName, WakeKind};

    use super::*;
    use crate::api::LastWake;

    fn awake_tenant() -> TenantStatus {
        TenantStatus {
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
        }
    }

    #[test]
    fn row_shows_state_size_and_last_wake() {
        let host = HostStatus { streams: 1, ..HostStatus::default() };
        let text = render(&Status { host, tenants: vec![awake_tenant()] });
        assert!(text.contains("alice: good copies fail: notes.phext: no room"), "{text}");
        assert!(text.contains("1 tenant;") && text.contains(" 1 Envoy connected"), "{text}");
        let line = text.lines().nth(1).unwrap();
        let cells: Vec<_> =
            line.split("  ").filter(|cell| !cell.is_empty()).map(str::trim).collect();
        assert_eq!(
            cells,
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
}
