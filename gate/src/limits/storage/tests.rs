use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::shared::Local;
#[cfg(target_family = "wasm")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use protocol::time::SECOND_MS as SECOND;
const NOW: u64 = 1_800_000_000 * SECOND;

fn alice() -> TenantId {
    TenantId::parse("alice").unwrap()
}

fn limits() -> Limits {
    Limits { storage_bytes: 1_000_000, phext_bytes: 400_000, phexts: 3, ..Limits::default() }
}

fn notice(phexts: &[(&str, u64)]) -> TenantNotice {
    TenantNotice {
        storage_used_bytes: phexts.iter().map(|(_, size)| size).sum(),
        phexts: phexts.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect(),
        ..TenantNotice::default()
    }
}

/// Alice's VMs and what they share.
struct World {
    limits: Limits,
    map: Local,
    now_ms: u64,
}

impl World {
    fn new(limits: Limits) -> Self {
        Self { limits, map: Local::default(), now_ms: NOW }
    }

    /// A request that has wholly come, judged by a notice that was measured at `measured_ms`. Its
    /// head is judged like it.
    fn asks(
        &mut self,
        (notice, measured_ms): (&TenantNotice, u64),
        change: Change,
        phext: &str,
    ) -> Result<Option<Written>, Refusal> {
        let (tenant, known) = (alice(), Known { notice, measured_ms });
        let asked = Asked { tenant: &tenant, limits: &self.limits, phext, change };
        let head = check(&asked, known, self.now_ms, &self.map);
        let all = let_through(&asked, known, self.now_ms, &mut self.map);
        assert_eq!(head, all.clone().map(drop), "the head is judged otherwise");
        all
    }

    /// The same by a notice measured now.
    fn now(
        &mut self,
        notice: &TenantNotice,
        change: Change,
        phext: &str,
    ) -> Result<(), RefusalKind> {
        self.asks((notice, self.now_ms), change, phext).map(drop).map_err(|r| r.kind)
    }

    fn answered(&mut self, phext: &str, written: Option<Written>) {
        answered(&alice(), phext, &written.unwrap(), self.now_ms, &mut self.map);
    }
}

/// One request against a fresh record.
fn once(notice: &TenantNotice, change: Change, phext: &str) -> Result<(), RefusalKind> {
    World::new(limits()).now(notice, change, phext)
}

fn append(growth: u64) -> Change {
    Change::Append { growth }
}

fn replace(growth: u64) -> Change {
    Change::Replace { at: Coordinate::ROOT, growth }
}

#[test]
fn an_append_that_would_pass_the_cap_is_refused_with_used_cap_and_what_to_do() {
    let notice = notice(&[("a", 350_000), ("b", 350_000), ("c", 200_000)]);
    assert_eq!(once(&notice, append(80_000), "c"), Ok(()));
    let refused = World::new(limits()).asks((&notice, NOW), append(110_000), "c").unwrap_err();
    assert_eq!((refused.kind, refused.status()), (RefusalKind::StorageFull, 507));
    assert_eq!(refused.used_and_cap, Some((900_000, 1_000_000)));
    assert_eq!(refused.retry_after_s, None, "waiting does not help");
    assert!(refused.detail.contains("Delete scrolls"));
}

#[test]
fn deletes_and_reads_pass_a_full_store() {
    let full = notice(&[("a", 900_000), ("b", 900_000)]);
    for change in [Change::Read, Change::Delete] {
        assert_eq!(once(&full, change, "a"), Ok(()));
    }
    for change in [append(1), replace(1)] {
        assert_eq!(once(&full, change, "a"), Err(RefusalKind::StorageFull));
    }
}

#[test]
fn a_text_is_replaced_in_a_nearly_full_store_for_it_may_not_grow() {
    let notice = notice(&[("a", 390_000), ("b", 390_000), ("c", 210_000)]);
    assert_eq!(once(&notice, replace(200_000), "c"), Ok(()));
    assert_eq!(once(&notice, append(200_000), "c"), Err(RefusalKind::StorageFull));
}

#[test]
fn replacing_scrolls_again_and_again_does_not_fill_the_store() {
    let notice = notice(&[("a", 300_000)]);
    let mut world = World::new(limits());
    for save in 0..100 {
        world.now_ms = NOW + save * SECOND;
        // Two scrolls by turns; measured two seconds before, all the time.
        let at = if save % 2 == 0 { Coordinate::ROOT } else { scroll_at(1) };
        let known = (&notice, world.now_ms - 2 * SECOND);
        let written = world.asks(known, Change::Replace { at, growth: 99_000 }, "a");
        world.now_ms += 20;
        world.answered("a", written.unwrap_or_else(|r| panic!("save {save}: {r:?}")));
    }
}

#[test]
fn a_quick_upload_into_an_empty_store_is_not_counted_twice() {
    let mut world = World::new(Limits { phexts: 100, ..limits() });
    let mut phexts: Vec<(String, u64)> = Vec::new();
    for upload in 0..9 {
        // All that was answered a moment ago is measured.
        let seen: Vec<_> = phexts.iter().map(|(n, s)| (n.as_str(), *s)).collect();
        let notice = notice(&seen);
        let name = format!("p{upload}");
        let written = world.asks((&notice, world.now_ms), append(100_000), &name);
        world.answered(&name, written.unwrap_or_else(|r| panic!("{upload}: {r:?}")));
        phexts.push((name, 100_000));
        world.now_ms += SECOND / 2;
    }
}

#[test]
fn a_head_counts_nothing_and_what_follows_it_is_judged_by_what_was_let_through_meanwhile() {
    let (mut world, none) = (World::new(limits()), notice(&[]));
    let (tenant, limits) = (alice(), limits());
    let asked = Asked { tenant: &tenant, limits: &limits, phext: "a", change: append(350_000) };
    let known = Known { notice: &none, measured_ms: NOW };
    for _ in 0..12 {
        assert_eq!(check(&asked, known, NOW, &world.map), Ok(()));
    }
    // The bodies took a minute, and nothing was on the disk all the while.
    world.now_ms += 60 * SECOND;
    let ended = (0..12).map(|_| world.now(&none, append(350_000), "a"));
    assert_eq!(ended.flatten().count(), 1, "the phext has room for one");
}

#[test]
fn what_sq_has_not_answered_counts_until_it_can_t_come_any_more() {
    let (mut world, none) = (World::new(limits()), notice(&[]));
    assert_eq!(world.now(&none, append(350_000), "a"), Ok(()));
    assert_eq!(world.now(&none, append(350_000), "b"), Ok(()));
    for second in [0, 5, 30, 59] {
        world.now_ms = NOW + second * SECOND;
        let refused = world.asks((&none, world.now_ms), append(350_000), "c").unwrap_err();
        assert_eq!((refused.kind, refused.retry_after_s), (RefusalKind::StorageFull, Some(1)));
    }
    // Both failed upstream: a measurement that must have seen them says so.
    world.now_ms = NOW + WRITE_LANDS_MS + SECOND;
    assert_eq!(world.now(&none, append(350_000), "c"), Ok(()));
}

#[test]
fn what_sq_has_answered_is_measured_a_moment_later() {
    let (mut world, none) = (World::new(limits()), notice(&[]));
    let written = world.asks((&none, NOW), append(399_000), "a").unwrap();
    world.answered("a", written);
    world.now_ms += SECOND / 2;
    // SQ has shortened it meanwhile.
    let little = notice(&[("a", 5)]);
    assert_eq!(world.now(&little, append(390_000), "a"), Ok(()));
}

#[test]
fn a_vm_with_an_older_measurement_judges_by_the_newest_that_any_has_had() {
    let (mut world, none) = (World::new(limits()), notice(&[]));
    let written = world.asks((&none, NOW), append(390_000), "a").unwrap();
    world.answered("a", written);
    world.now_ms += 2 * SECOND;
    let measured = notice(&[("a", 390_000)]);
    assert_eq!(world.now(&measured, append(5), "b"), Ok(()));
    world.now_ms += 20 * SECOND;
    let old = world.asks((&none, NOW), append(390_000), "a");
    assert_eq!(old.unwrap_err().kind, RefusalKind::PhextTooLarge, "390,000 are there");
}

#[test]
fn more_scrolls_at_once_than_the_record_has_room_for_count_more_and_never_less() {
    let mut world =
        World::new(Limits { storage_bytes: 10_000_000, phext_bytes: 9_000_000, ..limits() });
    let none = notice(&[]);
    let mut passed = 0_u64;
    for n in 0..2_000_u16 {
        let parts = [1, 1, 1, 1, 1, 1, 1, n / 999 + 1, n % 999 + 1];
        let at = Coordinate::new(parts).unwrap();
        match world.now(&none, Change::Replace { at, growth: 10_000 }, "a") {
            Ok(()) => passed += 1,
            Err(kind) => assert_eq!(kind, RefusalKind::PhextTooLarge),
        }
    }
    let (record, _) = world.map.get("storage/alice").unwrap();
    assert!(record.len() < 16_384, "{} bytes", record.len());
    assert!((850..=901).contains(&passed), "{passed} of 10,000 bytes each in 9,000,000");
}

#[test]
fn a_clock_that_stepped_back_leaves_no_measurement_of_the_future() {
    let mut world = World::new(limits());
    let full = notice(&[("a", 390_000), ("b", 390_000), ("c", 210_000)]);
    assert_eq!(world.now(&full, append(5), "a"), Ok(()));
    world.now_ms -= 3_600 * SECOND;
    let (freed, none) = (append(300_000), notice(&[]));
    assert_eq!(world.now(&none, freed, "a"), Ok(()));
}

#[test]
fn a_phext_has_its_own_cap() {
    let notice = notice(&[("a", 300_000)]);
    assert_eq!(once(&notice, append(90_000), "a"), Ok(()));
    assert_eq!(once(&notice, append(200_000), "a"), Err(RefusalKind::PhextTooLarge));
    assert_eq!(once(&notice, replace(409_000), "b"), Err(RefusalKind::PhextTooLarge));
    assert_eq!(once(&notice, append(400_000), "b"), Ok(()), "the largest one fits");
}

#[test]
fn the_number_of_phexts_with_text_is_capped_and_empty_ones_do_not_count() {
    let two = notice(&[("a", 5), ("b", 5), ("empty", 0), ("typo", 0)]);
    assert_eq!(once(&two, append(5), "c"), Ok(()));
    assert_eq!(once(&two, append(5), "empty"), Ok(()));
    let three = notice(&[("a", 5), ("b", 5), ("c", 5), ("empty", 0)]);
    assert_eq!(once(&three, append(5), "d"), Err(RefusalKind::TooManyPhexts));
    assert_eq!(once(&three, replace(5), "empty"), Err(RefusalKind::TooManyPhexts));
    assert_eq!(once(&three, append(5), "a"), Ok(()));
}

#[test]
fn reading_unknown_names_makes_at_most_as_many_files_again() {
    let five = notice(&[("a", 5), ("b", 5), ("c", 5), ("x", 0), ("y", 0)]);
    assert_eq!(once(&five, Change::Read, "z"), Ok(()));
    let six = notice(&[("a", 5), ("b", 5), ("c", 5), ("x", 0), ("y", 0), ("z", 0)]);
    assert_eq!(once(&six, Change::Read, "more"), Err(RefusalKind::TooManyPhexts));
    assert_eq!(once(&six, Change::Read, "z"), Ok(()));
}

#[test]
fn new_phexts_of_the_last_seconds_count_whoever_made_them() {
    let (mut world, none) = (World::new(limits()), notice(&[]));
    for name in ["a", "b", "c", "a"] {
        assert_eq!(world.now(&none, append(5), name), Ok(()));
    }
    assert_eq!(world.now(&none, append(5), "d"), Err(RefusalKind::TooManyPhexts));
}

#[test]
fn below_the_floor_of_the_host_nothing_is_changed_and_all_is_read() {
    let notice = TenantNotice { host_full: true, ..notice(&[("a", 5)]) };
    for change in [append(1), replace(1), Change::Delete] {
        assert_eq!(once(&notice, change, "a"), Err(RefusalKind::HostFull));
    }
    assert_eq!(once(&notice, Change::Read, "a"), Ok(()));
}

/// SQ as far as storage goes: text per phext and scroll.
#[derive(Debug, Default, Clone)]
struct Sq(BTreeMap<(usize, usize), u64>);

impl Sq {
    fn size(&self, phext: usize) -> u64 {
        let of_it = self.0.iter().filter(|((p, _), _)| *p == phext);
        of_it.map(|((_, scroll), n)| n + scroll_at(*scroll).delimiters_max()).sum()
    }

    fn notice(&self) -> TenantNotice {
        let sizes: Vec<_> =
            (0..PHEXTS).map(|p| (p.to_string(), self.size(p))).filter(|(_, n)| *n > 0).collect();
        notice(&sizes.iter().map(|(p, n)| (p.as_str(), *n)).collect::<Vec<_>>())
    }
}

const PHEXTS: usize = 4;
const VMS: usize = 3;
const BODY: u64 = 300_000;

fn scroll_at(n: usize) -> Coordinate {
    [Coordinate::ROOT, Coordinate::new([500; 9]).unwrap(), Coordinate::new([999; 9]).unwrap()][n]
}

#[derive(Debug, Clone)]
enum Step {
    Write {
        vm: usize,
        phext: usize,
        scroll: usize,
        bytes: u64,
        replace: bool,
        /// After its end. Its head may have come a minute before.
        lands_after_ms: u64,
        answered: bool,
    },
    Delete {
        phext: usize,
        scroll: usize,
    },
    /// A VM gets a measurement.
    Tell(usize),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let lands = prop_oneof![3 => 0..300_u64, 1 => 0..WRITE_LANDS_MS];
    let write = (0..VMS, 0..PHEXTS, 0..3_usize, 0..BODY, any::<bool>(), lands, any::<bool>());
    prop_oneof![
        8 => write.prop_map(|(vm, phext, scroll, bytes, replace, lands_after_ms, answered)| {
            Step::Write { vm, phext, scroll, bytes, replace, lands_after_ms, answered }
        }),
        1 => (0..PHEXTS, 0..3_usize).prop_map(|(phext, scroll)| Step::Delete { phext, scroll }),
        4 => (0..VMS).prop_map(Step::Tell),
        4 => prop_oneof![0..300_u64, 0..3_000_u64, 0..90_000_u64].prop_map(Step::Wait),
    ]
}

/// A write on its way.
struct Landing {
    at_ms: u64,
    scroll: (usize, usize),
    bytes: u64,
    replace: bool,
    written: Option<Written>,
}

fn land(sq: &mut Sq, on_the_way: &mut Vec<Landing>, world: &mut World) {
    on_the_way.retain(|write| {
        if write.at_ms > world.now_ms {
            return true;
        }
        let text = sq.0.entry(write.scroll).or_default();
        *text = if write.replace { write.bytes } else { *text + write.bytes };
        if write.written.is_some() {
            world.answered(&write.scroll.0.to_string(), write.written);
        }
        false
    });
}

/// Fewer in node, where each takes longer.
const CASES: u32 = if cfg!(target_family = "wasm") { 60 } else { 600 };

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn writers_at_many_vms_never_overshoot_a_cap_by_more_than_one_body(
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let limits = Limits { phexts: 100, ..limits() };
        let (mut world, mut sq) = (World::new(limits.clone()), Sq::default());
        let mut told = vec![(sq.notice(), NOW); VMS];
        let mut on_the_way: Vec<Landing> = Vec::new();
        for step in steps {
            match step {
                Step::Write { vm, phext, scroll, bytes, replace, lands_after_ms, answered } => {
                    // No lease is longer than that, and each brings a notice.
                    if told[vm].1 + LEASE_MAX_MS <= world.now_ms {
                        told[vm] = (sq.notice(), world.now_ms);
                    }
                    let at = scroll_at(scroll);
                    let growth = bytes + at.delimiters_max();
                    let change =
                        if replace { Change::Replace { at, growth } } else { append(growth) };
                    let (notice, measured_ms) = told[vm].clone();
                    let passed = world.asks((&notice, measured_ms), change, &phext.to_string());
                    if let Ok(written) = passed {
                        let (at_ms, scroll) = (world.now_ms + lands_after_ms, (phext, scroll));
                        let written = written.filter(|_| answered);
                        on_the_way.push(Landing { at_ms, scroll, bytes, replace, written });
                    }
                }
                Step::Delete { phext, scroll } => drop(sq.0.remove(&(phext, scroll))),
                Step::Tell(vm) => told[vm] = (sq.notice(), world.now_ms),
                Step::Wait(ms) => world.now_ms += ms,
            }
            land(&mut sq, &mut on_the_way, &mut world);
            let used: u64 = (0..PHEXTS).map(|p| sq.size(p)).sum();
            let one_body = BODY + DELIMITERS_BYTES;
            prop_assert!(used <= limits.storage_bytes + one_body, "{used} bytes");
            for phext in 0..PHEXTS {
                let size = sq.size(phext);
                let most = limits.phext_max_bytes() + DELIMITERS_BYTES + one_body;
                prop_assert!(size <= most, "{phext} is {size} bytes large");
            }
        }
    }
}
