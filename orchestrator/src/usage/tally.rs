//! Each tenant's use of its quotas, in memory and pure.
//!
//! ```text
//!  report ─► row of (source, tenant, hour) ─► increase ─► Tally ─► notice
//! ```
//!
//! The tally is rebuilt from the ledger at start and follows every commit, so a notice costs no
//! query.

use std::collections::HashMap;

use protocol::calendar::Month;
use protocol::time::{DAY_S, HOUR_S};
use protocol::{TenantId, TenantNotice};

use crate::usage::sums::capped_sum;

#[cfg(test)]
mod tests;

/// Forwarded requests and bytes of responses that a report added to one tenant's hour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Increase {
    /// The tenant's name.
    pub tenant: TenantId,
    /// Hours since 1970 UTC.
    pub hour: u64,
    /// Reads that were forwarded.
    pub reads: u64,
    /// Writes that were forwarded.
    pub writes: u64,
    /// Bytes of responses.
    pub bytes_out: u64,
}

/// Quota counters of all tenants: about 150 bytes per tenant seen this month or the last.
#[derive(Debug, Default)]
pub struct Tally {
    tenants: HashMap<TenantId, QuotaUse>,
}

/// The two newest days and months: a report of the last hour arrives after midnight, and the
/// gateways' clocks differ.
#[derive(Debug, Clone, Copy, Default)]
struct QuotaUse {
    days: [Period; 2],
    months: [Period; 2],
}

#[derive(Debug, Clone, Copy, Default)]
struct Period {
    number: u64,
    requests: u64,
    writes: u64,
    bytes_out: u64,
}

impl Tally {
    /// Adds one increase.
    pub fn add(&mut self, increase: &Increase) {
        let quota_use = match self.tenants.get_mut(&increase.tenant) {
            Some(quota_use) => quota_use,
            None => self.tenants.entry(increase.tenant.clone()).or_default(),
        };
        let start_s = increase.hour.saturating_mul(HOUR_S);
        add_to(&mut quota_use.days, start_s / DAY_S, increase);
        add_to(&mut quota_use.months, Month::of(start_s).0, increase);
    }

    /// Returns the usage half of a tenant's notice; the disk fills in the storage half.
    pub fn notice(&self, tenant: &TenantId, now_s: u64) -> TenantNotice {
        let day = now_s / DAY_S;
        let month = Month::of(now_s);
        let quota_use = self.tenants.get(tenant).copied().unwrap_or_default();
        let today = period(&quota_use.days, day);
        TenantNotice {
            requests_day: today.requests,
            requests_month: period(&quota_use.months, month.0).requests,
            writes_day: today.writes,
            bytes_out_day: today.bytes_out,
            day_ends_s: (day + 1) * DAY_S,
            month_ends_s: month.next().start_s(),
            ..TenantNotice::default()
        }
    }

    /// Removes tenants that were seen neither this month nor the last.
    pub fn remove_idle(&mut self, now_s: u64) {
        let month = Month::of(now_s).0;
        self.tenants.retain(|_, quota_use| quota_use.months[0].number + 1 >= month);
    }

    /// Returns the number of tenants in memory.
    pub fn tenants(&self) -> usize {
        self.tenants.len()
    }
}

/// Adds to the period `number`. Only the two newest are kept; an older one is ignored.
fn add_to(periods: &mut [Period; 2], number: u64, increase: &Increase) {
    let [newest, previous] = periods;
    if number > newest.number {
        *previous = *newest;
        *newest = Period { number, ..Period::default() };
    } else if number > previous.number && number != newest.number {
        *previous = Period { number, ..Period::default() };
    }
    if let Some(period) = periods.iter_mut().find(|period| period.number == number) {
        let requests = capped_sum(increase.reads, increase.writes);
        period.requests = capped_sum(period.requests, requests);
        period.writes = capped_sum(period.writes, increase.writes);
        period.bytes_out = capped_sum(period.bytes_out, increase.bytes_out);
    }
}

fn period(periods: &[Period; 2], number: u64) -> Period {
    periods.iter().find(|period| period.number == number).copied().unwrap_or_default()
}
