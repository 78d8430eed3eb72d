use super::*;
use crate::usage::reconcile::{EnvoyCounters, reconcile};
use crate::usage::revenue::Revenue;

const NOON: u64 = 1_800_014_400; // 2027-01-15 12:00 UTC

fn tenant(name: &str) -> TenantId {
    TenantId::parse(name).unwrap()
}

fn added(name: &str, at_s: u64, reads: u64, writes: u64) -> Added {
    Added { tenant: tenant(name), hour: at_s / HOUR_S, reads, writes }
}

#[test]
fn a_notice_counts_this_day_and_month_over_all_sources() {
    let mut tally = Tally::default();
    tally.count(&added("a", NOON, 3, 2));
    tally.count(&added("a", NOON - 13 * HOUR_S, 10, 0));
    tally.count(&added("a", NOON - 20 * DAY_S, 100, 0));
    let notice = tally.notice(&tenant("a"), NOON);
    assert_eq!((notice.requests_day, notice.writes_day, notice.requests_month), (5, 2, 15));
    assert_eq!(notice.day_ends_s, NOON + 12 * HOUR_S);
    assert_eq!(tally.notice(&tenant("b"), NOON).requests_day, 0);
}

#[test]
fn midnight_starts_at_nothing_and_yesterdays_late_rows_stay_yesterdays() {
    let mut tally = Tally::default();
    let midnight = NOON + 12 * HOUR_S;
    tally.count(&added("a", midnight - 1, 5, 0));
    assert_eq!(tally.notice(&tenant("a"), midnight).requests_day, 0);
    tally.count(&added("a", midnight, 1, 0));
    tally.count(&added("a", midnight - 1, 2, 0));
    assert_eq!(tally.notice(&tenant("a"), midnight).requests_day, 1);
    assert_eq!(tally.notice(&tenant("a"), midnight - 1).requests_day, 7);
}

#[test]
fn a_gateway_whose_clock_is_a_day_ahead_takes_nothing_from_today() {
    let mut tally = Tally::default();
    tally.count(&added("a", NOON, 5, 0));
    tally.count(&added("a", NOON + DAY_S, 1, 0));
    tally.count(&added("a", NOON, 2, 0));
    assert_eq!(tally.notice(&tenant("a"), NOON).requests_day, 7);
}

#[test]
fn tenants_not_seen_for_two_months_are_forgotten() {
    let mut tally = Tally::default();
    tally.count(&added("old", NOON, 1, 0));
    tally.count(&added("new", NOON + 60 * DAY_S, 1, 0));
    tally.prune(NOON + 60 * DAY_S);
    assert_eq!(tally.len(), 1);
}

#[test]
fn the_top_is_by_todays_requests_and_has_a_bound() {
    let mut tally = Tally::default();
    for (name, reads) in [("a", 5), ("b", 9), ("c", 7), ("d", 0)] {
        tally.count(&added(name, NOON, reads, 0));
    }
    assert_eq!(tally.top(NOON, 2), [(tenant("b"), 9), (tenant("c"), 7)]);
}

#[test]
fn a_broken_source_can_fill_neither_names_nor_numbers() {
    let mut counters = Counters { reads: u64::MAX, ..Counters::default() };
    for n in 0..1_000 {
        counters.refused.insert(format!("reason-{n}"), u64::MAX / 2);
    }
    counters.refused.insert("<script>".to_owned(), 1);
    counters.refused.insert("rate-limited".to_owned(), 7);
    let sums = Sums::of(&counters);
    assert_eq!(sums.reads, i64::MAX.unsigned_abs());
    let names: Vec<_> = sums.reasons.keys().map(String::as_str).collect();
    assert_eq!((names, sums.reasons["rate-limited"]), (vec!["other", "rate-limited"], 7));
    let mut twice = sums.clone();
    twice.add(&sums);
    assert_eq!(twice.requests(), i64::MAX.unsigned_abs(), "it ends at the most, it does not wrap");
}

#[test]
fn revenue_is_the_prices_of_those_served_against_the_target() {
    let line = |name: &str, tier: &str, cents: u32, sums: Sums| Line {
        tenant: tenant(name),
        tier: TierName::parse(tier).unwrap(),
        price_cents_month: cents,
        sums,
    };
    let served = || Sums { writes: 1, ..Sums::default() };
    let suspended = Sums { refused: 9, ..Sums::default() };
    let lines = [
        line("a", "pro", 1_900, served()),
        line("b", "pro", 1_900, served()),
        line("c", "free", 0, served()),
        line("suspended", "team", 9_900, suspended),
    ];
    let revenue = Revenue::of(&lines, 380);
    assert_eq!((revenue.cents, revenue.percent()), (3_800, 10));
    assert_eq!(revenue.tiers[&TierName::parse("pro").unwrap()].tenants, 2);
    assert_eq!(revenue.tiers.get(&TierName::parse("team").unwrap()), None);
}

#[test]
fn reconciling_shows_what_is_nobodys_and_finds_what_was_counted_twice_or_lost() {
    let envoy = EnvoyCounters { total: 112, active: 1, status: [0, 90, 0, 15, 5] };
    let mut sums = Sums { status: [1, 0, 88, 0, 10, 5], ..Sums::default() };
    let good = reconcile(&envoy, 104, &sums);
    assert!(good.is_sound());
    let nobodys: Vec<_> = good.rows.iter().map(|row| row.nobodys).collect();
    assert_eq!(nobodys, [0, 0, 2, 0, 5, 0], "a preflight, a usage page, five bad keys");
    assert!(!reconcile(&envoy, 107, &sums).is_sound(), "three are lost");
    assert_eq!(reconcile(&envoy, 107, &sums).lost, 3);
    assert_eq!(reconcile(&envoy, 100, &sums).lost, 0, "the filter says so once a second");
    sums.status[2] = 100;
    let bad = reconcile(&envoy, 104, &sums);
    assert_eq!((bad.is_sound(), bad.total.doubled, bad.rows[2].doubled), (false, 5, 10));
}
