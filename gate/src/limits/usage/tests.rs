use std::collections::BTreeMap;

use proptest::prelude::*;
use protocol::{Limits, TenantStatus, TierName};

use super::*;
#[cfg(target_family = "wasm")]
use wasm_bindgen_test::wasm_bindgen_test as test;

const NOON: u64 = 1_799_971_200; // 2027-01-15 00:00 UTC plus hours below
use protocol::time::HOUR_S as HOUR;

fn tenant(n: usize) -> TenantId {
    TenantId::parse(&format!("t{n}")).unwrap()
}

fn usage(rows_max: usize) -> Usage {
    Usage::with_rows_max(GatewayId::parse("gw").unwrap(), "vm-1".into(), rows_max)
}

fn read() -> Served {
    Served {
        fate: Fate::Forwarded(Class::Read),
        status: 200,
        bytes_in: 3,
        bytes_out: 5,
        service_us: 2_000,
    }
}

fn verdict(n: usize) -> Rc<Verdict> {
    Rc::new(Verdict {
        tenant: tenant(n),
        tier: TierName::parse("free").unwrap(),
        status: TenantStatus::Active,
        expires_s: None,
        limits: Limits::default(),
    })
}

fn record(usage: &mut Usage, n: usize, served: &Served, now_s: u64) -> bool {
    usage.record(&verdict(n), served, now_s)
}

/// A model of the ledger: the maximum per source, tenant and hour.
#[derive(Default)]
struct Ledger(BTreeMap<(String, TenantId, u64), u64>);

impl Ledger {
    fn take(&mut self, report: &UsageReport) {
        for row in &report.rows {
            let key = (report.source.clone(), row.tenant.clone(), row.hour);
            let seen = self.0.entry(key).or_default();
            *seen = (*seen).max(row.counters.requests());
        }
    }

    fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

#[test]
fn report_has_changed_rows_with_cumulative_counters() {
    let mut usage = usage(100);
    record(&mut usage, 1, &read(), NOON);
    record(&mut usage, 2, &read(), NOON);
    let first = usage.flush(NOON).unwrap();
    assert_eq!(first.rows.len(), 2);
    usage.acked(first.sequence);
    assert_eq!(usage.flush(NOON), None, "nothing new, nothing sent");
    record(&mut usage, 2, &read(), NOON + 1);
    let second = usage.flush(NOON + 1).unwrap();
    assert_eq!(second.rows.len(), 1);
    assert_eq!((second.rows[0].counters.reads, second.rows[0].counters.bytes_out), (2, 10));
}

#[test]
fn unacknowledged_report_is_sent_again() {
    let mut usage = usage(100);
    record(&mut usage, 1, &read(), NOON);
    let lost = usage.flush(NOON).unwrap();
    record(&mut usage, 1, &read(), NOON);
    let again = usage.flush(NOON + 1).unwrap();
    assert_eq!(again.rows[0].counters.reads, 2);
    usage.acked(lost.sequence);
    assert!(usage.flush(NOON + 2).is_some(), "a late answer to the lost one acknowledges nothing");
}

#[test]
fn requests_between_flush_and_ack_are_kept() {
    let mut usage = usage(100);
    record(&mut usage, 1, &read(), NOON);
    let report = usage.flush(NOON).unwrap();
    record(&mut usage, 1, &read(), NOON);
    usage.acked(report.sequence);
    assert_eq!(usage.delta(&tenant(1), Since::Acked, NOON).requests_day, 1);
    assert_eq!(usage.flush(NOON).unwrap().rows[0].counters.reads, 2);
}

#[test]
fn report_has_the_newest_tier_and_limits() {
    let mut usage = usage(100);
    record(&mut usage, 1, &read(), NOON);
    let mut raised = (*verdict(1)).clone();
    (raised.tier, raised.limits.burst) = (TierName::parse("pro").unwrap(), 400);
    usage.record(&Rc::new(raised), &read(), NOON);
    let row = usage.flush(NOON).unwrap().rows.remove(0);
    assert_eq!((row.tier.as_str(), row.limits.burst, row.counters.reads), ("pro", 400, 2));
}

#[test]
fn each_kind_of_end_is_counted_once() {
    let mut usage = usage(100);
    record(&mut usage, 1, &read(), NOON);
    let write = Served { fate: Fate::Forwarded(Class::Write), status: 0, ..read() };
    record(&mut usage, 1, &write, NOON);
    usage.record_wake(&verdict(1), WakeKind::Start, NOON);
    let refused = Served { fate: Fate::Refused(RefusalKind::RateLimited), status: 429, ..read() };
    record(&mut usage, 1, &refused, NOON);
    let counters = usage.flush(NOON).unwrap().rows.remove(0).counters;
    assert_eq!((counters.reads, counters.writes, counters.requests()), (1, 1, 3));
    assert_eq!(counters.status, [1, 0, 1, 0, 1, 0]);
    assert_eq!(counters.refused, BTreeMap::from([("rate-limited".into(), 1)]));
    assert_eq!(counters.wakes, BTreeMap::from([(WakeKind::Start, 1)]));
}

#[test]
fn service_time_is_summed_in_microseconds() {
    let mut usage = usage(100);
    let quick = Served { service_us: 400, ..read() };
    for _ in 0..1_000 {
        record(&mut usage, 1, &quick, NOON);
    }
    assert_eq!(usage.flush(NOON).unwrap().rows[0].counters.service_ms, 400);
}

#[test]
fn acknowledged_past_hours_leave_memory() {
    let mut usage = usage(100);
    for n in 0..10 {
        record(&mut usage, n, &read(), NOON);
    }
    let report = usage.flush(NOON).unwrap();
    usage.acked(report.sequence);
    assert_eq!(usage.rows(), 10, "the hour may go on");
    assert_eq!(usage.flush(NOON + HOUR), None);
    assert_eq!(usage.rows(), 0);
}

#[test]
fn small_clock_step_reopens_no_hour() {
    let mut usage = usage(100);
    record(&mut usage, 1, &read(), NOON + HOUR);
    let report = usage.flush(NOON + 2 * HOUR).unwrap();
    usage.acked(report.sequence);
    record(&mut usage, 1, &read(), NOON + 2 * HOUR - 1);
    let row = usage.flush(NOON + 2 * HOUR).unwrap().rows.remove(0);
    assert_eq!(row.hour, NOON / HOUR + 2, "not in an hour that may be closed");
}

#[test]
fn clock_jump_costs_only_requests_within_it() {
    let mut usage = usage(100);
    let mut ledger = Ledger::default();
    let mut deliver = |usage: &mut Usage, now_s: u64| {
        while let Some(report) = usage.flush(now_s) {
            ledger.take(&report);
            usage.acked(report.sequence);
        }
    };
    record(&mut usage, 1, &read(), NOON);
    deliver(&mut usage, NOON);
    record(&mut usage, 1, &read(), NOON);
    // A hundred days ahead for a moment. The rows from before and within it are not sent yet.
    record(&mut usage, 1, &read(), NOON + 2_400 * HOUR);
    assert!(usage.flush(NOON + 2_400 * HOUR).is_some());
    record(&mut usage, 1, &read(), NOON + 10);
    deliver(&mut usage, NOON + 10);
    record(&mut usage, 1, &read(), NOON + 20);
    deliver(&mut usage, NOON + 20);
    let of_noon = ledger.0.iter().filter(|((_, _, hour), _)| *hour == NOON / HOUR);
    assert_eq!(of_noon.map(|(_, n)| n).sum::<u64>(), 4);
    assert_eq!(ledger.total(), 5);
    assert!(ledger.0.keys().all(|(source, _, _)| source.starts_with("vm-1")));
    assert_eq!(usage.delta(&tenant(1), Since::Acked, NOON + 20), Delta::default());
}

#[test]
fn delta_covers_this_day_and_month() {
    let mut usage = usage(100);
    // 2027-01-31 23:59:59 and the second after.
    let end_s = 1_801_439_999;
    record(&mut usage, 1, &read(), end_s);
    let write = Served { fate: Fate::Forwarded(Class::Write), ..read() };
    record(&mut usage, 1, &write, end_s + 1);
    let before = Delta { requests_day: 1, requests_month: 1, bytes_out_day: 5, ..Delta::default() };
    assert_eq!(usage.delta(&tenant(1), Since::Acked, end_s), before);
    let after = Delta { writes_day: 1, ..before };
    assert_eq!(usage.delta(&tenant(1), Since::Acked, end_s + 1), after);
}

#[test]
fn hours_without_orchestrator_are_billed_once() {
    let mut usage = usage(50);
    let mut ledger = Ledger::default();
    let mut counted = 0;
    for hour in 0..12 {
        for n in 0..20 {
            assert!(record(&mut usage, n, &read(), NOON + hour * HOUR));
            counted += 1;
        }
        // The report arrives, its response does not.
        ledger.take(&usage.flush(NOON + hour * HOUR).unwrap());
        assert!(usage.rows() <= 50, "{} rows", usage.rows());
    }
    while let Some(report) = usage.flush(NOON + 13 * HOUR) {
        ledger.take(&report);
        usage.acked(report.sequence);
    }
    assert_eq!(ledger.total(), counted, "hours may be merged, requests may not be lost or doubled");
}

#[test]
fn tenants_beyond_the_rows_are_reported_uncounted() {
    let mut usage = usage(5);
    let counted = (0..8).filter(|n| record(&mut usage, *n, &read(), NOON));
    assert_eq!((counted.count(), usage.rows()), (5, 5));
}

#[derive(Debug, Clone)]
enum Step {
    Record(usize),
    /// A report is sent; it and its response may get lost.
    Flush {
        arrives: bool,
        answered: bool,
    },
    Wait(u64),
    /// The clock steps back.
    Back(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..6_usize).prop_map(Step::Record),
        3 => (any::<bool>(), any::<bool>())
            .prop_map(|(arrives, answered)| Step::Flush { arrives, answered }),
        2 => (0..2 * HOUR).prop_map(Step::Wait),
        1 => (0..5 * HOUR).prop_map(Step::Back),
    ]
}

proptest! {
    #[test]
    fn each_request_is_in_the_ledger_once(
        rows_max in 6..40_usize,
        steps in prop::collection::vec(step(), 1..400),
    ) {
        let mut usage = usage(rows_max);
        let mut ledger = Ledger::default();
        let mut now_s = NOON;
        let mut counted = 0;
        let mut old = Vec::new();
        for step in steps {
            match step {
                Step::Record(n) => {
                    counted += u64::from(record(&mut usage, n, &read(), now_s));
                }
                Step::Wait(s) => now_s += s,
                Step::Back(s) => now_s -= s,
                Step::Flush { arrives, answered } => {
                    let Some(report) = usage.flush(now_s) else { continue };
                    if arrives {
                        ledger.take(&report);
                        if answered {
                            usage.acked(report.sequence);
                        }
                    }
                    old.push(report);
                }
            }
            prop_assert!(usage.rows() <= rows_max);
            prop_assert!(ledger.total() <= counted, "billed twice");
        }
        while let Some(report) = usage.flush(now_s) {
            ledger.take(&report);
            usage.acked(report.sequence);
        }
        // Late repeats of anything ever sent change nothing.
        old.iter().rev().for_each(|report| ledger.take(report));
        prop_assert_eq!(ledger.total(), counted);
    }
}
