//! The session against a tiny model of an Envoy.

use proptest::prelude::*;

use super::*;
use crate::xds::resources::Change;

/// Content that the model of an Envoy refuses.
const POISON: u8 = 3;

fn name(n: u8) -> Name {
    format!("sq/t{n}").into()
}

fn wildcard(held: &BTreeMap<Name, Version>) -> Request {
    Request {
        initial_versions: held.iter().map(|(n, v)| (n.to_string(), v.0.clone())).collect(),
        ..Request::default()
    }
}

fn ack(nonce: &str) -> Request {
    Request { nonce: nonce.to_owned(), ..Request::default() }
}

/// A wildcard stream after its empty first response was acked.
fn idle(catalog: &Catalog) -> Session {
    let mut session = Session::default();
    session.on_request(&Request::default(), catalog).unwrap();
    let first = session.next(catalog, &mut vec![]).unwrap();
    session.on_request(&ack(&first.nonce), catalog).unwrap();
    session
}

fn put(catalog: &mut Catalog, session: &mut Session, n: u8, value: u8) -> Seq {
    let seq = catalog.put(&name(n), vec![value]).seq();
    session.on_change(&name(n), seq);
    seq
}

#[test]
fn the_first_response_goes_out_even_when_there_is_nothing() {
    let catalog = Catalog::default();
    let mut session = Session::default();
    assert_eq!(session.next(&catalog, &mut vec![]), None);
    session.on_request(&Request::default(), &catalog).unwrap();
    let first = session.next(&catalog, &mut vec![]).unwrap();
    assert!(first.resources.is_empty() && first.removed.is_empty());
    let outcomes = session.on_request(&ack(&first.nonce), &catalog).unwrap();
    assert_eq!(outcomes, [Outcome::Acked(0)]);
}

#[test]
fn changes_while_a_response_is_in_flight_make_one_response() {
    let mut catalog = Catalog::default();
    let mut session = idle(&catalog);
    let first_seq = put(&mut catalog, &mut session, 0, 1);
    let flying = session.next(&catalog, &mut vec![]).unwrap();
    for n in 1..5 {
        put(&mut catalog, &mut session, n, 1);
        assert_eq!(session.next(&catalog, &mut vec![]), None);
    }
    let outcomes = session.on_request(&ack(&flying.nonce), &catalog).unwrap();
    assert_eq!(outcomes, [Outcome::Acked(first_seq)]);
    assert_eq!(session.next(&catalog, &mut vec![]).unwrap().resources.len(), 4);
}

#[test]
fn a_reconnect_removes_only_what_is_gone_and_sends_only_what_differs() {
    let mut catalog = Catalog::default();
    for (n, value) in [(0, 1), (1, 1), (2, 2)] {
        catalog.put(&name(n), vec![value]);
    }
    let version = |value: u8| Version::of(&[value]);
    let held = [(name(0), version(1)), (name(2), version(1)), (name(9), version(1))].into();
    let mut session = Session::default();
    session.on_request(&wildcard(&held), &catalog).unwrap();
    let response = session.next(&catalog, &mut vec![]).unwrap();
    let sent: Vec<_> = response.resources.iter().map(|r| r.name.clone()).collect();
    assert_eq!((sent, response.removed), (vec![name(2), name(1)], vec![name(9)]));
}

#[test]
fn an_unknown_nonce_changes_nothing() {
    let mut catalog = Catalog::default();
    let mut session = idle(&catalog);
    put(&mut catalog, &mut session, 0, 1);
    let response = session.next(&catalog, &mut vec![]).unwrap();
    assert_eq!(session.on_request(&ack("stale"), &catalog).unwrap(), [Outcome::UnknownNonce]);
    assert_eq!(session.next(&catalog, &mut vec![]), None);
    assert_eq!(session.on_request(&ack(&response.nonce), &catalog).unwrap(), [Outcome::Acked(1)]);
}

#[test]
fn a_refused_cluster_holds_up_no_other() {
    let mut catalog = Catalog::default();
    let mut session = idle(&catalog);
    put(&mut catalog, &mut session, 1, POISON);
    put(&mut catalog, &mut session, 11, 1);
    let response = session.next(&catalog, &mut vec![]).unwrap();
    let reason = "Error adding/updating cluster(s) sq/t1: no".to_owned();
    let nack = Request { error: Some(reason.clone()), ..ack(&response.nonce) };
    let outcomes = session.on_request(&nack, &catalog).unwrap();
    assert_eq!(outcomes, [Outcome::Nacked { names: vec![name(1)], seq: 2, reason }]);
    let again = session.next(&catalog, &mut vec![]).unwrap();
    assert_eq!(again.resources.len(), 1);
    assert_eq!(again.resources[0].name, name(11));
    assert_eq!(session.on_request(&ack(&again.nonce), &catalog).unwrap(), [Outcome::Acked(2)]);
}

#[test]
fn a_name_asked_for_again_is_sent_again_and_an_absent_one_is_said_to_be_absent() {
    let mut catalog = Catalog::default();
    catalog.put(&name(0), vec![1]);
    let mut session = idle(&catalog);
    let again =
        Request { subscribe: vec![name(0).to_string(), name(7).to_string()], ..Request::default() };
    session.on_request(&again, &catalog).unwrap();
    let response = session.next(&catalog, &mut vec![]).unwrap();
    assert_eq!(response.resources.len(), 1);
    assert_eq!(response.removed, [name(7)]);
}

#[test]
fn without_the_wildcard_only_named_clusters_are_sent() {
    let mut catalog = Catalog::default();
    let mut session = Session::default();
    let named = Request { subscribe: vec![name(1).to_string()], ..Request::default() };
    session.on_request(&named, &catalog).unwrap();
    let first = session.next(&catalog, &mut vec![]).unwrap();
    session.on_request(&ack(&first.nonce), &catalog).unwrap();
    put(&mut catalog, &mut session, 0, 1);
    assert_eq!(session.next(&catalog, &mut vec![]), None);
    put(&mut catalog, &mut session, 1, 1);
    assert_eq!(session.next(&catalog, &mut vec![]).unwrap().resources[0].name, name(1));
}

#[test]
fn a_response_is_bounded() {
    let mut catalog = Catalog::default();
    for n in 0..1000 {
        catalog.put(&format!("sq/t{n}").into(), vec![0; 2048]);
    }
    let mut session = Session::default();
    session.on_request(&Request::default(), &catalog).unwrap();
    let (mut responses, mut sent) = (0, 0);
    while let Some(response) = session.next(&catalog, &mut vec![]) {
        assert!(response.resources.len() <= BATCH_NAMES);
        responses += 1;
        sent += response.resources.len();
        session.on_request(&ack(&response.nonce), &catalog).unwrap();
    }
    assert_eq!((responses, sent), (4, 1000));
}

/// What can happen.
#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8),
    Remove(u8),
    /// Envoy answers what it got; a refusal names the culprits or not.
    Answer {
        names_culprits: bool,
    },
    Junk,
    Resubscribe(u8),
    /// A new stream.
    Reconnect,
    /// A new server that knows the same set, numbered anew.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..6_u8, 0..=POISON).prop_map(|(n, value)| Step::Put(n, value)),
        3 => (0..6_u8).prop_map(Step::Remove),
        6 => any::<bool>().prop_map(|names_culprits| Step::Answer { names_culprits }),
        1 => Just(Step::Junk),
        1 => (0..6_u8).prop_map(Step::Resubscribe),
        1 => Just(Step::Reconnect),
        1 => Just(Step::Restart),
    ]
}

/// A server and an Envoy.
#[derive(Default)]
struct World {
    catalog: Catalog,
    changed: BTreeMap<Name, Seq>,
    session: Session,
    held: BTreeMap<Name, Version>,
    wire: Option<Response>,
    acked: Option<Seq>,
}

impl World {
    fn connect(&mut self) {
        self.session = Session::default();
        self.wire = None;
        self.acked = None;
        self.say(&wildcard(&self.held.clone()));
    }

    fn say(&mut self, request: &Request) {
        let outcomes = self.session.on_request(request, &self.catalog).unwrap();
        self.judge(&outcomes);
    }

    fn pump(&mut self) {
        let mut outcomes = Vec::new();
        if let Some(response) = self.session.next(&self.catalog, &mut outcomes) {
            assert!(self.wire.is_none(), "two responses in flight");
            for name in &response.removed {
                assert!(self.catalog.get(name).is_none(), "{name} exists and is removed");
            }
            self.wire = Some(response);
        }
        self.judge(&outcomes);
    }

    /// Envoy takes what is good and refuses the response when anything in it is bad.
    fn answer(&mut self, names_culprits: bool) {
        let Some(response) = self.wire.take() else { return };
        let mut reason = "refused".to_owned();
        let mut bad = false;
        for resource in &response.resources {
            if *resource.body == [POISON] {
                bad = true;
                if names_culprits {
                    reason = format!("{reason} {}: bad", resource.name);
                }
            } else {
                self.held.insert(resource.name.clone(), resource.version.clone());
            }
        }
        for name in &response.removed {
            self.held.remove(name);
        }
        self.say(&Request { error: bad.then_some(reason), ..ack(&response.nonce) });
    }

    fn judge(&mut self, outcomes: &[Outcome]) {
        for outcome in outcomes {
            let Outcome::Acked(seq) = outcome else { continue };
            assert!(self.acked < Some(*seq) && *seq <= self.catalog.seq());
            self.acked = Some(*seq);
            for (name, _) in self.changed.iter().filter(|(_, changed)| *changed <= seq) {
                self.check(name);
            }
        }
    }

    /// Envoy has the name as the catalog says, or refused it. A refusal without names sets good
    /// ones aside with the bad: those are not at fault here.
    fn check(&self, name: &Name) {
        let wanted = self.catalog.get(name).filter(|e| *e.body != [POISON]).map(|e| &e.version);
        if wanted.is_some() || self.catalog.get(name).is_none() {
            assert_eq!(self.held.get(name), wanted, "{name}");
        }
    }

    fn change(&mut self, n: u8, change: Change) {
        if let Change::At(seq) = change {
            self.changed.insert(name(n), seq);
            self.session.on_change(&name(n), seq);
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Put(n, value) => {
                let change = self.catalog.put(&name(n), vec![value]);
                self.change(n, change);
            }
            Step::Remove(n) => {
                let change = self.catalog.remove(&name(n));
                self.change(n, change);
            }
            Step::Answer { names_culprits } => self.answer(names_culprits),
            Step::Junk => self.say(&ack("junk")),
            Step::Resubscribe(n) => {
                let subscribe = vec![name(n).to_string()];
                self.say(&Request { subscribe, ..Request::default() });
            }
            Step::Reconnect => self.connect(),
            Step::Restart => {
                let old = std::mem::take(&mut self.catalog);
                self.changed.clear();
                for (name, entry) in old.iter() {
                    let seq = self.catalog.put(name, entry.body.to_vec()).seq();
                    self.changed.insert(name.clone(), seq);
                }
                self.connect();
            }
        }
    }
}

proptest! {
    #[test]
    fn envoy_ends_with_the_catalog_and_no_ack_comes_early(
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
            world.answer(true);
            world.pump();
            rounds += 1;
            prop_assert!(rounds < 30, "never at rest");
        }
        prop_assert_eq!(world.acked, Some(world.catalog.seq()));
        for n in 0..6 {
            world.check(&name(n));
        }
    }
}
