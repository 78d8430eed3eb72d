//! What is known of a tenant's use: the orchestrator's last word, and what is on its way here.

use std::rc::Rc;

use protocol::TenantNotice;

/// What the orchestrator said of a tenant.
#[derive(Debug, Default)]
pub(crate) struct Notice {
    /// Its words.
    pub(crate) notice: TenantNotice,
    /// When it was asked.
    pub(crate) asked_ns: u64,
}

/// Requests that were let through here and are not over: counted as used before they are counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct InFlight {
    /// All of them.
    pub(crate) requests: u32,
    /// Those that write.
    pub(crate) writes: u32,
}

/// What is known of one tenant.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// The orchestrator's last word.
    pub(crate) notice: Rc<Notice>,
    /// The word before, where the last one may or may not contain what this VM has reported: it came
    /// with a lease while a report was on its way.
    pub(crate) before: Option<Rc<Notice>>,
    /// What is on its way here.
    pub(crate) in_flight: InFlight,
}

impl Known {
    /// An answer to an earlier question says nothing new. One whose ledger is not open says nothing
    /// of what was used: what was known of that stays.
    pub(super) fn hear(&mut self, mut notice: TenantNotice, asked_ns: u64, in_doubt: bool) {
        if asked_ns < self.notice.asked_ns {
            return;
        }
        self.before =
            if in_doubt { self.before.take().or_else(|| Some(self.notice.clone())) } else { None };
        if !notice.knows_usage() {
            let known = &self.notice.notice;
            notice.requests_day = known.requests_day;
            notice.requests_month = known.requests_month;
            notice.writes_day = known.writes_day;
            notice.day_ends_s = known.day_ends_s;
            notice.month_ends_s = known.month_ends_s;
        }
        self.notice = Rc::new(Notice { notice, asked_ns });
    }

    pub(super) fn begin(&mut self, writes: bool) {
        self.in_flight.requests += 1;
        self.in_flight.writes += u32::from(writes);
    }

    pub(super) fn end(&mut self, writes: bool) {
        let InFlight { requests, writes: writing } = &mut self.in_flight;
        *requests = requests.saturating_sub(1);
        *writing = writing.saturating_sub(u32::from(writes));
    }
}
