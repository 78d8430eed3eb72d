//! Protocol state of one Envoy's delta xDS stream: requests in, responses out. Pure.
//!
//! ```text
//!  New ──first request──► Idle ──next_response(): something differs──► InFlight
//!                          ▲                                              │
//!                          ├── ACK: the names are acknowledged as sent ───┤
//!                          └── NACK: the culprits are set aside, ─────────┘
//!                              the other names are sent again
//! ```
//!
//! At most one response is in flight. Changes that happen while it is are gathered into the next
//! one, so that a herd of wakes costs few round trips. Names are pending in the order of the oldest
//! change that Envoy has not seen of them; therefore, with no response in flight, Envoy has seen
//! every change before the oldest pending one, and that number is what the session confirms.
//!
//! Envoy accepts or rejects a response as a whole. After a rejection, the names that its reason
//! mentions (all of them, if it mentions none) are set aside until they change again, and the others
//! are sent again. Every rejection sets at least one name aside, so that a bad cluster cannot block
//! the others forever.

use std::collections::{BTreeMap, BTreeSet};

use crate::xds::resources::{Resource, ResourceName, ResourceSet, Seq, Version};

/// Bytes of resources in one response: well under gRPC's usual limit of 4 MB, and small enough not
/// to hold up Envoy's main thread, which takes 0.7 ms per cluster of 2 kB.
const BATCH_BYTES: usize = 512 * 1024;

/// Names in one response, removals included.
const BATCH_NAMES: usize = 256;

/// Names that one stream may subscribe to or claim to have: ten times as many as a host serves. A
/// client that exceeds it is broken.
const NAMES_MAX: usize = 100_000;

/// A request of Envoy: an ACK or NACK, a change of its subscriptions, or both.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Request {
    /// Nonce of the response that this request accepts or rejects; empty if it does neither.
    pub(crate) nonce: String,
    /// Reason for a rejection (NACK); `None` for an ACK.
    pub(crate) error: Option<String>,
    /// Names that Envoy subscribes to; `*` means all.
    pub(crate) subscribe: Vec<String>,
    /// Names that Envoy no longer wants.
    pub(crate) unsubscribe: Vec<String>,
    /// Names and versions that Envoy has from an earlier stream; on the first request only.
    pub(crate) initial_versions: Vec<(String, String)>,
}

/// A response to be sent to Envoy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Response {
    /// Repeated by the request that accepts or rejects this response.
    pub(crate) nonce: String,
    /// New and changed resources.
    pub(crate) resources: Vec<Resource>,
    /// Names of resources that no longer exist.
    pub(crate) removed: Vec<ResourceName>,
}

/// A conclusion from a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Envoy has every change up to this one, except those that it rejected.
    Acked(Seq),
    /// Envoy rejected these names. Precedes any `Acked` that covers them.
    Nacked {
        /// Set aside until they change.
        names: Vec<ResourceName>,
        /// Last change when the response was made; later changes are not rejected.
        seq: Seq,
        /// Envoy's own text.
        reason: String,
    },
    /// The nonce belongs to no response in flight; the ACK or NACK was ignored.
    UnknownNonce,
}

/// The stream must be ended: its client names too many resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than {NAMES_MAX} names")]
pub(crate) struct TooManyNames;

/// Last response of Envoy about a name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Acknowledged {
    /// Envoy has this version.
    Accepted(Version),
    /// Envoy rejected this version, and may have an older one.
    Rejected(Version),
}

impl Acknowledged {
    fn version(&self) -> &Version {
        match self {
            Self::Accepted(version) | Self::Rejected(version) => version,
        }
    }
}

/// The response that Envoy has neither accepted nor rejected yet.
#[derive(Debug)]
struct InFlight {
    nonce: String,
    /// Last change when the response was made.
    seq: Seq,
    /// Versions as sent; `None` for a removal.
    sent: BTreeMap<ResourceName, Option<Version>>,
}

/// State of one stream.
#[derive(Debug, Default)]
pub(crate) struct Session {
    /// The first request has come.
    started: bool,
    /// The first response has been made. It is sent even if it is empty: Envoy's start waits for it.
    initial_response_made: bool,
    wildcard: bool,
    /// Names subscribed to one by one.
    subscribed: BTreeSet<ResourceName>,
    acknowledged: BTreeMap<ResourceName, Acknowledged>,
    /// Names to compare with the set, in the order of the oldest change that Envoy has not seen.
    pending: BTreeSet<(Seq, ResourceName)>,
    /// The same by name.
    pending_since: BTreeMap<ResourceName, Seq>,
    /// Names to send even if Envoy has them: it asked for them explicitly.
    resend: BTreeSet<ResourceName>,
    in_flight: Option<InFlight>,
    /// Nonces given out so far.
    nonces: u64,
    confirmed: Option<Seq>,
}

impl Session {
    /// Processes a request of Envoy.
    pub(crate) fn on_request(
        &mut self,
        request: &Request,
        set: &ResourceSet,
    ) -> Result<Vec<Outcome>, TooManyNames> {
        let mut outcomes = Vec::new();
        if self.started {
            self.on_acknowledgement(request, set, &mut outcomes);
        } else {
            self.on_first_request(request, set)?;
        }
        for name in &request.unsubscribe {
            self.unsubscribe(name, set);
        }
        for name in &request.subscribe {
            self.subscribe(name, set)?;
        }
        Ok(outcomes)
    }

    /// Notes a change of the set.
    pub(crate) fn on_change(&mut self, name: &ResourceName, seq: Seq) {
        if self.started && self.wants(name) {
            self.mark_pending(name.clone(), seq);
        }
    }

    /// Makes the next response, if one is due. If nothing needs to be sent, whatever that confirms
    /// is added to `outcomes`.
    pub(crate) fn next_response(
        &mut self,
        set: &ResourceSet,
        outcomes: &mut Vec<Outcome>,
    ) -> Option<Response> {
        if !self.started || self.in_flight.is_some() {
            return None;
        }
        let (resources, removed) = self.next_batch(set);
        if resources.is_empty() && removed.is_empty() && self.initial_response_made {
            self.confirm(set, outcomes);
            return None;
        }
        self.initial_response_made = true;
        self.nonces += 1;
        let nonce = self.nonces.to_string();
        // Remember the contents, because the ACK or NACK names only the nonce.
        let mut contents = BTreeMap::new();
        for resource in &resources {
            contents.insert(resource.name.clone(), Some(resource.version.clone()));
        }
        for name in &removed {
            contents.insert(name.clone(), None);
        }
        self.in_flight = Some(InFlight { nonce: nonce.clone(), seq: set.seq(), sent: contents });
        Some(Response { nonce, resources, removed })
    }

    fn on_first_request(
        &mut self,
        request: &Request,
        set: &ResourceSet,
    ) -> Result<(), TooManyNames> {
        if request.initial_versions.len() > NAMES_MAX {
            return Err(TooManyNames);
        }
        self.started = true;
        // A first request without names is the older form of the wildcard.
        self.wildcard = request.subscribe.is_empty();
        // Each name that Envoy already has is compared with the set before anything is confirmed:
        // it may have changed or gone while Envoy was not connected.
        for (name, version) in &request.initial_versions {
            let name = ResourceName::from(name.as_str());
            let accepted = Acknowledged::Accepted(Version(version.clone()));
            self.acknowledged.insert(name.clone(), accepted);
            self.mark_pending(name, Seq::default());
        }
        if self.wildcard {
            self.mark_all_pending(set);
        }
        Ok(())
    }

    fn on_acknowledgement(
        &mut self,
        request: &Request,
        set: &ResourceSet,
        outcomes: &mut Vec<Outcome>,
    ) {
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
        self.confirm(set, outcomes);
    }

    fn on_ack(&mut self, flight: InFlight) {
        for (name, version) in flight.sent {
            match version {
                Some(version) => {
                    self.acknowledged.insert(name, Acknowledged::Accepted(version));
                }
                None => {
                    self.acknowledged.remove(&name);
                }
            }
        }
    }

    fn on_nack(&mut self, flight: InFlight, reason: &str) -> Outcome {
        let is_mentioned = |name: &ResourceName| mentions(reason, name);
        let all_are_culprits = !flight.sent.keys().any(is_mentioned);
        let mut rejected = Vec::new();
        for (name, version) in flight.sent {
            if !all_are_culprits && !mentions(reason, &name) {
                // Not at fault: send it again, ahead of everything else.
                self.resend.insert(name.clone());
                self.mark_pending(name, Seq::default());
                continue;
            }
            match version {
                Some(version) => {
                    self.acknowledged.insert(name.clone(), Acknowledged::Rejected(version));
                }
                // Envoy rejected a removal and may still have the resource or not.
                None => {
                    self.acknowledged.remove(&name);
                }
            }
            rejected.push(name);
        }
        Outcome::Nacked { names: rejected, seq: flight.seq, reason: reason.to_owned() }
    }

    fn subscribe(&mut self, name: &str, set: &ResourceSet) -> Result<(), TooManyNames> {
        if name == "*" {
            self.wildcard = true;
            self.mark_all_pending(set);
            return Ok(());
        }
        let name = ResourceName::from(name);
        self.subscribed.insert(name.clone());
        if self.subscribed.len() > NAMES_MAX {
            return Err(TooManyNames);
        }
        // At a reconnect, a resource that Envoy already has need not be sent. Later, a subscription
        // is a request to send it, even if it has not changed.
        if self.initial_response_made || !self.acknowledged.contains_key(&name) {
            self.resend.insert(name.clone());
        }
        self.mark_pending(name, set.seq());
        Ok(())
    }

    fn unsubscribe(&mut self, name: &str, set: &ResourceSet) {
        if name == "*" {
            self.wildcard = false;
            let dropped: Vec<ResourceName> =
                self.acknowledged.keys().filter(|name| !self.wants(name)).cloned().collect();
            for name in dropped {
                self.forget(&name);
            }
            return;
        }
        self.subscribed.remove(name);
        if self.wildcard {
            // The wildcard still covers it; the protocol requires to send it again.
            self.resend.insert(name.into());
            self.mark_pending(name.into(), set.seq());
        } else {
            self.forget(name);
        }
    }

    /// Drops the state of a name: Envoy deletes a resource when it unsubscribes.
    fn forget(&mut self, name: &str) {
        self.acknowledged.remove(name);
        self.resend.remove(name);
        if let Some(seq) = self.pending_since.remove(name) {
            self.pending.remove(&(seq, name.into()));
        }
    }

    fn wants(&self, name: &str) -> bool {
        self.wildcard || self.subscribed.contains(name)
    }

    fn mark_all_pending(&mut self, set: &ResourceSet) {
        for resource in set.iter() {
            self.mark_pending(resource.name.clone(), resource.seq);
        }
    }

    /// Queues a name. If it is queued already, its oldest change keeps its place, so that a name
    /// that changes all the time still gets its turn.
    fn mark_pending(&mut self, name: ResourceName, seq: Seq) {
        let since = self.pending_since.entry(name.clone()).or_insert(seq);
        if *since > seq {
            self.pending.remove(&(*since, name.clone()));
            *since = seq;
        }
        self.pending.insert((*since, name));
    }

    /// Takes pending names, oldest first, until a response is full. Names of which Envoy already has
    /// the current content are dropped on the way.
    fn next_batch(&mut self, set: &ResourceSet) -> (Vec<Resource>, Vec<ResourceName>) {
        let mut resources: Vec<Resource> = Vec::new();
        let mut removed = Vec::new();
        let mut bytes = 0;
        while bytes < BATCH_BYTES && resources.len() + removed.len() < BATCH_NAMES {
            let Some((_, name)) = self.pending.pop_first() else { break };
            self.pending_since.remove(&name);
            let must_send = self.resend.remove(&name);
            let wanted = self.wants(&name);
            let acknowledged = self.acknowledged.get(&name);
            if let Some(resource) = set.get(&name).filter(|_| wanted) {
                // A rejected version is not sent again unless Envoy asks for it.
                let is_current = acknowledged.is_some_and(|a| *a.version() == resource.version);
                if must_send || !is_current {
                    bytes += resource.body.len();
                    resources.push(resource.clone());
                }
            } else if acknowledged.is_some() || (wanted && must_send) {
                // Gone, or left from an earlier stream and not subscribed to on this one; or Envoy
                // asked for a name that does not exist.
                removed.push(name);
            }
        }
        (resources, removed)
    }

    /// Reports what Envoy has seen. Called only while no response is in flight: then Envoy has seen
    /// everything but the pending changes.
    fn confirm(&mut self, set: &ResourceSet, outcomes: &mut Vec<Outcome>) {
        let covered = match self.pending.first() {
            Some((oldest, _)) => match oldest.preceding() {
                Some(seq) => seq,
                None => return,
            },
            None => set.seq(),
        };
        if self.confirmed.is_none_or(|confirmed| covered > confirmed) {
            self.confirmed = Some(covered);
            outcomes.push(Outcome::Acked(covered));
        }
    }
}

/// True if Envoy's reason names this resource, and not one with a longer name that starts the same.
fn mentions(reason: &str, name: &str) -> bool {
    let continues_name = |c: char| c.is_ascii_alphanumeric() || c == '-';
    reason.match_indices(name).any(|(at, _)| !reason[at + name.len()..].starts_with(continues_name))
}

#[cfg(test)]
mod tests;
