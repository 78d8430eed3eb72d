//! Delta xDS for Envoy: what is published goes to every connected Envoy, and each one's ack comes
//! back as an event. The protocol itself is decided in [`crate::xds::session`]; here it meets gRPC.
//!
//! ```text
//!  lifecycle ──publish/withdraw──► Publisher (catalog, one session per stream)
//!      ▲                                  │ wakes
//!      │ XdsEvent                         ▼
//!      └──────────────────────────  stream task ◄──gRPC──► Envoy
//! ```
//!
//! Until [`Publisher::ready`] nobody is told anything: a restarted server must know what runs
//! before it may say what does not exist. Envoys serve on with what they have meanwhile.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::{GatewayId, TenantId};
use tokio::sync::{Notify, mpsc, watch};

pub use self::server::serve;
use crate::xds::cluster::ClusterSpec;
use crate::xds::resources::{Catalog, Change, Name, Seq};
use crate::xds::session::{Outcome, Request, Response, Session, TooManyNames};

pub mod cluster;
pub mod resources;
mod server;
pub mod session;

/// Streams at the same time: dozens of Envoys, doubled by hot restarts.
const STREAMS_MAX: usize = 128;

/// Events not yet taken by the lifecycle: then streams wait, which slows nobody but them.
pub const EVENTS: usize = 1024;

/// One connection's stream; never used again within a life of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u64);

/// What happens on streams. Of one stream: `Connected` first, `Disconnected` last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum XdsEvent {
    /// An Envoy asks for clusters. It may have several streams (hot restart).
    Connected {
        /// This stream.
        stream: StreamId,
        /// Its `node.id`.
        gateway: GatewayId,
    },
    /// It has every change up to `seq`, but for what it refused.
    Acked {
        /// Which stream.
        stream: StreamId,
        /// As `publish` and `withdraw` gave it.
        seq: Seq,
    },
    /// It refuses these clusters until they change. Comes before any `Acked` that covers them.
    Nacked {
        /// Which stream.
        stream: StreamId,
        /// Whose clusters.
        tenants: Vec<TenantId>,
        /// As they were then: what has changed since is not refused.
        seq: Seq,
        /// Envoy's words.
        reason: String,
    },
    /// It is gone.
    Disconnected {
        /// Which stream.
        stream: StreamId,
    },
}

/// The set of clusters, shared. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Publisher {
    hub: Arc<Mutex<Hub>>,
    closing: Arc<watch::Sender<bool>>,
    events: mpsc::Sender<XdsEvent>,
}

#[derive(Debug, Default)]
struct Hub {
    catalog: Catalog,
    ready: bool,
    streams: HashMap<StreamId, Peer>,
    next_stream: u64,
}

#[derive(Debug)]
struct Peer {
    session: Session,
    wake: Arc<Notify>,
}

impl Publisher {
    /// An empty set, and what happens on its streams.
    pub fn new() -> (Self, mpsc::Receiver<XdsEvent>) {
        let (events, listener) = mpsc::channel(EVENTS);
        let publisher =
            Self { hub: Arc::default(), closing: Arc::new(watch::Sender::new(false)), events };
        (publisher, listener)
    }

    /// Everything that ran before is published: from now on Envoys are answered.
    pub fn ready(&self) {
        let mut hub = self.hub();
        hub.ready = true;
        hub.wake_all();
    }

    /// Sets a tenant's cluster. An Envoy that acked the seq has it (or has refused it).
    pub fn publish(&self, tenant: &TenantId, spec: &ClusterSpec) -> Seq {
        let name: Name = tenant.cluster().into();
        let body = spec.encode(tenant);
        let mut hub = self.hub();
        let change = hub.catalog.put(&name, body);
        hub.changed(&name, change)
    }

    /// Takes a tenant's cluster away. An Envoy that acked the seq no longer routes to it.
    pub fn withdraw(&self, tenant: &TenantId) -> Seq {
        let name: Name = tenant.cluster().into();
        let mut hub = self.hub();
        let change = hub.catalog.remove(&name);
        hub.changed(&name, change)
    }

    /// Ends a stream that does not acknowledge; Envoy opens another one and is told afresh.
    pub fn disconnect(&self, stream: StreamId) {
        if let Some(peer) = self.hub().streams.remove(&stream) {
            peer.wake.notify_one();
        }
    }

    fn is_open(&self, stream: StreamId) -> bool {
        self.hub().streams.contains_key(&stream)
    }

    /// Clusters published now.
    pub fn clusters(&self) -> usize {
        self.hub().catalog.len()
    }

    /// Streams open now.
    pub fn streams(&self) -> usize {
        self.hub().streams.len()
    }

    // A panic while the lock is held leaves no half-made change: every step is one insertion.
    fn hub(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Option<(StreamId, Arc<Notify>)> {
        let mut hub = self.hub();
        if hub.streams.len() >= STREAMS_MAX {
            return None;
        }
        hub.next_stream += 1;
        let (id, wake) = (StreamId(hub.next_stream), Arc::new(Notify::new()));
        hub.streams.insert(id, Peer { session: Session::default(), wake: wake.clone() });
        Some((id, wake))
    }

    fn request(&self, id: StreamId, request: &Request) -> Result<Vec<Outcome>, TooManyNames> {
        let mut hub = self.hub();
        let Hub { catalog, streams, .. } = &mut *hub;
        let Some(peer) = streams.get_mut(&id) else { return Ok(Vec::new()) };
        peer.session.on_request(request, catalog)
    }

    fn response(&self, id: StreamId) -> (Option<Response>, Vec<Outcome>) {
        let mut hub = self.hub();
        let Hub { catalog, streams, ready, .. } = &mut *hub;
        let mut outcomes = Vec::new();
        let response = match streams.get_mut(&id) {
            Some(peer) if *ready => peer.session.next(catalog, &mut outcomes),
            _ => None,
        };
        (response, outcomes)
    }
}

impl Hub {
    fn changed(&mut self, name: &Name, change: Change) -> Seq {
        if let Change::At(seq) = change {
            for peer in self.streams.values_mut() {
                peer.session.on_change(name, seq);
            }
            self.wake_all();
        }
        change.seq()
    }

    fn wake_all(&self) {
        for peer in self.streams.values() {
            peer.wake.notify_one();
        }
    }
}
