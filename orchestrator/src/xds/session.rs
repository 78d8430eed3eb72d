//! One Envoy's delta stream of clusters, as a pure state machine: requests in, responses out.
//!
//! ```text
//!  Fresh ──first request──► Idle ──next(): something differs──► InFlight
//!                            ▲                                    │
//!                            └── ack: held as sent ───────────────┤
//!                            └── nack: culprits set aside, ───────┘
//!                                the others sent again
//! ```
//!
//! At most one response is in flight; what changes meanwhile is gathered into the next, so that a
//! herd of wakes costs few round trips. Names wait in the order of the oldest change they carry;
//! an ack therefore confirms every change up to the oldest one still waiting.
//!
//! A response that Envoy refuses is cut down: the names its reason mentions (all, when it mentions
//! none) are set aside until they change again. Each refusal sets at least one name aside, so that
//! one bad cluster holds up nobody for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::xds::resources::{Catalog, Name, Seq, Version};

/// Bytes of resources in one response: well under gRPC's usual 4 MB limit, and small enough that
/// Envoy's main thread is not held up long (0.7 ms a cluster, 2 KB each).
const BATCH_BYTES: usize = 512 * 1024;

/// Names in one response, removals included.
const BATCH_NAMES: usize = 256;

/// Names one stream may subscribe to or claim to hold: ten times what a host serves. More is a
/// client gone wrong.
const NAMES_MAX: usize = 100_000;

/// What Envoy says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// The response it answers; empty: none.
    pub nonce: String,
    /// Why it refuses that response.
    pub error: Option<String>,
    /// Names it asks for from now on; `*` is all.
    pub subscribe: Vec<String>,
    /// Names it no longer wants.
    pub unsubscribe: Vec<String>,
    /// What it holds from an earlier stream; on the first request only.
    pub initial_versions: Vec<(String, String)>,
}

/// What Envoy is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Repeated by the answer.
    pub nonce: String,
    /// New or changed.
    pub resources: Vec<Resource>,
    /// No longer there.
    pub removed: Vec<Name>,
}

/// One resource of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// Its name.
    pub name: Name,
    /// Its version.
    pub version: Version,
    /// Its bytes.
    pub body: Arc<[u8]>,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Envoy has every change up to `seq`, but those it refused.
    Acked(Seq),
    /// Envoy refuses these. Comes before any `Acked` that covers them.
    Nacked {
        /// Set aside until they change.
        names: Vec<Name>,
        /// As they were then: what has changed since is not refused.
        seq: Seq,
        /// Envoy's words.
        reason: String,
    },
    /// An answer to a response that is not in flight: ignored.
    UnknownNonce,
}

/// The stream can't go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than {NAMES_MAX} names")]
pub struct TooManyNames;

/// What Envoy has of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Held {
    /// This.
    Version(Version),
    /// It refused this one and may hold an older one.
    Refused(Version),
}

#[derive(Debug)]
struct InFlight {
    nonce: String,
    /// The last change when it was made.
    seq: Seq,
    sent: BTreeMap<Name, Option<Version>>,
}

/// One stream's state.
#[derive(Debug, Default)]
pub struct Session {
    started: bool,
    wildcard: bool,
    /// Names subscribed to by name.
    named: BTreeSet<Name>,
    held: BTreeMap<Name, Held>,
    /// To be compared with the catalog, by the oldest change.
    waiting: BTreeSet<(Seq, Name)>,
    waits_since: BTreeMap<Name, Seq>,
    /// Sent again even when held: Envoy asked by name.
    forced: BTreeSet<Name>,
    in_flight: Option<InFlight>,
    nonces: u64,
    /// The first response goes out even when it is empty: Envoy's start waits for it.
    first_sent: bool,
    acked: Option<Seq>,
}

impl Session {
    /// Takes in what Envoy says.
    pub fn on_request(
        &mut self,
        request: &Request,
        catalog: &Catalog,
    ) -> Result<Vec<Outcome>, TooManyNames> {
        let mut outcomes = Vec::new();
        if self.started {
            self.on_answer(request, catalog, &mut outcomes);
        } else {
            self.on_first(request, catalog)?;
        }
        for name in &request.unsubscribe {
            self.unsubscribe(name, catalog);
        }
        for name in &request.subscribe {
            self.subscribe(name, catalog)?;
        }
        Ok(outcomes)
    }

    /// A change of the set.
    pub fn on_change(&mut self, name: &Name, seq: Seq) {
        if self.started && self.wants(name) {
            self.wait(name.clone(), seq);
        }
    }

    /// The next response, when one is due. Adds what is known without sending anything.
    pub fn next(&mut self, catalog: &Catalog, outcomes: &mut Vec<Outcome>) -> Option<Response> {
        if !self.started || self.in_flight.is_some() {
            return None;
        }
        let (resources, removed) = self.batch(catalog);
        if resources.is_empty() && removed.is_empty() && self.first_sent {
            self.confirm(catalog, outcomes);
            return None;
        }
        self.first_sent = true;
        self.nonces += 1;
        let nonce = self.nonces.to_string();
        let sent = resources.iter().map(|r| (r.name.clone(), Some(r.version.clone())));
        let sent = sent.chain(removed.iter().map(|name| (name.clone(), None))).collect();
        self.in_flight = Some(InFlight { nonce: nonce.clone(), seq: catalog.seq(), sent });
        Some(Response { nonce, resources, removed })
    }

    fn on_first(&mut self, request: &Request, catalog: &Catalog) -> Result<(), TooManyNames> {
        if request.initial_versions.len() > NAMES_MAX {
            return Err(TooManyNames);
        }
        self.started = true;
        // No name at all is the older way to ask for everything.
        self.wildcard = request.subscribe.is_empty();
        for (name, version) in &request.initial_versions {
            let name: Name = name.as_str().into();
            self.held.insert(name.clone(), Held::Version(Version(version.clone())));
            self.wait(name, 0);
        }
        if self.wildcard {
            self.wait_for_all(catalog);
        }
        Ok(())
    }

    fn on_answer(&mut self, request: &Request, catalog: &Catalog, outcomes: &mut Vec<Outcome>) {
        if request.nonce.is_empty() {
            return;
        }
        let Some(flight) = self.in_flight.take_if(|f| f.nonce == request.nonce) else {
            outcomes.push(Outcome::UnknownNonce);
            return;
        };
        match &request.error {
            None => self.on_ack(flight),
            Some(reason) => outcomes.push(self.on_nack(flight, reason)),
        }
        self.confirm(catalog, outcomes);
    }

    fn on_ack(&mut self, flight: InFlight) {
        for (name, version) in flight.sent {
            match version {
                Some(version) => self.held.insert(name, Held::Version(version)),
                None => self.held.remove(&name),
            };
        }
    }

    fn on_nack(&mut self, flight: InFlight, reason: &str) -> Outcome {
        let mentioned: BTreeSet<Name> =
            flight.sent.keys().filter(|name| mentions(reason, name)).cloned().collect();
        let mut names = Vec::new();
        for (name, version) in flight.sent {
            let culprit = mentioned.is_empty() || mentioned.contains(&name);
            match (culprit, version) {
                (true, Some(version)) => {
                    self.held.insert(name.clone(), Held::Refused(version));
                    names.push(name);
                }
                // Envoy may have the name or not: as if it had none of ours.
                (true, None) => {
                    self.held.remove(&name);
                    names.push(name);
                }
                (false, _) => {
                    self.forced.insert(name.clone());
                    self.wait(name, 0);
                }
            }
        }
        Outcome::Nacked { names, seq: flight.seq, reason: reason.to_owned() }
    }

    fn subscribe(&mut self, name: &str, catalog: &Catalog) -> Result<(), TooManyNames> {
        if name == "*" {
            self.wildcard = true;
            self.wait_for_all(catalog);
            return Ok(());
        }
        let name: Name = name.into();
        self.named.insert(name.clone());
        if self.named.len() > NAMES_MAX {
            return Err(TooManyNames);
        }
        // On a reconnect what is held need not be sent again; asked for later it must be.
        if self.first_sent || !self.held.contains_key(&name) {
            self.forced.insert(name.clone());
        }
        self.wait(name, catalog.seq());
        Ok(())
    }

    fn unsubscribe(&mut self, name: &str, catalog: &Catalog) {
        if name == "*" {
            self.wildcard = false;
            let dropped: Vec<Name> =
                self.held.keys().filter(|held| !self.wants(held)).cloned().collect();
            for name in dropped {
                self.forget(&name);
            }
            return;
        }
        self.named.remove(name);
        if self.wildcard {
            // Still wanted by the wildcard: the protocol says to send it again.
            self.forced.insert(name.into());
            self.wait(name.into(), catalog.seq());
        } else {
            self.forget(name);
        }
    }

    /// Envoy drops by itself what it no longer subscribes to.
    fn forget(&mut self, name: &str) {
        self.held.remove(name);
        self.forced.remove(name);
        if let Some(seq) = self.waits_since.remove(name) {
            self.waiting.remove(&(seq, name.into()));
        }
    }

    fn wants(&self, name: &str) -> bool {
        self.wildcard || self.named.contains(name)
    }

    fn wait_for_all(&mut self, catalog: &Catalog) {
        for (name, entry) in catalog.iter() {
            self.wait(name.clone(), entry.seq);
        }
    }

    /// The oldest change counts: a name that changes all the time is still confirmed in turn.
    fn wait(&mut self, name: Name, seq: Seq) {
        let since = self.waits_since.entry(name.clone()).or_insert(seq);
        if *since > seq {
            self.waiting.remove(&(*since, name.clone()));
            *since = seq;
        }
        self.waiting.insert((*since, name));
    }

    fn batch(&mut self, catalog: &Catalog) -> (Vec<Resource>, Vec<Name>) {
        let (mut resources, mut removed, mut bytes) = (Vec::new(), Vec::new(), 0);
        while bytes < BATCH_BYTES && resources.len() + removed.len() < BATCH_NAMES {
            let Some((_, name)) = self.waiting.pop_first() else { break };
            self.waits_since.remove(&name);
            let forced = self.forced.remove(&name);
            // Held from an earlier stream and not subscribed to on this one.
            if !self.wants(&name) && !self.held.contains_key(&name) {
                continue;
            }
            match (catalog.get(&name).filter(|_| self.wants(&name)), self.held.get(&name)) {
                (Some(entry), Some(Held::Version(v) | Held::Refused(v)))
                    if *v == entry.version && !forced => {}
                (Some(entry), _) => {
                    bytes += entry.body.len();
                    resources.push(Resource {
                        name,
                        version: entry.version.clone(),
                        body: entry.body.clone(),
                    });
                }
                (None, Some(_)) => removed.push(name),
                (None, None) if forced => removed.push(name),
                (None, None) => {}
            }
        }
        (resources, removed)
    }

    /// Nothing is in flight: Envoy has all but what waits.
    fn confirm(&mut self, catalog: &Catalog, outcomes: &mut Vec<Outcome>) {
        let covered = match self.waiting.first() {
            Some((0, _)) => return,
            Some((oldest, _)) => oldest - 1,
            None => catalog.seq(),
        };
        if self.acked.is_none_or(|acked| covered > acked) {
            self.acked = Some(covered);
            outcomes.push(Outcome::Acked(covered));
        }
    }
}

/// Whether Envoy's reason names the cluster, and not a longer name that starts with it.
fn mentions(reason: &str, name: &str) -> bool {
    let part_of_name = |c: char| c.is_ascii_alphanumeric() || c == '-';
    reason.match_indices(name).any(|(at, _)| !reason[at + name.len()..].starts_with(part_of_name))
}

#[cfg(test)]
mod tests;
