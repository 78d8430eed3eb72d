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

/// One tenant's VMs and the data that they share.
struct World {
    limits: Limits,
    map: Local,
    now_ms: u64,
}

impl World {
    fn new(limits: Limits) -> Self {
        Self { limits, map: Local::default(), now_ms: NOW }
    }

    /// Sends a complete request, checked by a notice that was measured at `measured_ms`. Its head
    /// must be judged in the same way.
    fn send_with(
        &mut self,
        (notice, measured_ms): (&TenantNotice, u64),
        change: Change,
        phext: &str,
    ) -> Result<Option<AdmittedWrite>, Refusal> {
        let tenant = alice();
        let measurement = Measurement { notice, measured_ms };
        let request = StorageRequest { tenant: &tenant, limits: &self.limits, phext, change };
        let head = check(&request, measurement, self.now_ms, &self.map);
        let all = admit(&request, measurement, self.now_ms, &mut self.map);
        assert_eq!(head, all.clone().map(drop), "head and body are judged differently");
        all
    }

    /// Sends a complete request, checked by a notice that was measured now.
    fn send(
        &mut self,
        notice: &TenantNotice,
        change: Change,
        phext: &str,
    ) -> Result<(), RefusalKind> {
        self.send_with((notice, self.now_ms), change, phext).map(drop).map_err(|r| r.kind)
    }

    fn completed(&mut self, phext: &str, written: Option<AdmittedWrite>) {
        completed(&alice(), phext, &written.unwrap(), self.now_ms, &mut self.map);
    }
}

/// Sends one request against an empty record.
fn once(notice: &TenantNotice, change: Change, phext: &str) -> Result<(), RefusalKind> {
    World::new(limits()).send(notice, change, phext)
}

fn append(growth: u64) -> Change {
    Change::Append { growth }
}

fn replace(growth: u64) -> Change {
    Change::Replace { at: Coordinate::ROOT, growth }
}

#[test]
fn append_beyond_the_cap_is_refused() {
    let notice = notice(&[("a", 350_000), ("b", 350_000), ("c", 200_000)]);
    assert_eq!(once(&notice, append(80_000), "c"), Ok(()));
    let refused = World::new(limits()).send_with((&notice, NOW), append(110_000), "c").unwrap_err();
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
fn replacement_passes_in_a_nearly_full_store() {
    let notice = notice(&[("a", 390_000), ("b", 390_000), ("c", 210_000)]);
    assert_eq!(once(&notice, replace(200_000), "c"), Ok(()));
    assert_eq!(once(&notice, append(200_000), "c"), Err(RefusalKind::StorageFull));
}

#[test]
fn repeated_replacements_do_not_fill_the_store() {
    let notice = notice(&[("a", 300_000)]);
    let mut world = World::new(limits());
    for save in 0..100 {
        world.now_ms = NOW + save * SECOND;
        // Two scrolls by turns; measured two seconds before, all the time.
        let at = if save % 2 == 0 { Coordinate::ROOT } else { scroll_at(1) };
        let measurement = (&notice, world.now_ms - 2 * SECOND);
        let written = world.send_with(measurement, Change::Replace { at, growth: 99_000 }, "a");
        world.now_ms += 20;
        world.completed("a", written.unwrap_or_else(|r| panic!("save {save}: {r:?}")));
    }
}

#[test]
fn quick_uploads_are_not_counted_twice() {
    let mut world = World::new(Limits { phexts: 100, ..limits() });
    let mut phexts: Vec<(String, u64)> = Vec::new();
    for upload in 0..9 {
        // Every completed write is measured.
        let seen: Vec<_> = phexts.iter().map(|(n, s)| (n.as_str(), *s)).collect();
        let notice = notice(&seen);
        let name = format!("p{upload}");
        let written = world.send_with((&notice, world.now_ms), append(100_000), &name);
        world.completed(&name, written.unwrap_or_else(|r| panic!("{upload}: {r:?}")));
        phexts.push((name, 100_000));
        world.now_ms += SECOND / 2;
    }
}

#[test]
fn head_counts_nothing_and_body_is_checked_again() {
    let mut world = World::new(limits());
    let none = notice(&[]);
    let tenant = alice();
    let limits = limits();
    let request =
        StorageRequest { tenant: &tenant, limits: &limits, phext: "a", change: append(350_000) };
    let measurement = Measurement { notice: &none, measured_ms: NOW };
    for _ in 0..12 {
        assert_eq!(check(&request, measurement, NOW, &world.map), Ok(()));
    }
    // The bodies took a minute, in which nothing reached the disk.
    world.now_ms += 60 * SECOND;
    let ended = (0..12).map(|_| world.send(&none, append(350_000), "a"));
    assert_eq!(ended.flatten().count(), 1, "the phext has room for one");
}

#[test]
fn write_without_response_counts_until_it_cannot_land() {
    let mut world = World::new(limits());
    let none = notice(&[]);
    assert_eq!(world.send(&none, append(350_000), "a"), Ok(()));
    assert_eq!(world.send(&none, append(350_000), "b"), Ok(()));
    for second in [0, 5, 30, 59] {
        world.now_ms = NOW + second * SECOND;
        let refused = world.send_with((&none, world.now_ms), append(350_000), "c").unwrap_err();
        assert_eq!((refused.kind, refused.retry_after_s), (RefusalKind::StorageFull, Some(1)));
    }
    // Both failed upstream, as a measurement shows that would contain them.
    world.now_ms = NOW + WRITE_LANDS_MS + SECOND;
    assert_eq!(world.send(&none, append(350_000), "c"), Ok(()));
}

#[test]
fn completed_write_is_measured_a_moment_later() {
    let mut world = World::new(limits());
    let none = notice(&[]);
    let written = world.send_with((&none, NOW), append(399_000), "a").unwrap();
    world.completed("a", written);
    world.now_ms += SECOND / 2;
    // The phext has become shorter since.
    let little = notice(&[("a", 5)]);
    assert_eq!(world.send(&little, append(390_000), "a"), Ok(()));
}

#[test]
fn older_notice_yields_to_a_newer_measurement() {
    let mut world = World::new(limits());
    let none = notice(&[]);
    let written = world.send_with((&none, NOW), append(390_000), "a").unwrap();
    world.completed("a", written);
    world.now_ms += 2 * SECOND;
    let measured = notice(&[("a", 390_000)]);
    assert_eq!(world.send(&measured, append(5), "b"), Ok(()));
    world.now_ms += 20 * SECOND;
    let old = world.send_with((&none, NOW), append(390_000), "a");
    assert_eq!(old.unwrap_err().kind, RefusalKind::PhextTooLarge, "390,000 are there");
}

#[test]
fn full_record_counts_more_and_never_less() {
    let mut world =
        World::new(Limits { storage_bytes: 10_000_000, phext_bytes: 9_000_000, ..limits() });
    let none = notice(&[]);
    let mut passed = 0_u64;
    for n in 0..2_000_u16 {
        let parts = [1, 1, 1, 1, 1, 1, 1, n / 999 + 1, n % 999 + 1];
        let at = Coordinate::new(parts).unwrap();
        match world.send(&none, Change::Replace { at, growth: 10_000 }, "a") {
            Ok(()) => passed += 1,
            Err(kind) => assert_eq!(kind, RefusalKind::PhextTooLarge),
        }
    }
    let (record, _) = world.map.get("storage/alice").unwrap();
    assert!(record.len() < 16_384, "{} bytes", record.len());
    assert!((850..=901).contains(&passed), "{passed} of 10,000 bytes each in 9,000,000");
}

#[test]
fn backward_clock_step_discards_future_measurements() {
    let mut world = World::new(limits());
    let full = notice(&[("a", 390_000), ("b", 390_000), ("c", 210_000)]);
    assert_eq!(world.send(&full, append(5), "a"), Ok(()));
    world.now_ms -= 3_600 * SECOND;
    assert_eq!(world.send(&notice(&[]), append(300_000), "a"), Ok(()));
}

#[test]
fn phext_has_a_cap() {
    let notice = notice(&[("a", 300_000)]);
    assert_eq!(once(&notice, append(90_000), "a"), Ok(()));
    assert_eq!(once(&notice, append(200_000), "a"), Err(RefusalKind::PhextTooLarge));
    assert_eq!(once(&notice, replace(409_000), "b"), Err(RefusalKind::PhextTooLarge));
    assert_eq!(once(&notice, append(400_000), "b"), Ok(()), "the largest one fits");
}

#[test]
fn phexts_with_text_are_capped() {
    let two = notice(&[("a", 5), ("b", 5), ("empty", 0), ("typo", 0)]);
    assert_eq!(once(&two, append(5), "c"), Ok(()));
    assert_eq!(once(&two, append(5), "empty"), Ok(()));
    let three = notice(&[("a", 5), ("b", 5), ("c", 5), ("empty", 0)]);
    assert_eq!(once(&three, append(5), "d"), Err(RefusalKind::TooManyPhexts));
    assert_eq!(once(&three, replace(5), "empty"), Err(RefusalKind::TooManyPhexts));
    assert_eq!(once(&three, append(5), "a"), Ok(()));
}

#[test]
fn reads_of_unknown_names_are_capped() {
    let five = notice(&[("a", 5), ("b", 5), ("c", 5), ("x", 0), ("y", 0)]);
    assert_eq!(once(&five, Change::Read, "z"), Ok(()));
    let six = notice(&[("a", 5), ("b", 5), ("c", 5), ("x", 0), ("y", 0), ("z", 0)]);
    assert_eq!(once(&six, Change::Read, "more"), Err(RefusalKind::TooManyPhexts));
    assert_eq!(once(&six, Change::Read, "z"), Ok(()));
}

#[test]
fn recent_new_phexts_count() {
    let mut world = World::new(limits());
    let none = notice(&[]);
    for name in ["a", "b", "c", "a"] {
        assert_eq!(world.send(&none, append(5), name), Ok(()));
    }
    assert_eq!(world.send(&none, append(5), "d"), Err(RefusalKind::TooManyPhexts));
}

#[test]
fn full_host_is_read_only() {
    let notice = TenantNotice { host_full: true, ..notice(&[("a", 5)]) };
    for change in [append(1), replace(1), Change::Delete] {
        assert_eq!(once(&notice, change, "a"), Err(RefusalKind::HostFull));
    }
    assert_eq!(once(&notice, Change::Read, "a"), Ok(()));
}

/// A model of SQ's storage: bytes of text per phext and scroll.
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
        /// Time from the end of its body to the disk.
        lands_after_ms: u64,
        answered: bool,
    },
    Delete {
        phext: usize,
        scroll: usize,
    },
    /// A VM receives a measurement.
    Notify(usize),
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
        4 => (0..VMS).prop_map(Step::Notify),
        4 => prop_oneof![0..300_u64, 0..3_000_u64, 0..90_000_u64].prop_map(Step::Wait),
    ]
}

/// A write in flight.
struct Landing {
    at_ms: u64,
    scroll: (usize, usize),
    bytes: u64,
    replace: bool,
    written: Option<AdmittedWrite>,
}

fn land(sq: &mut Sq, in_flight: &mut Vec<Landing>, world: &mut World) {
    in_flight.retain(|write| {
        if write.at_ms > world.now_ms {
            return true;
        }
        let text = sq.0.entry(write.scroll).or_default();
        *text = if write.replace { write.bytes } else { *text + write.bytes };
        if write.written.is_some() {
            world.completed(&write.scroll.0.to_string(), write.written);
        }
        false
    });
}

/// Cases per property; fewer in node, where each takes longer.
const CASES: u32 = if cfg!(target_family = "wasm") { 60 } else { 600 };

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn writers_exceed_a_cap_by_one_body_at_most(
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let limits = Limits { phexts: 100, ..limits() };
        let mut world = World::new(limits.clone());
        let mut sq = Sq::default();
        let mut notices = vec![(sq.notice(), NOW); VMS];
        let mut in_flight: Vec<Landing> = Vec::new();
        for step in steps {
            match step {
                Step::Write { vm, phext, scroll, bytes, replace, lands_after_ms, answered } => {
                    // Every lease brings a notice, and none is longer than that.
                    if notices[vm].1 + LEASE_MAX_MS <= world.now_ms {
                        notices[vm] = (sq.notice(), world.now_ms);
                    }
                    let at = scroll_at(scroll);
                    let growth = bytes + at.delimiters_max();
                    let change =
                        if replace { Change::Replace { at, growth } } else { append(growth) };
                    let (notice, measured_ms) = notices[vm].clone();
                    let passed = world.send_with((&notice, measured_ms), change, &phext.to_string());
                    if let Ok(written) = passed {
                        let at_ms = world.now_ms + lands_after_ms;
                        let scroll = (phext, scroll);
                        let written = written.filter(|_| answered);
                        in_flight.push(Landing { at_ms, scroll, bytes, replace, written });
                    }
                }
                Step::Delete { phext, scroll } => drop(sq.0.remove(&(phext, scroll))),
                Step::Notify(vm) => notices[vm] = (sq.notice(), world.now_ms),
                Step::Wait(ms) => world.now_ms += ms,
            }
            land(&mut sq, &mut in_flight, &mut world);
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
