//! Which point-in-time copies stay. Pure.

use protocol::time::{DAY_S, HOUR_S};

/// Seconds of an hour and of a day.

/// Copies to remove: of `taken_s` (seconds since 1970, any order) the newest of each of the last
/// `hourly` hours and the newest of each of the last `daily` days that have one stay.
pub(super) fn superfluous(taken_s: &[u64], hourly: u32, daily: u32) -> Vec<u64> {
    let mut newest_first = taken_s.to_vec();
    newest_first.sort_unstable_by(|a, b| b.cmp(a));
    newest_first.dedup();
    let mut keep = newest_of_each(&newest_first, HOUR_S, hourly);
    keep.extend(newest_of_each(&newest_first, DAY_S, daily));
    newest_first.retain(|t| !keep.contains(t));
    newest_first
}

fn newest_of_each(newest_first: &[u64], slot_s: u64, count: u32) -> Vec<u64> {
    let mut kept: Vec<u64> = Vec::new();
    for t in newest_first {
        if kept.len() == count as usize {
            break;
        }
        if kept.last().is_none_or(|last| last / slot_s != t / slot_s) {
            kept.push(*t);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_newest_of_each_hour_and_of_each_day_stays() {
        let day = DAY_S;
        let taken = [0, 10, day, day + HOUR_S, day + HOUR_S + 5, 2 * day];
        // hours: 2*day, day+1h+5; days: 2*day, day+1h+5, 10.
        assert_eq!(superfluous(&taken, 2, 3), vec![day + HOUR_S, day, 0]);
    }

    #[test]
    fn nothing_is_kept_when_nothing_is_asked_for() {
        assert_eq!(superfluous(&[5, 6], 0, 0), vec![6, 5]);
    }

    proptest! {
        #[test]
        fn what_stays_is_bounded_and_has_the_newest(
            taken in prop::collection::vec(0u64..10_000_000, 1..80), h in 1u32..8, d in 0u32..8,
        ) {
            let gone = superfluous(&taken, h, d);
            let mut kept = taken.clone();
            kept.sort_unstable();
            kept.dedup();
            kept.retain(|t| !gone.contains(t));
            prop_assert!(kept.len() <= (h + d) as usize);
            prop_assert_eq!(kept.last(), taken.iter().max());
        }
    }
}
