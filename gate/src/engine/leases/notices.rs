//! The use of a tenant as far as it is known here: notices from the orchestrator, and the requests
//! in flight.

use std::rc::Rc;

use protocol::TenantNotice;

use crate::limits::quota::InFlight;

/// A notice from the orchestrator, and the time at which it was asked for.
#[derive(Debug, Default)]
pub(crate) struct DatedNotice {
    pub(crate) notice: TenantNotice,
    pub(crate) asked_ns: u64,
}

/// The known use of one tenant.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    pub(crate) last: Rc<DatedNotice>,
    /// The notice before, if it is uncertain whether the last one contains a report of this VM: it
    /// came with a lease while the report was in flight.
    pub(crate) before: Option<Rc<DatedNotice>>,
    pub(crate) in_flight: InFlight,
}

impl Notices {
    /// Takes over a notice, unless it was asked for before the last one.
    pub(super) fn update(&mut self, mut notice: TenantNotice, asked_ns: u64, in_doubt: bool) {
        if asked_ns < self.last.asked_ns {
            return;
        }
        self.before =
            if in_doubt { self.before.take().or_else(|| Some(self.last.clone())) } else { None };
        if !notice.knows_usage() {
            // The orchestrator's ledger is not open yet: keep the use that was known.
            let last = &self.last.notice;
            notice.requests_day = last.requests_day;
            notice.requests_month = last.requests_month;
            notice.writes_day = last.writes_day;
            notice.bytes_out_day = last.bytes_out_day;
            notice.day_ends_s = last.day_ends_s;
            notice.month_ends_s = last.month_ends_s;
        }
        self.last = Rc::new(DatedNotice { notice, asked_ns });
    }
}
