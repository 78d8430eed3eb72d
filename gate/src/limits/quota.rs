//! Quotas: requests per day and month, writes per day, bytes of responses per day.
//!
//! Usage is the orchestrator's sum over all gateways (the notice), plus the requests that this VM has
//! counted since, plus those in flight. Only forwarded requests count. Two VMs learn of each
//! other's requests with the next usage response, so a quota may be exceeded by what all VMs
//! together serve in one or two seconds. A raised limit comes with the verdict and applies at once.
//! When the day ends by the VM's clock, the old day's notice counts as zero.
//!
//! The bytes of a response count at its end. A tenant exceeds its quota of bytes by the responses in
//! flight, which its rate bounds: they take tokens by their bytes.

use std::fmt;

use protocol::{Limits, TenantNotice};

use crate::Refusal;

/// Percentage of a quota from which responses carry a warning.
pub(crate) const WARN_PERCENT: u64 = 80;
/// `Retry-After` when the end of the period is unknown.
const UNKNOWN_END_S: u64 = 3_600;

/// The effect of a request on the tenant's data. Deletes count as writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// It leaves the data unchanged.
    Read,
    /// It changes the data.
    Write,
}

/// Requests that this VM has counted and the notice does not contain yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Delta {
    /// Forwarded requests of this UTC day.
    pub(crate) requests_day: u64,
    /// Forwarded requests of this UTC month.
    pub(crate) requests_month: u64,
    /// Forwarded writes of this UTC day.
    pub(crate) writes_day: u64,
    /// Bytes of responses of this UTC day.
    pub(crate) bytes_out_day: u64,
}

/// Requests that this VM has forwarded and that have not ended: used, but not counted yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct InFlight {
    /// Reads and writes.
    pub(crate) requests: u32,
    /// Writes among them.
    writes: u32,
}

impl InFlight {
    pub(crate) fn begin(&mut self, writes: bool) {
        self.requests += 1;
        self.writes += u32::from(writes);
    }

    pub(crate) fn end(&mut self, writes: bool) {
        self.requests = self.requests.saturating_sub(1);
        self.writes = self.writes.saturating_sub(u32::from(writes));
    }
}

impl Delta {
    /// Adds the requests in flight.
    #[must_use]
    pub(crate) fn plus(self, in_flight: InFlight) -> Self {
        let requests = u64::from(in_flight.requests);
        Self {
            requests_day: self.requests_day + requests,
            requests_month: self.requests_month + requests,
            writes_day: self.writes_day + u64::from(in_flight.writes),
            bytes_out_day: self.bytes_out_day,
        }
    }
}

/// The quotas of a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Quota {
    /// Requests per UTC day.
    Day,
    /// Requests per UTC month.
    Month,
    /// Writes per UTC day.
    WritesDay,
    /// Bytes of responses per UTC day, which reads must respect. Writes have responses of a line.
    EgressDay,
}

/// A quota that is nearly used up. Its `Display` is the value of the warning header, a structured
/// field like `RateLimit`: `"day";used=8210;limit=10000;t=3600`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Warning {
    /// The quota nearest to its end.
    pub(crate) quota: Quota,
    /// Requests used, this one included, or bytes.
    pub(crate) used: u64,
    /// Requests or bytes allowed in the period.
    pub(crate) cap: u64,
    /// Seconds until the quota resets.
    pub(crate) ends_in_s: u64,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { quota, used, cap, ends_in_s } = self;
        write!(f, "\"{}\";used={used};limit={cap};t={ends_in_s}", quota.name())
    }
}

impl Quota {
    fn name(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Month => "month",
            Self::WritesDay => "writes-day",
            Self::EgressDay => "egress-day",
        }
    }

    /// Number that one more request adds at least.
    fn step(self) -> u64 {
        u64::from(self != Self::EgressDay)
    }

    fn refuse(self, used: u64, cap: u64, ends_in_s: u64) -> Refusal {
        let wait_s = if ends_in_s == 0 { UNKNOWN_END_S } else { ends_in_s };
        let unit = match self {
            Self::Day => "requests of this day (UTC)",
            Self::Month => "requests of this month (UTC)",
            Self::WritesDay => "writes of this day (UTC)",
            Self::EgressDay => return Refusal::egress_quota_exceeded(used, cap, wait_s),
        };
        Refusal::quota_exceeded(unit, used, cap, wait_s)
    }
}

/// Checks one more request of `class` against the quotas. Returns a warning for the quota that is
/// nearest to its end, if one is nearly used up.
pub fn check(
    notice: &TenantNotice,
    limits: &Limits,
    since: &Delta,
    class: Class,
    now_s: u64,
) -> Result<Option<Warning>, Refusal> {
    // A notice from a period that has ended counts as zero.
    let is_new_day = has_ended(notice.day_ends_s, now_s);
    let today = |used: u64| if is_new_day { 0 } else { used };
    let month = if has_ended(notice.month_ends_s, now_s) { 0 } else { notice.requests_month };
    let is_read = class == Class::Read;
    let writes_cap = if is_read { None } else { limits.writes_per_day.max() };
    let egress_cap = if is_read { limits.egress_per_day_max() } else { None };
    let quotas = [
        (
            Quota::Day,
            today(notice.requests_day) + since.requests_day,
            limits.requests_per_day.max(),
            notice.day_ends_s,
        ),
        (
            Quota::Month,
            month + since.requests_month,
            limits.requests_per_month.max(),
            notice.month_ends_s,
        ),
        (
            Quota::WritesDay,
            today(notice.writes_day) + since.writes_day,
            writes_cap,
            notice.day_ends_s,
        ),
        (
            Quota::EgressDay,
            today(notice.bytes_out_day).saturating_add(since.bytes_out_day),
            egress_cap,
            notice.day_ends_s,
        ),
    ];
    let mut warning: Option<Warning> = None;
    for (quota, used, cap, ends_s) in quotas {
        let Some(cap) = cap else { continue };
        if used >= cap {
            return Err(quota.refuse(used, cap, ends_s.saturating_sub(now_s)));
        }
        let used = used + quota.step();
        // The common case ends here: 128-bit arithmetic is slow in wasm.
        if used.saturating_mul(100) < cap.saturating_mul(WARN_PERCENT) {
            continue;
        }
        let nearer = warning.is_none_or(|w| {
            u128::from(used) * u128::from(w.cap) > u128::from(w.used) * u128::from(cap)
        });
        if nearer {
            warning = Some(Warning { quota, used, cap, ends_in_s: ends_s.saturating_sub(now_s) });
        }
    }
    Ok(warning)
}

/// Returns whether a period that ends at `ends_s` has ended. 0 means unknown and has not.
fn has_ended(ends_s: u64, now_s: u64) -> bool {
    ends_s != 0 && now_s >= ends_s
}

#[cfg(test)]
mod tests {
    use protocol::{ByteLimit, CountLimit};

    use super::*;
    use crate::RefusalKind;
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    const NOW: u64 = 1_800_000_000;

    fn notice(day: u64, month: u64, writes: u64) -> TenantNotice {
        TenantNotice {
            requests_day: day,
            requests_month: month,
            writes_day: writes,
            day_ends_s: NOW + 600,
            month_ends_s: NOW + 6_000,
            ..TenantNotice::default()
        }
    }

    /// Limits that are never reached unless a test names them.
    const MANY: u64 = u64::MAX;

    fn limits(day: u64, month: u64, writes: u64) -> Limits {
        Limits {
            requests_per_day: CountLimit::Count(day),
            requests_per_month: CountLimit::Count(month),
            writes_per_day: CountLimit::Count(writes),
            egress_bytes_per_day: ByteLimit::Unlimited,
            ..Limits::default()
        }
    }

    fn unlimited() -> Limits {
        Limits {
            requests_per_day: CountLimit::Unlimited,
            requests_per_month: CountLimit::Unlimited,
            writes_per_day: CountLimit::Unlimited,
            ..limits(MANY, MANY, MANY)
        }
    }

    #[test]
    fn last_request_passes_and_the_next_is_refused() {
        let limits = limits(100, MANY, MANY);
        let none = Delta::default();
        assert!(check(&notice(99, 99, 0), &limits, &none, Class::Read, NOW).is_ok());
        let refused = check(&notice(100, 100, 0), &limits, &none, Class::Read, NOW).unwrap_err();
        assert_eq!(refused.kind, RefusalKind::QuotaExceeded);
        assert_eq!(refused.retry_after_s, Some(600));
        assert_eq!(refused.used_and_cap, Some((100, 100)));
    }

    #[test]
    fn requests_since_the_notice_count() {
        let since = Delta { requests_day: 1, requests_month: 1, ..Delta::default() };
        assert!(
            check(&notice(99, 99, 0), &limits(100, MANY, MANY), &since, Class::Read, NOW).is_err()
        );
    }

    #[test]
    fn raised_tier_applies_at_once() {
        let full = notice(100, 100, 0);
        let none = Delta::default();
        assert!(check(&full, &limits(100, MANY, MANY), &none, Class::Read, NOW).is_err());
        assert!(check(&full, &limits(1_000, MANY, MANY), &none, Class::Read, NOW).is_ok());
    }

    #[test]
    fn used_up_writes_leave_reads() {
        let full = notice(10, 10, 5);
        let limits = limits(MANY, MANY, 5);
        let none = Delta::default();
        assert!(check(&full, &limits, &none, Class::Write, NOW).is_err());
        assert_eq!(check(&full, &limits, &none, Class::Read, NOW), Ok(None));
    }

    #[test]
    fn new_day_starts_at_zero_without_a_notice() {
        let full = notice(100, 100, 5);
        let limits = limits(100, MANY, 5);
        let none = Delta::default();
        assert_eq!(check(&full, &limits, &none, Class::Write, NOW + 600), Ok(None));
        let refused =
            check(&full, &super::tests::limits(MANY, 100, MANY), &none, Class::Read, NOW + 600);
        assert_eq!(refused.unwrap_err().retry_after_s, Some(5_400), "the month goes on");
    }

    #[test]
    fn warning_names_the_quota_nearest_to_its_end() {
        let limits = limits(100, 1_000, MANY);
        let none = Delta::default();
        assert_eq!(check(&notice(78, 78, 0), &limits, &none, Class::Read, NOW), Ok(None));
        let warned = check(&notice(79, 899, 0), &limits, &none, Class::Read, NOW).unwrap();
        let text = warned.map(|w| w.to_string());
        assert_eq!(text.as_deref(), Some("\"month\";used=900;limit=1000;t=6000"));
    }

    #[test]
    fn unlimited_is_never_used_up() {
        let much = notice(u64::MAX / 2, u64::MAX / 2, u64::MAX / 2);
        assert_eq!(check(&much, &unlimited(), &Delta::default(), Class::Write, NOW), Ok(None));
    }

    #[test]
    fn zero_allows_nothing() {
        let none = Delta::default();
        let unused = notice(0, 0, 0);
        let no_writes = limits(MANY, MANY, 0);
        assert!(check(&unused, &no_writes, &none, Class::Write, NOW).is_err());
        assert_eq!(check(&unused, &no_writes, &none, Class::Read, NOW), Ok(None));
        assert!(check(&unused, &limits(0, MANY, MANY), &none, Class::Read, NOW).is_err());
        assert!(check(&unused, &limits(MANY, 0, MANY), &none, Class::Read, NOW).is_err());
    }

    fn egress(cap: ByteLimit) -> Limits {
        Limits { egress_bytes_per_day: cap, ..unlimited() }
    }

    fn answered(bytes_out_day: u64) -> TenantNotice {
        TenantNotice { bytes_out_day, ..notice(0, 0, 0) }
    }

    #[test]
    fn answered_bytes_of_the_day_refuse_reads_only() {
        let limits = egress(ByteLimit::Bytes(1_000));
        let since = Delta { bytes_out_day: 1, ..Delta::default() };
        assert!(check(&answered(998), &limits, &since, Class::Read, NOW).is_ok());
        let refused = check(&answered(999), &limits, &since, Class::Read, NOW).unwrap_err();
        assert_eq!(refused.kind, RefusalKind::EgressQuotaExceeded);
        assert_eq!(
            (refused.retry_after_s, refused.used_and_cap),
            (Some(600), Some((1_000, 1_000)))
        );
        assert_eq!(check(&answered(999), &limits, &since, Class::Write, NOW), Ok(None));
        assert_eq!(check(&answered(999), &limits, &since, Class::Read, NOW + 600), Ok(None));
    }

    #[test]
    fn bytes_warn_from_80_percent() {
        let limits = egress(ByteLimit::Bytes(1_000));
        let warned = |used| {
            let checked = check(&answered(used), &limits, &Delta::default(), Class::Read, NOW);
            checked.unwrap().map(|warning| warning.to_string())
        };
        assert_eq!(warned(799), None);
        assert_eq!(warned(800).as_deref(), Some("\"egress-day\";used=800;limit=1000;t=600"));
    }

    #[test]
    fn zero_bytes_allow_no_read() {
        let check = |cap, used| {
            check(&answered(used), &egress(cap), &Delta::default(), Class::Read, NOW).is_ok()
        };
        assert!(!check(ByteLimit::Bytes(0), 0));
        assert!(check(ByteLimit::Unlimited, u64::MAX));
    }
}
