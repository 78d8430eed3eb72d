//! A month of usage, as a table for people and as CSV for spreadsheets.

use std::fmt::Write as _;

use crate::api::MonthUsage;
use crate::cli::table;
use crate::usage::revenue::Revenue;
use crate::usage::sums::{Sums, TenantSums};

/// Column names, the same in the table and in CSV.
const COLUMNS: [&str; 16] = [
    "tenant",
    "tier",
    "price_usd",
    "requests",
    "reads",
    "writes",
    "refused",
    "2xx",
    "4xx",
    "5xx",
    "no_answer",
    "bytes_in",
    "bytes_out",
    "service_ms",
    "dozes",
    "starts",
];

/// Renders the tenants, their total and the revenue.
pub(super) fn table(usage: &MonthUsage) -> String {
    let mut table = table::new(&COLUMNS, 2);
    for tenant in &usage.tenants {
        table.add_row(cells(tenant));
    }
    let total = &usage.total;
    let mut text = format!("usage of {} (UTC)\n", usage.month);
    text += &table::render(&table);
    // Writing into a String does not fail.
    let _ = writeln!(
        text,
        "{}, {} ({} refused), {} in, {} out",
        table::count(usage.tenants.len() as u64, "tenant"),
        table::count(total.requests(), "request"),
        total.refused,
        table::bytes(total.bytes_in),
        table::bytes(total.bytes_out)
    );
    for (reason, count) in &total.reasons {
        let _ = writeln!(text, "  refused {reason}: {count}");
    }
    text + &revenue(&usage.revenue)
}

/// Renders the tenants. No cell needs quotes: names have no comma, the rest are numbers.
pub(super) fn csv(tenants: &[TenantSums]) -> String {
    let mut text = COLUMNS.join(",") + "\n";
    for tenant in tenants {
        text += &cells(tenant).join(",");
        text.push('\n');
    }
    text
}

fn cells(tenant: &TenantSums) -> [String; COLUMNS.len()] {
    let Sums { reads, writes, refused, status, bytes_in, bytes_out, service_ms, wakes, .. } =
        tenant.sums;
    let [no_answer, _, ok, _, client_errors, server_errors] = status;
    [
        tenant.tenant.to_string(),
        tenant.tier.to_string(),
        usd(tenant.price_cents_month.into()),
        tenant.sums.requests().to_string(),
        reads.to_string(),
        writes.to_string(),
        refused.to_string(),
        ok.to_string(),
        client_errors.to_string(),
        server_errors.to_string(),
        no_answer.to_string(),
        bytes_in.to_string(),
        bytes_out.to_string(),
        service_ms.to_string(),
        wakes.doze.to_string(),
        wakes.start.saturating_add(wakes.create).to_string(),
    ]
}

fn revenue(revenue: &Revenue) -> String {
    let mut text = String::new();
    for (tier, part) in &revenue.tiers {
        let tenants = table::count(part.tenants, "tenant");
        let _ = writeln!(text, "  {tier}: {tenants}, {} USD a month", usd(part.cents));
    }
    let earned = usd(revenue.cents);
    let target = usd(revenue.target_cents);
    let percent = revenue.percent();
    let _ = writeln!(text, "revenue {earned} of {target} USD a month ({percent} % of the target)");
    text
}

fn usd(cents: u64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}
