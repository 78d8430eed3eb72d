//! Keys are revoked and restored at a relay whose responses are correct but late. No VM serves a key
//! that was revoked before the VM's horizon, although calls are lost and VMs and relay restart.
//!
//! Two VMs share data. The *horizon* of a VM is the moment up to which it must know all changes: the
//! last response of its feed. Before the first one it is the start of the VM, or if the feed has
//! failed, the position that earlier VMs have left in shared data. A key may pass if it was good at
//! some moment since the horizon. With a grace, verdicts put in doubt by a reset may pass while the
//! relay does not respond; from then on a reset moves no horizon.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::swap;

use proptest::collection::vec;
use proptest::prelude::*;
use protocol::{ChangesResponse, Epoch, FilterConfig, VerifyResponse};
#[cfg(target_family = "wasm")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::test_host::{Host, MS, SECOND, Seen, hash, key, verdict};
use crate::effect::{CallFailed, CallId, StreamId};
use crate::identity::changes_feed;
use crate::shared::Local;

const CASES: u32 = if cfg!(target_family = "wasm") { 64 } else { 512 };
const KEYS: u8 = 3;

#[derive(Debug, Clone)]
enum Event {
    Get(usize, u8),
    /// A key is revoked, or restored.
    Turn(u8),
    /// The relay responds, as of the time of the call (`late`) or as of now.
    Answer(usize, usize, bool),
    Fail(usize, usize),
    Tick(usize, u64),
    Reload(usize),
    /// The relay is restarted: a new epoch.
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    let vm = 0..2_usize;
    prop_oneof![
        6 => (vm.clone(), 1..=KEYS).prop_map(|(vm, key)| Event::Get(vm, key)),
        3 => (1..=KEYS).prop_map(Event::Turn),
        8 => (vm.clone(), any::<usize>(), any::<bool>())
            .prop_map(|(vm, at, late)| Event::Answer(vm, at, late)),
        2 => (vm.clone(), any::<usize>()).prop_map(|(vm, at)| Event::Fail(vm, at)),
        4 => (vm.clone(), 0..2_000_u64).prop_map(|(vm, ms)| Event::Tick(vm, ms)),
        1 => vm.prop_map(Event::Reload),
        1 => Just(Event::Restart),
    ]
}

/// The registry at each moment; a moment is a change of it.
struct Relay {
    good: Vec<BTreeSet<u8>>,
    /// The moment at which each epoch began.
    epochs: Vec<usize>,
}

impl Relay {
    fn now(&self) -> usize {
        self.good.len() - 1
    }

    fn epoch(&self) -> Epoch {
        Epoch(self.epochs.len().to_string())
    }

    fn revision(&self, moment: usize) -> u64 {
        (moment - self.epochs.last().unwrap()) as u64 + 1
    }

    /// The moment of a revision in an epoch.
    fn moment(&self, epoch: &Epoch, revision: u64) -> usize {
        let epoch: usize = epoch.0.parse().unwrap();
        self.epochs[epoch - 1] + usize::try_from(revision).unwrap() - 1
    }

    fn verdict(&self, about: u8, asked: usize) -> VerifyResponse {
        // A call to the relay before its restart gets no response.
        let moment = asked.max(*self.epochs.last().unwrap());
        let is_good = self.good[moment].contains(&about);
        let verdict = is_good.then(|| verdict(&format!("t{about}")));
        VerifyResponse { epoch: self.epoch(), revision: self.revision(moment), verdict }
    }

    fn changes(&self, path: &str) -> ChangesResponse {
        let of = |name: &str| {
            let query = path.split_once('?').map_or("", |(_, query)| query);
            query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
        };
        let epoch = self.epoch();
        let revision = self.revision(self.now());
        let since: u64 = of("since").unwrap().parse().unwrap();
        if of("epoch") != Some(epoch.0.as_str()) {
            return ChangesResponse { epoch, revision, reset: true, changed: Vec::new() };
        }
        let seen = &self.good[self.moment(&epoch, since)..];
        let turned = |n: &u8| seen.iter().any(|good| good.contains(n) != seen[0].contains(n));
        let changed = (1..=KEYS).filter(turned).map(hash).collect();
        ChangesResponse { epoch, revision, reset: false, changed }
    }
}

struct Vm {
    host: Host,
    began: usize,
    /// The moment of the position in shared data at its start.
    left: usize,
    heard: Option<usize>,
    grace_ms: u32,
    in_doubt: bool,
    has_failed: bool,
    asked: BTreeMap<CallId, usize>,
    keys: BTreeMap<StreamId, u8>,
    passed: BTreeSet<StreamId>,
}

impl Vm {
    fn new(relay: &Relay, grace_ms: u32, shared: Local, now: u64) -> Self {
        let position = changes_feed::read(&shared);
        let left = position.map_or(0, |p| relay.moment(&p.epoch, p.revision));
        let config = FilterConfig {
            cache_entries: 16,
            verdict_grace_ms: grace_ms,
            ..FilterConfig::default()
        };
        Self {
            host: Host::after(config, shared, now),
            began: relay.now(),
            left,
            heard: None,
            grace_ms,
            in_doubt: false,
            has_failed: false,
            asked: BTreeMap::new(),
            keys: BTreeMap::new(),
            passed: BTreeSet::new(),
        }
    }

    fn horizon(&self) -> usize {
        let unheard = if self.has_failed { self.left } else { self.began };
        self.heard.unwrap_or(unheard)
    }

    /// After each event: dates new calls, and checks the requests that have passed.
    fn look(&mut self, relay: &Relay) {
        for id in self.host.calls.keys() {
            self.asked.entry(*id).or_insert(relay.now());
        }
        for (id, about) in &self.keys {
            if matches!(self.host.seen(*id), Seen::Forwarded(_)) && self.passed.insert(*id) {
                let since = &relay.good[self.horizon()..];
                let was_good = since.iter().any(|good| good.contains(about));
                assert!(was_good, "key {about} passes, revoked since {since:?}");
            }
        }
    }

    fn respond(&mut self, at: usize, late: bool, relay: &Relay) {
        let Some(id) = self.host.calls.keys().nth(at % self.host.calls.len().max(1)).copied()
        else {
            return;
        };
        let (call, _) = self.host.calls[&id].clone();
        let body = if call.path.starts_with("/v1/changes") {
            let answer = relay.changes(&call.path);
            self.in_doubt |= answer.reset && self.grace_ms > 0;
            if !self.in_doubt {
                self.heard = Some(relay.now());
            }
            serde_json::to_vec(&answer)
        } else {
            let asks = call.body.unwrap();
            let about = (1..=KEYS).find(|n| asks.contains(&hash(*n).to_string())).unwrap();
            let asked = if late { self.asked[&id] } else { relay.now() };
            serde_json::to_vec(&relay.verdict(about, asked))
        };
        self.host.done(id, Ok((200, &body.unwrap())));
    }

    fn fail(&mut self, at: usize) {
        if let Some(id) = self.host.calls.keys().nth(at % self.host.calls.len().max(1)).copied() {
            self.has_failed |= self.host.calls[&id].0.path.starts_with("/v1/changes");
            self.host.done(id, Err(CallFailed));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn revoked_key_is_never_served_past_the_horizon(
        grace_ms in prop::sample::select(vec![0, 900_000]),
        events in vec(event(), 0..80),
    ) {
        let mut relay = Relay { good: vec![(1..=KEYS).collect()], epochs: vec![0] };
        let mut now = 1_800_000_000 * SECOND;
        let mut shared = Local::default();
        let mut vms = [(); 2].map(|()| Vm::new(&relay, grace_ms, Local::default(), now));
        for event in events {
            match event {
                Event::Turn(n) => {
                    let mut good = relay.good.last().unwrap().clone();
                    if !good.remove(&n) {
                        good.insert(n);
                    }
                    relay.good.push(good);
                }
                Event::Restart => relay.epochs.push(relay.now()),
                Event::Reload(vm) => vms[vm] = Vm::new(&relay, grace_ms, shared.clone(), now),
                Event::Get(vm, _) | Event::Answer(vm, ..) | Event::Fail(vm, _)
                | Event::Tick(vm, _) => {
                    let vm = &mut vms[vm];
                    swap(&mut vm.host.shared, &mut shared);
                    vm.host.now = now;
                    match event {
                        Event::Get(_, n) => {
                            let id = vm.host.get(&key(n));
                            vm.keys.insert(id, n);
                        }
                        Event::Answer(_, at, late) => vm.respond(at, late, &relay),
                        Event::Fail(_, at) => vm.fail(at),
                        Event::Tick(_, ms) => {
                            now += ms * MS;
                            vm.host.tick(ms * MS);
                        }
                        _ => {}
                    }
                    vm.look(&relay);
                    swap(&mut vm.host.shared, &mut shared);
                }
            }
        }
    }
}
