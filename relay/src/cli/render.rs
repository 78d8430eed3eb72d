//! Tenants as tables and as JSON.

use std::fmt::Write as _;

use protocol::calendar;
use protocol::{Limits, TenantId, TenantStatus};
use serde_json::{Value, json};

use crate::cli::Format;
use crate::registry::limit_field::{FIELDS, Field};
use crate::registry::{Key, Registry, Tenant};

/// All tenants.
pub fn list(registry: &Registry, now_s: u64, format: Format) -> Result<String, serde_json::Error> {
    if format == Format::Json {
        let all: Vec<_> = registry.tenants.iter().map(|(id, t)| tenant(id, t, now_s)).collect();
        return Ok(serde_json::to_string_pretty(&all)? + "\n");
    }
    let mut rows =
        vec![["TENANT", "TIER", "STATUS", "KEYS", "STORAGE", "USD/MONTH", "AT"].map(str::to_owned)];
    for (id, tenant) in &registry.tenants {
        let live = tenant.keys.iter().filter(|k| k.live(now_s)).count();
        rows.push([
            id.to_string(),
            tenant.tier.to_string(),
            word(tenant.status).to_owned(),
            live.to_string(),
            shown("storage", &tenant.limits),
            shown("price-usd-month", &tenant.limits),
            tenant.at.to_string(),
        ]);
    }
    Ok(table(&rows))
}

/// What the active tenants pay a month, beside what they should. Everybody who is in the registry
/// pays, whether they come or not.
pub fn revenue(registry: &Registry, target_usd: u32) -> String {
    let active = registry.tenants.values().filter(|t| t.status == TenantStatus::Active);
    let (mut tenants, mut cents) = (0_u64, 0);
    for tenant in active {
        tenants += 1;
        cents += u64::from(tenant.limits.price_cents_month);
    }
    let (usd, rest) = (cents / 100, cents % 100);
    format!("active tenants: {tenants}; they pay {usd}.{rest:02} USD a month of {target_usd}\n")
}

/// One tenant with everything.
pub fn one(
    id: &TenantId,
    found: &Tenant,
    now_s: u64,
    format: Format,
) -> Result<String, serde_json::Error> {
    if format == Format::Json {
        return Ok(serde_json::to_string_pretty(&tenant(id, found, now_s))? + "\n");
    }
    let mut rows = vec![
        ["tenant".to_owned(), id.to_string()],
        ["at".to_owned(), found.at.to_string()],
        ["tier".to_owned(), found.tier.to_string()],
        ["status".to_owned(), word(found.status).to_owned()],
    ];
    for key in &found.keys {
        let end = match (state(key, now_s), key.expires_s) {
            ("live", None) => String::new(),
            (state, end) => {
                format!("  {state}, ends {}", end.map(calendar::rfc3339).unwrap_or_default())
            }
        };
        let plain = if key.plain { "  (in plain text)" } else { "" };
        rows.push(["key-sha256".to_owned(), format!("{}{end}{plain}", key.hash)]);
    }
    rows.extend(FIELDS.iter().map(|f| [f.name.to_owned(), f.show(&found.limits)]));
    rows.extend(found.notes.iter().map(|(name, value)| [name.clone(), value.clone()]));
    Ok(table(&rows))
}

fn tenant(id: &TenantId, tenant: &Tenant, now_s: u64) -> Value {
    let key = |key: &Key| {
        json!({
            "sha256": key.hash,
            "expires": key.expires_s.map(calendar::rfc3339),
            "state": state(key, now_s),
            "plain": key.plain,
        })
    };
    json!({
        "tenant": id,
        "at": tenant.at.to_string(),
        "tier": tenant.tier,
        "status": tenant.status,
        "keys": tenant.keys.iter().map(key).collect::<Vec<_>>(),
        "limits": tenant.limits,
        "notes": tenant.notes,
    })
}

fn state(key: &Key, now_s: u64) -> &'static str {
    if key.live(now_s) { "live" } else { "ended" }
}

fn word(status: TenantStatus) -> &'static str {
    match status {
        TenantStatus::Active => "active",
        TenantStatus::Suspended => "suspended",
    }
}

fn shown(name: &str, limits: &Limits) -> String {
    Field::named(name).map(|f| f.show(limits)).unwrap_or_default()
}

/// Columns as wide as their widest cell, two spaces between them.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}
