use super::*;

const NOON: u64 = 1_800_014_400; // 2027-01-15 12:00 UTC

fn tenant(name: &str) -> TenantId {
    TenantId::parse(name).unwrap()
}

fn increase(name: &str, at_s: u64, reads: u64, writes: u64) -> Increase {
    let bytes_out = 10 * reads;
    Increase { tenant: tenant(name), hour: at_s / HOUR_S, reads, writes, bytes_out }
}

#[test]
fn notice_counts_this_day_and_month() {
    let mut tally = Tally::default();
    tally.add(&increase("a", NOON, 3, 2));
    tally.add(&increase("a", NOON - 13 * HOUR_S, 10, 0));
    tally.add(&increase("a", NOON - 20 * DAY_S, 100, 0));
    let notice = tally.notice(&tenant("a"), NOON);
    assert_eq!((notice.requests_day, notice.writes_day, notice.requests_month), (5, 2, 15));
    assert_eq!(notice.bytes_out_day, 30);
    assert_eq!(notice.day_ends_s, NOON + 12 * HOUR_S);
    assert_eq!(tally.notice(&tenant("b"), NOON).requests_day, 0);
}

#[test]
fn late_rows_of_yesterday_stay_yesterdays() {
    let mut tally = Tally::default();
    let midnight = NOON + 12 * HOUR_S;
    tally.add(&increase("a", midnight - 1, 5, 0));
    assert_eq!(tally.notice(&tenant("a"), midnight).requests_day, 0);
    tally.add(&increase("a", midnight, 1, 0));
    tally.add(&increase("a", midnight - 1, 2, 0));
    assert_eq!(tally.notice(&tenant("a"), midnight).requests_day, 1);
    assert_eq!(tally.notice(&tenant("a"), midnight - 1).requests_day, 7);
}

#[test]
fn gateway_a_day_ahead_takes_nothing_from_today() {
    let mut tally = Tally::default();
    tally.add(&increase("a", NOON, 5, 0));
    tally.add(&increase("a", NOON + DAY_S, 1, 0));
    tally.add(&increase("a", NOON, 2, 0));
    assert_eq!(tally.notice(&tenant("a"), NOON).requests_day, 7);
}

#[test]
fn tenants_idle_for_two_months_are_removed() {
    let mut tally = Tally::default();
    tally.add(&increase("old", NOON, 1, 0));
    tally.add(&increase("new", NOON + 60 * DAY_S, 1, 0));
    tally.remove_idle(NOON + 60 * DAY_S);
    assert_eq!(tally.tenants(), 1);
}
