//! Summing up old hours and days.

use std::ops::Range;

use super::*;
use crate::usage::store::prune::PRUNE_ROWS;

#[test]
fn envoy_older_than_kept_hours_is_summed_whole() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    let gateway = GatewayId::parse("gw").unwrap();
    for day in 0..40 {
        let rows = (0..3).map(|n| row(n, HOUR + day * 24, 2 + day)).collect();
        store.commit(&[report("a", rows)], NOW + day * DAY_S).unwrap();
        store.commit(&[report("b", vec![row(1, HOUR, 1)])], NOW + day * DAY_S).unwrap();
    }
    let before = store.gateway_sums(&gateway, NOW).unwrap();
    while store.prune(NOW + 40 * DAY_S).unwrap() {}
    assert!(store.hour_rows().unwrap() < 3 * 16);
    assert_eq!(store.gateway_sums(&gateway, NOW).unwrap(), before);
    assert_eq!(before.reads, total(&store));
}

#[test]
fn clock_far_ahead_makes_no_hour_old() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    store.commit(&[report("a", vec![row(1, HOUR, 4)])], NOW).unwrap();
    let ahead = NOW + 100 * DAY_S;
    while store.prune(ahead).unwrap() {}
    let same_hour = store.commit(&[report("a", vec![row(1, HOUR, 9)])], ahead).unwrap();
    assert_eq!((quarantined(&same_hour), total(&store)), (0, 9));
    assert_eq!(store.prune_clock_s(ahead).unwrap(), (HOUR + 1) * HOUR_S);
    assert_eq!(store.prune_clock_s(NOW).unwrap(), NOW, "newer rows make nothing old");
}

#[test]
fn roll_up_to_days_and_months_keeps_sums() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    for day in 0..40 {
        let rows = (0..3).map(|n| row(n, HOUR + day * 24, 2 + day)).collect();
        store.commit(&[report("a", rows)], NOW + day * DAY_S).unwrap();
    }
    let before = total(&store);
    let month = Month::of(NOW + 10 * DAY_S);
    let span = month.start_s()..month.next().start_s();
    let used = month_of_second_tenant(&store, &span);
    while store.prune(NOW + 40 * DAY_S).unwrap() {}
    let rows = store.hour_rows().unwrap();
    assert!(rows < 3 * 16, "{rows} hours are left");
    assert_eq!((total(&store), month_of_second_tenant(&store, &span)), (before, used.clone()));
    let later = NOW + (40 + DAYS_KEPT) * DAY_S;
    store.commit(&[report("a", vec![row(9, later / HOUR_S, 1)])], later).unwrap();
    while store.prune(later).unwrap() {}
    assert_eq!((store.hour_rows().unwrap(), total(&store)), (1, before + 1));
    assert_eq!(month_of_second_tenant(&store, &span), used);
}

/// Returns one tenant's sums of a month, as both queries have them.
fn month_of_second_tenant(store: &Store, span: &Range<u64>) -> Sums {
    let tenant = store.sums_by_tenant(span.clone()).unwrap()[1].clone();
    let sums = store.tenant_sums(&tenant.tenant, span.clone()).unwrap();
    assert_eq!(Sums { reasons: BTreeMap::new(), ..sums.clone() }, tenant.sums);
    sums
}

#[test]
fn rows_too_late_or_far_ahead_are_quarantined() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    store.commit(&[report("a", vec![row(1, HOUR, 4)])], NOW).unwrap();
    let later = NOW + 20 * DAY_S;
    store.commit(&[report("a", vec![row(2, later / HOUR_S, 1)])], later).unwrap();
    while store.prune(later).unwrap() {}
    let late = store.commit(&[report("a", vec![row(1, HOUR, 5), row(1, HOUR + 9_999, 5)])], later);
    let late = late.unwrap().quarantined;
    let expected = [(Suspicion::HourTooOld, 1), (Suspicion::HourAhead, 1)];
    assert_eq!((late, total(&store)), (BTreeMap::from(expected), 5));
}

#[test]
fn quotas_survive_restart_and_roll_up() {
    let dir = TempDir::new().unwrap();
    let month = Month::of(NOW).next();
    let first = month.start_s();
    let last = month.next().start_s() - 1;
    let mut store = open(&dir);
    store.commit(&[report("a", vec![row(1, first / HOUR_S, 7)])], first).unwrap();
    store.commit(&[report("a", vec![row(1, last / HOUR_S, 5)])], last).unwrap();
    while store.prune(last).unwrap() {}
    drop(store);
    let mut tally = Tally::default();
    open(&dir).recent_increases(last).unwrap().iter().for_each(|increase| tally.add(increase));
    let notice = tally.notice(&tenant(1), last);
    assert_eq!((notice.requests_day, notice.requests_month), (5, 12));
    assert_eq!(notice.month_ends_s, last + 1);
}

#[test]
fn unused_plans_are_deleted_and_others_stay() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    for burst in 0..=u32::try_from(plans::PLANS_MAX).unwrap() {
        let limits = Limits { burst, ..Limits::default() };
        store.commit(&[report("a", vec![UsageRow { limits, ..row(1, HOUR, 1) }])], NOW).unwrap();
    }
    store.prune(NOW).unwrap();
    assert_eq!(store.plans.len(), 1);
    let limits = store.tenant_plan(&tenant(1)).unwrap().unwrap().limits;
    assert_eq!(limits.burst as usize, plans::PLANS_MAX);
    let again = UsageRow { limits, ..row(1, HOUR, 9) };
    store.commit(&[report("a", vec![again, row(2, HOUR, 1)])], NOW).unwrap();
    assert_eq!(store.plans.len(), 2);
}

#[test]
fn large_hour_is_rolled_up_in_bounded_steps() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    let tenants = usize::try_from(PRUNE_ROWS).unwrap() + 10;
    for source in ["a", "b"] {
        let rows = (0..tenants).map(|n| row(n, HOUR, 3)).collect();
        store.commit(&[report(source, rows)], NOW).unwrap();
    }
    let later = NOW + 20 * DAY_S;
    store.commit(&[report("a", vec![row(tenants, later / HOUR_S, 3)])], later).unwrap();
    let mut left = store.hour_rows().unwrap();
    let sum = total(&store);
    while store.prune(later).unwrap() {
        let rows = store.hour_rows().unwrap();
        assert!(left - rows <= PRUNE_ROWS + 1, "{} rows in one step", left - rows);
        assert_eq!(total(&store), sum);
        let late = store.commit(&[report("a", vec![row(tenants - 1, HOUR, 9)])], later).unwrap();
        assert_eq!(quarantined(&late), 1, "an hour that is being rolled up takes no rows");
        left = rows;
    }
    assert_eq!((left, total(&store)), (1, sum));
}
