//! Tenants as tables and as JSON.

use comfy_table::{Table, presets};
use protocol::{Limits, TenantId, TenantStatus, calendar};
use serde_json::{Value, json};

use super::Format;
use super::output::counted;
use crate::registry::limit_field::{FIELDS, LimitField};
use crate::registry::{Key, Registry, Tenant, status_text};

/// Renders all tenants, one row or JSON object each.
pub(super) fn list(
    registry: &Registry,
    now_s: u64,
    format: Format,
) -> Result<String, serde_json::Error> {
    if format == Format::Json {
        let tenants = registry.tenants.iter();
        let tenants: Vec<_> = tenants.map(|(id, tenant)| to_json(id, tenant, now_s)).collect();
        return Ok(serde_json::to_string_pretty(&tenants)? + "\n");
    }
    let header = ["TENANT", "TIER", "STATUS", "KEYS", "STORAGE", "USD/MONTH", "COORDINATE"];
    let mut rows = vec![header.map(str::to_owned)];
    for (id, tenant) in &registry.tenants {
        let live_keys = tenant.keys.iter().filter(|key| key.is_live(now_s)).count();
        rows.push([
            id.to_string(),
            tenant.tier.to_string(),
            status_text(tenant.status).to_owned(),
            live_keys.to_string(),
            limit("storage", &tenant.limits),
            limit("price-usd-month", &tenant.limits),
            tenant.coordinate.to_string(),
        ]);
    }
    Ok(table(rows))
}

/// Renders the monthly revenue beside its target. A tenant pays while it is active in the registry,
/// with or without requests.
pub(super) fn revenue(registry: &Registry, target_usd: u32) -> String {
    let mut tenants = 0;
    let mut cents = 0;
    for tenant in registry.tenants.values().filter(|t| t.status == TenantStatus::Active) {
        tenants += 1;
        cents += u64::from(tenant.limits.price_cents_month);
    }
    let verb = if tenants == 1 { "pays" } else { "pay" };
    let tenants = counted(tenants, "active tenant");
    format!("{tenants} {verb} {}.{:02} of {target_usd} USD a month\n", cents / 100, cents % 100)
}

/// Renders one tenant with its keys, limits and notes.
pub(super) fn tenant(
    id: &TenantId,
    tenant: &Tenant,
    now_s: u64,
    format: Format,
) -> Result<String, serde_json::Error> {
    if format == Format::Json {
        return Ok(serde_json::to_string_pretty(&to_json(id, tenant, now_s))? + "\n");
    }
    let mut rows = vec![
        ["tenant".to_owned(), id.to_string()],
        ["coordinate".to_owned(), tenant.coordinate.to_string()],
        ["tier".to_owned(), tenant.tier.to_string()],
        ["status".to_owned(), status_text(tenant.status).to_owned()],
    ];
    for key in &tenant.keys {
        rows.push(["key-sha256".to_owned(), key_text(key, now_s)]);
    }
    for field in FIELDS {
        rows.push([field.name.to_owned(), field.format(&tenant.limits)]);
    }
    for (name, value) in &tenant.notes {
        rows.push([name.clone(), value.clone()]);
    }
    Ok(table(rows))
}

fn key_text(key: &Key, now_s: u64) -> String {
    let mut text = key.hash.to_string();
    if let Some(end_s) = key.expires_s {
        let verb = if key.is_live(now_s) { "live, ends " } else { "ended " };
        text.push_str("  ");
        text.push_str(verb);
        text.push_str(&calendar::rfc3339(end_s));
    }
    if key.plain_text {
        text.push_str("  (in plain text)");
    }
    text
}

fn to_json(id: &TenantId, tenant: &Tenant, now_s: u64) -> Value {
    let keys: Vec<_> = tenant.keys.iter().map(|key| key_to_json(key, now_s)).collect();
    json!({
        "tenant": id,
        "coordinate": tenant.coordinate.to_string(),
        "tier": tenant.tier,
        "status": tenant.status,
        "keys": keys,
        "limits": tenant.limits,
        "notes": tenant.notes,
    })
}

fn key_to_json(key: &Key, now_s: u64) -> Value {
    json!({
        "sha256": key.hash,
        "expires": key.expires_s.map(calendar::rfc3339),
        "state": if key.is_live(now_s) { "live" } else { "ended" },
        "plain_text": key.plain_text,
    })
}

fn limit(name: &str, limits: &Limits) -> String {
    LimitField::named(name).map(|field| field.format(limits)).unwrap_or_default()
}

/// Columns separated by two spaces, without borders, for people and for `awk`.
/// Renders rows, of which the first has the headings.
pub(super) fn table<const COLUMNS: usize>(rows: Vec<[String; COLUMNS]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    format!("{}\n", table.trim_fmt())
}
