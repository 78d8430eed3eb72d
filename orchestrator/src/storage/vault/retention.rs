//! Selects the snapshots that are kept. Pure.

use protocol::time::{DAY_S, HOUR_S};

/// Returns the snapshots to delete. Of `taken_s` (seconds since 1970, in any order) the newest of
/// each of the last `hourly` hours and the newest of each of the last `daily` days are kept. Hours and
/// days without a snapshot are not counted.
pub(super) fn expired(taken_s: &[u64], hourly: u32, daily: u32) -> Vec<u64> {
    let mut newest_first = taken_s.to_vec();
    newest_first.sort_unstable_by(|a, b| b.cmp(a));
    newest_first.dedup();
    let mut kept = newest_of_each(&newest_first, HOUR_S, hourly);
    kept.extend(newest_of_each(&newest_first, DAY_S, daily));
    newest_first.retain(|taken| !kept.contains(taken));
    newest_first
}

fn newest_of_each(newest_first: &[u64], period_s: u64, count: u32) -> Vec<u64> {
    let mut kept = newest_first.to_vec();
    kept.dedup_by_key(|taken| *taken / period_s);
    kept.truncate(count as usize);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn newest_of_each_hour_and_day_is_kept() {
        let day = DAY_S;
        let taken = [0, 10, day, day + HOUR_S, day + HOUR_S + 5, 2 * day];
        // Hours: 2 days; 1 day, 1 hour and 5 s. Days: these two, and 10 s.
        assert_eq!(expired(&taken, 2, 3), vec![day + HOUR_S, day, 0]);
    }

    #[test]
    fn tier_without_snapshots_keeps_none() {
        assert_eq!(expired(&[5, 6], 0, 0), vec![6, 5]);
    }

    proptest! {
        #[test]
        fn kept_snapshots_are_bounded_and_include_the_newest(
            taken in prop::collection::vec(0u64..10_000_000, 1..80), h in 1u32..8, d in 0u32..8,
        ) {
            let expired = expired(&taken, h, d);
            let mut kept = taken.clone();
            kept.sort_unstable();
            kept.dedup();
            kept.retain(|taken| !expired.contains(taken));
            prop_assert!(kept.len() <= (h + d) as usize);
            prop_assert_eq!(kept.last(), taken.iter().max());
        }
    }
}
