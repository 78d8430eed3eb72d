//! Delta xDS for Envoy: publishes tenants' clusters to every connected Envoy and reports each
//! Envoy's acknowledgements as events.
//!
//! ```text
//!  lifecycle ──publish, withdraw──► Publisher (resource set, a session per stream)
//!      ▲                                │ wakes
//!      │ XdsEvent                       ▼
//!      └──────────────────────────  stream task ◄──gRPC──► Envoy
//! ```
//!
//! No response is sent before [`Publisher::ready`]: a restarted server must know everything that is
//! running before it may declare anything removed. Until then Envoys serve with the clusters that
//! they have.
//!
//! | file | content |
//! |---|---|
//! | `resources.rs` | the set of resources, with numbered changes; pure |
//! | `session.rs` | protocol state of one stream; pure |
//! | `cluster.rs` | the Envoy cluster of one tenant |
//! | `back_off.rs` | pauses of Envoys that did not acknowledge; pure |
//! | `server.rs` | the gRPC services and the task of each stream: the only file that names tonic |
//!
//! A change, from its publication to its acknowledgement:
//!
//! ```text
//!  driver         Publisher        stream task           Envoy
//!    │ publish        │                 │                  │
//!    ├───────────────►│ number the change, mark it pending │
//!    │◄──── seq ──────┤────── wake ────►│                  │
//!    │                │◄─ next response ┤                  │
//!    │                │                 ├──── response ───►│
//!    │                │                 │◄── ACK (nonce) ──┤
//!    │                │◄──── request ───┤                  │
//!    │◄────────── XdsEvent::Acked ──────┤                  │
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use protocol::{GatewayId, TenantId};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

pub use self::resources::Seq;
pub use self::server::serve;
use crate::sockets::Peer;
use crate::xds::back_off::BackOff;
use crate::xds::cluster::ClusterSpec;
use crate::xds::resources::{Change, ResourceName, ResourceSet};
use crate::xds::session::{Outcome, Request, Response, Session, TooManyNames};

mod back_off;
pub mod cluster;
pub(crate) mod resources;
mod server;
pub(crate) mod session;

/// Bound on simultaneous streams: dozens of Envoys, doubled by hot restarts.
const STREAMS_MAX: usize = 128;

/// Bound on the streams of one process: an Envoy has one, and for a moment two when it reconnects.
const PROCESS_STREAMS_MAX: usize = 8;

/// Events queued for the lifecycle. When the queue is full, only the streams wait.
const EVENTS_MAX: usize = 1024;

/// Identifies one stream; never reused while the process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u64);

/// An event on a stream. `Connected` is the first and `Disconnected` the last of each stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum XdsEvent {
    /// An Envoy asks for clusters. During its hot restart an Envoy has two streams.
    Connected {
        /// The new stream.
        stream: StreamId,
        /// The Envoy's `node.id`.
        gateway: GatewayId,
        /// The Envoy's process.
        peer: Peer,
    },
    /// The Envoy has every change up to `seq`, except those that it rejected.
    Acked {
        /// The stream on which the Envoy acknowledged.
        stream: StreamId,
        /// A number that `publish` or `withdraw` returned.
        seq: Seq,
    },
    /// The Envoy rejected these clusters. Precedes any `Acked` that covers them.
    Nacked {
        /// The stream on which the Envoy rejected them.
        stream: StreamId,
        /// Tenants whose clusters were rejected.
        tenants: Vec<TenantId>,
        /// Last change when the response was made; later changes are not rejected.
        seq: Seq,
        /// The Envoy's own text.
        reason: String,
    },
    /// The stream has ended.
    Disconnected {
        /// The stream that ended.
        stream: StreamId,
    },
}

/// Publishes clusters to all Envoys. Cheap to clone; clones share one set.
#[derive(Debug, Clone)]
pub struct Publisher {
    hub: Arc<Mutex<Hub>>,
    closing: Arc<watch::Sender<bool>>,
    events: mpsc::Sender<XdsEvent>,
}

#[derive(Debug, Default)]
struct Hub {
    set: ResourceSet,
    ready: bool,
    streams: HashMap<StreamId, OpenStream>,
    back_off: BackOff,
    /// The id that was given out last.
    last_stream: u64,
}

#[derive(Debug)]
struct OpenStream {
    session: Session,
    peer: Peer,
    /// The Envoy's `node.id`, once its first request has named it.
    gateway: Option<GatewayId>,
    wake: Arc<Notify>,
}

impl Publisher {
    /// Creates a publisher with an empty set, and the receiver of its streams' events.
    pub fn new() -> (Self, mpsc::Receiver<XdsEvent>) {
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let closing = Arc::new(watch::Sender::new(false));
        (Self { hub: Arc::default(), closing, events }, receiver)
    }

    /// Starts sending responses. Call it once every running tenant is published.
    pub fn ready(&self) {
        let mut hub = self.hub();
        hub.ready = true;
        hub.wake_all();
    }

    /// Publishes a tenant's cluster. An Envoy that has acknowledged the returned number has the
    /// cluster or has rejected it.
    pub fn publish(&self, tenant: &TenantId, spec: &ClusterSpec) -> Seq {
        let name = ResourceName::from(tenant.cluster());
        let body = spec.encode(tenant);
        let mut hub = self.hub();
        let change = hub.set.put(&name, body);
        hub.on_change(&name, change)
    }

    /// Removes a tenant's cluster. An Envoy that has acknowledged the returned number no longer
    /// routes to the tenant.
    pub fn withdraw(&self, tenant: &TenantId) -> Seq {
        let name = ResourceName::from(tenant.cluster());
        let mut hub = self.hub();
        let change = hub.set.remove(&name);
        hub.on_change(&name, change)
    }

    /// Ends a stream whose Envoy does not acknowledge. The Envoy reconnects and gets everything that
    /// it lacks, after a pause that doubles with each cut.
    pub fn disconnect(&self, stream: StreamId) {
        let mut hub = self.hub();
        if let Some(OpenStream { gateway, peer, wake, .. }) = hub.streams.remove(&stream) {
            if let Some(gateway) = gateway {
                hub.back_off.on_cut(gateway, peer, Instant::now());
            }
            wake.notify_one();
        }
    }

    /// Counts the open streams.
    pub fn streams(&self) -> usize {
        self.hub().streams.len()
    }

    fn hub(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock()
    }

    fn is_open(&self, stream: StreamId) -> bool {
        self.hub().streams.contains_key(&stream)
    }

    /// Registers a stream; `None` at a bound. The notification wakes its task.
    fn open(&self, peer: Peer) -> Option<(StreamId, Arc<Notify>)> {
        let mut hub = self.hub();
        let of_process = hub.streams.values().filter(|open| open.peer == peer).count();
        // Processes without a visible id are indistinguishable.
        let is_excess = peer.pid.is_some() && of_process >= PROCESS_STREAMS_MAX;
        if hub.streams.len() >= STREAMS_MAX || is_excess {
            return None;
        }
        hub.last_stream += 1;
        let id = StreamId(hub.last_stream);
        let wake = Arc::new(Notify::new());
        let session = Session::default();
        hub.streams.insert(id, OpenStream { session, peer, gateway: None, wake: wake.clone() });
        Some((id, wake))
    }

    /// Notes the name of a stream's Envoy. Returns when it may be served, if its last stream was cut.
    fn name(&self, stream: StreamId, gateway: &GatewayId) -> Option<Instant> {
        let mut hub = self.hub();
        let open = hub.streams.get_mut(&stream)?;
        open.gateway = Some(gateway.clone());
        let peer = open.peer;
        hub.back_off.ends_at(gateway, peer)
    }

    fn close(&self, stream: StreamId) {
        self.hub().streams.remove(&stream);
    }

    fn on_request(&self, id: StreamId, request: &Request) -> Result<Vec<Outcome>, TooManyNames> {
        let mut hub = self.hub();
        let Hub { set, streams, .. } = &mut *hub;
        match streams.get_mut(&id) {
            Some(open) => open.session.on_request(request, set),
            None => Ok(Vec::new()),
        }
    }

    fn next_response(&self, id: StreamId) -> (Option<Response>, Vec<Outcome>) {
        let mut hub = self.hub();
        let Hub { set, streams, ready, .. } = &mut *hub;
        let mut outcomes = Vec::new();
        let response = match streams.get_mut(&id) {
            Some(open) if *ready => open.session.next_response(set, &mut outcomes),
            _ => None,
        };
        (response, outcomes)
    }
}

impl Hub {
    fn on_change(&mut self, name: &ResourceName, change: Change) -> Seq {
        if let Change::Changed(seq) = change {
            for open in self.streams.values_mut() {
                open.session.on_change(name, seq);
            }
            self.wake_all();
        }
        change.seq()
    }

    fn wake_all(&self) {
        for open in self.streams.values() {
            open.wake.notify_one();
        }
    }
}
