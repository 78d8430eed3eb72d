//! Tests of the session, by cases and against a small model of an Envoy.

use proptest::prelude::*;

use super::*;
use crate::xds::resources::Change;

/// Content that the model of an Envoy rejects.
const POISON: u8 = 3;

fn name(n: u8) -> ResourceName {
    format!("sq/t{n}").into()
}

fn wildcard(versions: &BTreeMap<ResourceName, Version>) -> Request {
    Request {
        initial_versions: versions.iter().map(|(n, v)| (n.to_string(), v.0.clone())).collect(),
        ..Request::default()
    }
}

fn subscription(names: &[u8]) -> Request {
    let subscribe = names.iter().map(|n| name(*n).to_string()).collect();
    Request { subscribe, ..Request::default() }
}

fn ack(nonce: &str) -> Request {
    Request { nonce: nonce.to_owned(), ..Request::default() }
}

fn next(session: &mut Session, set: &ResourceSet) -> Option<Response> {
    session.next_response(set, &mut vec![])
}

/// A wildcard session whose empty first response was accepted.
fn idle(set: &ResourceSet) -> Session {
    let mut session = Session::default();
    session.on_request(&Request::default(), set).unwrap();
    let first = next(&mut session, set).unwrap();
    session.on_request(&ack(&first.nonce), set).unwrap();
    session
}

fn put(set: &mut ResourceSet, session: &mut Session, n: u8, value: u8) -> Seq {
    let seq = set.put(&name(n), vec![value]).seq();
    session.on_change(&name(n), seq);
    seq
}

#[test]
fn first_response_is_sent_even_if_empty() {
    let set = ResourceSet::default();
    let mut session = Session::default();
    assert_eq!(next(&mut session, &set), None);
    session.on_request(&Request::default(), &set).unwrap();
    let first = next(&mut session, &set).unwrap();
    assert!(first.resources.is_empty() && first.removed.is_empty());
    let outcomes = session.on_request(&ack(&first.nonce), &set).unwrap();
    assert_eq!(outcomes, [Outcome::Acked(Seq(0))]);
}

#[test]
fn changes_during_a_flight_share_one_response() {
    let mut set = ResourceSet::default();
    let mut session = idle(&set);
    let first_seq = put(&mut set, &mut session, 0, 1);
    let in_flight = next(&mut session, &set).unwrap();
    for n in 1..5 {
        put(&mut set, &mut session, n, 1);
        assert_eq!(next(&mut session, &set), None);
    }
    let outcomes = session.on_request(&ack(&in_flight.nonce), &set).unwrap();
    assert_eq!(outcomes, [Outcome::Acked(first_seq)]);
    assert_eq!(next(&mut session, &set).unwrap().resources.len(), 4);
}

#[test]
fn reconnect_sends_only_differences() {
    let mut set = ResourceSet::default();
    for (n, value) in [(0, 1), (1, 1), (2, 2)] {
        set.put(&name(n), vec![value]);
    }
    let version = |value: u8| Version::of(&[value]);
    let versions = [(name(0), version(1)), (name(2), version(1)), (name(9), version(1))].into();
    let mut session = Session::default();
    session.on_request(&wildcard(&versions), &set).unwrap();
    let response = next(&mut session, &set).unwrap();
    let names: Vec<_> = response.resources.iter().map(|r| r.name.clone()).collect();
    assert_eq!(names, [name(2), name(1)]);
    assert_eq!(response.removed, [name(9)]);
}

#[test]
fn unknown_nonce_changes_nothing() {
    let mut set = ResourceSet::default();
    let mut session = idle(&set);
    put(&mut set, &mut session, 0, 1);
    let response = next(&mut session, &set).unwrap();
    assert_eq!(session.on_request(&ack("stale"), &set).unwrap(), [Outcome::UnknownNonce]);
    assert_eq!(next(&mut session, &set), None);
    assert_eq!(session.on_request(&ack(&response.nonce), &set).unwrap(), [Outcome::Acked(Seq(1))]);
}

#[test]
fn rejected_cluster_does_not_block_others() {
    let mut set = ResourceSet::default();
    let mut session = idle(&set);
    put(&mut set, &mut session, 1, POISON);
    put(&mut set, &mut session, 11, 1);
    let response = next(&mut session, &set).unwrap();
    let reason = "Error adding/updating cluster(s) sq/t1: no".to_owned();
    let nack = Request { error: Some(reason.clone()), ..ack(&response.nonce) };
    let outcomes = session.on_request(&nack, &set).unwrap();
    assert_eq!(outcomes, [Outcome::Nacked { names: vec![name(1)], seq: Seq(2), reason }]);
    let again = next(&mut session, &set).unwrap();
    assert_eq!(again.resources.len(), 1);
    assert_eq!(again.resources[0].name, name(11));
    assert_eq!(session.on_request(&ack(&again.nonce), &set).unwrap(), [Outcome::Acked(Seq(2))]);
}

#[test]
fn explicit_subscription_is_always_answered() {
    let mut set = ResourceSet::default();
    set.put(&name(0), vec![1]);
    let mut session = idle(&set);
    session.on_request(&subscription(&[0, 7]), &set).unwrap();
    let response = next(&mut session, &set).unwrap();
    assert_eq!(response.resources.len(), 1);
    assert_eq!(response.removed, [name(7)], "a name that does not exist");
}

#[test]
fn without_wildcard_only_subscribed_names_are_sent() {
    let mut set = ResourceSet::default();
    let mut session = Session::default();
    session.on_request(&subscription(&[1]), &set).unwrap();
    let first = next(&mut session, &set).unwrap();
    session.on_request(&ack(&first.nonce), &set).unwrap();
    put(&mut set, &mut session, 0, 1);
    assert_eq!(next(&mut session, &set), None);
    put(&mut set, &mut session, 1, 1);
    assert_eq!(next(&mut session, &set).unwrap().resources[0].name, name(1));
}

#[test]
fn response_size_is_bounded() {
    let mut set = ResourceSet::default();
    for n in 0..1000 {
        set.put(&format!("sq/t{n}").into(), vec![0; 2048]);
    }
    let mut session = Session::default();
    session.on_request(&Request::default(), &set).unwrap();
    let mut responses = 0;
    let mut total = 0;
    while let Some(response) = next(&mut session, &set) {
        assert!(response.resources.len() <= BATCH_NAMES);
        responses += 1;
        total += response.resources.len();
        session.on_request(&ack(&response.nonce), &set).unwrap();
    }
    assert_eq!(responses, 4);
    assert_eq!(total, 1000);
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8),
    Remove(u8),
    /// Envoy accepts or rejects the response in flight; a rejection may name the culprits.
    Acknowledge {
        names_culprits: bool,
    },
    /// An acknowledgement with a nonce that was never given out.
    Junk,
    Resubscribe(u8),
    /// Envoy opens a new stream.
    Reconnect,
    /// A new server has the same set under new numbers.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..6_u8, 0..=POISON).prop_map(|(n, value)| Step::Put(n, value)),
        3 => (0..6_u8).prop_map(Step::Remove),
        6 => any::<bool>().prop_map(|names_culprits| Step::Acknowledge { names_culprits }),
        1 => Just(Step::Junk),
        1 => (0..6_u8).prop_map(Step::Resubscribe),
        1 => Just(Step::Reconnect),
        1 => Just(Step::Restart),
    ]
}

/// A server and the model of an Envoy, joined by a wire that carries one response.
#[derive(Default)]
struct World {
    set: ResourceSet,
    session: Session,
    /// The number of each name's last change.
    changed: BTreeMap<ResourceName, Seq>,
    /// The clusters that the model has.
    envoy: BTreeMap<ResourceName, Version>,
    wire: Option<Response>,
    acked: Option<Seq>,
}

impl World {
    fn connect(&mut self) {
        self.session = Session::default();
        self.wire = None;
        self.acked = None;
        self.request(&wildcard(&self.envoy.clone()));
    }

    fn request(&mut self, request: &Request) {
        let outcomes = self.session.on_request(request, &self.set).unwrap();
        self.check_outcomes(&outcomes);
    }

    /// Puts the next response on the wire, if one is due.
    fn pump(&mut self) {
        let mut outcomes = Vec::new();
        if let Some(response) = self.session.next_response(&self.set, &mut outcomes) {
            assert!(self.wire.is_none(), "two responses in flight");
            for name in &response.removed {
                assert!(self.set.get(name).is_none(), "{name} exists and is removed");
            }
            self.wire = Some(response);
        }
        self.check_outcomes(&outcomes);
    }

    /// Envoy keeps the good resources of a response, and rejects the response if one is bad.
    fn acknowledge(&mut self, names_culprits: bool) {
        let Some(response) = self.wire.take() else { return };
        let mut reason = "refused".to_owned();
        let mut rejects = false;
        for resource in &response.resources {
            if *resource.body == [POISON] {
                rejects = true;
                if names_culprits {
                    reason = format!("{reason} {}: bad", resource.name);
                }
            } else {
                self.envoy.insert(resource.name.clone(), resource.version.clone());
            }
        }
        for name in &response.removed {
            self.envoy.remove(name);
        }
        let error = if rejects { Some(reason) } else { None };
        self.request(&Request { error, ..ack(&response.nonce) });
    }

    /// Checks that numbers of confirmed changes grow and are never confirmed early.
    fn check_outcomes(&mut self, outcomes: &[Outcome]) {
        for outcome in outcomes {
            let Outcome::Acked(seq) = outcome else { continue };
            assert!(self.acked < Some(*seq) && *seq <= self.set.seq());
            self.acked = Some(*seq);
            for (name, _) in self.changed.iter().filter(|(_, changed)| *changed <= seq) {
                self.check_name(name);
            }
        }
    }

    /// Checks that Envoy agrees with the set about a name, unless it rejects the content. A
    /// rejection without names sets good resources aside with the bad; these are not checked.
    fn check_name(&self, name: &ResourceName) {
        let wanted = self.set.get(name).filter(|r| *r.body != [POISON]).map(|r| &r.version);
        if wanted.is_some() || self.set.get(name).is_none() {
            assert_eq!(self.envoy.get(name), wanted, "{name}");
        }
    }

    fn change(&mut self, n: u8, change: Change) {
        if let Change::Changed(seq) = change {
            self.changed.insert(name(n), seq);
            self.session.on_change(&name(n), seq);
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Put(n, value) => {
                let change = self.set.put(&name(n), vec![value]);
                self.change(n, change);
            }
            Step::Remove(n) => {
                let change = self.set.remove(&name(n));
                self.change(n, change);
            }
            Step::Acknowledge { names_culprits } => self.acknowledge(names_culprits),
            Step::Junk => self.request(&ack("junk")),
            Step::Resubscribe(n) => self.request(&subscription(&[n])),
            Step::Reconnect => self.connect(),
            Step::Restart => {
                let old = std::mem::take(&mut self.set);
                self.changed.clear();
                for resource in old.iter() {
                    let seq = self.set.put(&resource.name, resource.body.to_vec()).seq();
                    self.changed.insert(resource.name.clone(), seq);
                }
                self.connect();
            }
        }
    }
}

proptest! {
    #[test]
    fn envoy_converges_and_no_ack_is_early(
        steps in prop::collection::vec(step(), 0..60)
    ) {
        let mut world = World::default();
        world.connect();
        world.pump();
        for step in &steps {
            world.step(step);
            world.pump();
        }
        let mut rounds = 0;
        while world.wire.is_some() {
            world.acknowledge(true);
            world.pump();
            rounds += 1;
            prop_assert!(rounds < 30, "responses never end");
        }
        prop_assert_eq!(world.acked, Some(world.set.seq()));
        for n in 0..6 {
            world.check_name(&name(n));
        }
    }
}
