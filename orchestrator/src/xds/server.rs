//! The gRPC side of xDS: the discovery services, and one task per stream.
//!
//! Both services of Envoy's protocol that carry clusters are served: the aggregated one (ADS), which
//! carries all types on one stream, and the one for clusters alone (CDS). Envoy ends a stream's task
//! by leaving, the lifecycle by [`Publisher::disconnect`], and shutdown ends all of them.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::service::cluster::v3::cluster_discovery_service_server as cds;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server as ads;
use envoy_types::pb::envoy::service::discovery::v3::{
    self as proto, DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest,
    DiscoveryResponse,
};
use envoy_types::pb::google::protobuf::Any;
use protocol::headers::CLUSTER_PREFIX;
use protocol::{GatewayId, TenantId};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Code, Status, Streaming};

use super::{PROCESS_STREAMS_MAX, Publisher, STREAMS_MAX, StreamId, XdsEvent};
use crate::sockets::{Peer, PeerListener};
use crate::xds::cluster::CLUSTER_TYPE;
use crate::xds::session::{Outcome, Request, Response};

/// Responses queued between a stream's task and gRPC. At most one of clusters is in flight; the rest
/// is room for responses about other types.
const OUTBOX_MAX: usize = 4;

/// Bound on the types other than clusters that one stream may ask for; Envoy has about a dozen.
const OTHER_TYPES_MAX: usize = 32;

/// Bound on a request: the first one of an Envoy with 100,000 clusters takes 60 bytes for each, and
/// this leaves room.
const REQUEST_MAX_BYTES: usize = 16 << 20;

/// A dead peer is noticed after the sum of these two. Its leases expire anyway; the purpose is that
/// no drain waits for an acknowledgement that will not come.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Response to clients of the older, state-of-the-world protocol.
const DELTA_ONLY: &str = "only delta xDS is served: set api_type to DELTA_GRPC";

/// Serves Envoys until `shutdown`, then ends all streams. Envoys keep the clusters that they have.
pub async fn serve(
    listener: PeerListener,
    publisher: Publisher,
    shutdown: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let service = Service { publisher: publisher.clone() };
    let ads = ads::AggregatedDiscoveryServiceServer::new(service.clone())
        .max_decoding_message_size(REQUEST_MAX_BYTES);
    let cds = cds::ClusterDiscoveryServiceServer::new(service)
        .max_decoding_message_size(REQUEST_MAX_BYTES);
    let closing = publisher.closing.clone();
    let shutdown = async move {
        shutdown.await;
        closing.send_replace(true);
    };
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_service(ads)
        .add_service(cds)
        .serve_with_incoming_shutdown(Box::pin(listener.into_stream()), shutdown)
        .await
}

#[derive(Debug, Clone)]
struct Service {
    publisher: Publisher,
}

type Outbox = mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>;
type DeltaStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;
/// Stream type of the older protocol, required by the traits and never created.
type UnusedStream = Pin<Box<dyn Stream<Item = Result<DiscoveryResponse, Status>> + Send>>;

impl Service {
    fn accept(
        &self,
        request: tonic::Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<tonic::Response<DeltaStream>, Status> {
        let connection = request.extensions().get::<UdsConnectInfo>();
        let Some(credentials) = connection.and_then(|connection| connection.peer_cred) else {
            return Err(Status::unauthenticated("the peer has no credentials"));
        };
        let peer = Peer::from(credentials);
        let Some((id, wake)) = self.publisher.open(peer) else {
            return Err(Status::resource_exhausted(format!(
                "more than {STREAMS_MAX} streams, or {PROCESS_STREAMS_MAX} of one process"
            )));
        };
        let (outbox, responses) = mpsc::channel(OUTBOX_MAX);
        let stream = StreamTask {
            publisher: self.publisher.clone(),
            id,
            peer,
            wake,
            outbox,
            connected: false,
            answered_types: BTreeSet::new(),
        };
        // The task ends with its stream: when Envoy leaves, `inbound` ends and `outbox` closes.
        tokio::spawn(stream.run(request.into_inner()));
        Ok(tonic::Response::new(ReceiverStream::new(responses)))
    }
}

#[tonic::async_trait]
impl ads::AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = UnusedStream;
    type DeltaAggregatedResourcesStream = DeltaStream;

    async fn stream_aggregated_resources(
        &self,
        _: tonic::Request<Streaming<DiscoveryRequest>>,
    ) -> Result<tonic::Response<UnusedStream>, Status> {
        Err(Status::unimplemented(DELTA_ONLY))
    }

    async fn delta_aggregated_resources(
        &self,
        request: tonic::Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<tonic::Response<DeltaStream>, Status> {
        self.accept(request)
    }
}

#[tonic::async_trait]
impl cds::ClusterDiscoveryService for Service {
    type StreamClustersStream = UnusedStream;
    type DeltaClustersStream = DeltaStream;

    async fn stream_clusters(
        &self,
        _: tonic::Request<Streaming<DiscoveryRequest>>,
    ) -> Result<tonic::Response<UnusedStream>, Status> {
        Err(Status::unimplemented(DELTA_ONLY))
    }

    async fn delta_clusters(
        &self,
        request: tonic::Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<tonic::Response<DeltaStream>, Status> {
        self.accept(request)
    }

    async fn fetch_clusters(
        &self,
        _: tonic::Request<DiscoveryRequest>,
    ) -> Result<tonic::Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented(DELTA_ONLY))
    }
}

/// The task of one stream. Dropping it removes the session.
struct StreamTask {
    publisher: Publisher,
    id: StreamId,
    peer: Peer,
    wake: Arc<Notify>,
    outbox: Outbox,
    /// `XdsEvent::Connected` has been sent, so `Disconnected` must follow.
    connected: bool,
    /// Types other than clusters that were answered once.
    answered_types: BTreeSet<String>,
}

impl Drop for StreamTask {
    fn drop(&mut self) {
        self.publisher.close(self.id);
    }
}

impl StreamTask {
    async fn run(mut self, inbound: Streaming<DeltaDiscoveryRequest>) {
        if let Err(status) = self.serve(inbound).await {
            tracing::warn!(stream = self.id.0, error = %status, "xDS stream ended");
            // Envoy may be gone already.
            let _ = self.outbox.send(Err(status)).await;
        }
        let events = self.publisher.events.clone();
        let connected = self.connected;
        let stream = self.id;
        // Remove the session before the event: a reader of the event finds the stream closed.
        drop(self);
        if connected {
            // No receiver is left at shutdown.
            let _ = events.send(XdsEvent::Disconnected { stream }).await;
        }
    }

    async fn serve(&mut self, mut inbound: Streaming<DeltaDiscoveryRequest>) -> Result<(), Status> {
        let mut closing = self.publisher.closing.subscribe();
        loop {
            tokio::select! {
                message = inbound.message() => match message {
                    Ok(Some(request)) => self.on_request(request).await?,
                    Ok(None) => return Ok(()),
                    // A broken connection is the usual end of a stream.
                    Err(status) if matches!(status.code(), Code::Cancelled | Code::Unknown) => {
                        return Ok(());
                    }
                    Err(status) => return Err(status),
                },
                // Something was published, or the lifecycle has cut this stream.
                () = self.wake.notified() => {
                    if !self.publisher.is_open(self.id) {
                        return Err(Status::deadline_exceeded("changes were not acknowledged"));
                    }
                }
                () = self.outbox.closed() => return Ok(()),
                () = wait_until_closing(&mut closing) => {
                    return Err(Status::unavailable("the xDS server is shutting down"));
                }
            }
            self.send_next_response().await?;
        }
    }

    async fn on_request(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        // On the service for clusters the type may be left out.
        if !request.type_url.is_empty() && request.type_url != CLUSTER_TYPE {
            return self.on_other_type(request).await;
        }
        if !self.connected {
            let id = request.node.as_ref().map_or("", |node| node.id.as_str());
            let gateway = GatewayId::parse(id).map_err(|error| {
                Status::invalid_argument(format!(
                    "node.id {id:?} is not a valid gateway id: {error}"
                ))
            })?;
            if let Some(at) = self.publisher.name(self.id, &gateway) {
                self.pause_until(at).await?;
            }
            self.connected = true;
            let event = XdsEvent::Connected { stream: self.id, gateway, peer: self.peer };
            self.emit(event).await?;
        }
        let request = request_from_proto(request);
        let outcomes = self
            .publisher
            .on_request(self.id, &request)
            .map_err(|error| Status::resource_exhausted(error.to_string()))?;
        self.report(outcomes).await
    }

    /// Waits for the end of a back-off. Until then the stream counts as not connected.
    async fn pause_until(&self, at: Instant) -> Result<(), Status> {
        let mut closing = self.publisher.closing.subscribe();
        tokio::select! {
            () = sleep_until(at) => Ok(()),
            () = self.outbox.closed() => Err(Status::cancelled("Envoy has left")),
            () = wait_until_closing(&mut closing) => {
                Err(Status::unavailable("the xDS server is shutting down"))
            }
        }
    }

    /// Answers a request for another type than clusters: none of these resources exists. One empty
    /// response per type is enough to let Envoy's start proceed.
    async fn on_other_type(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        let is_new = self.answered_types.len() < OTHER_TYPES_MAX
            && self.answered_types.insert(request.type_url.clone());
        let is_acknowledgement = !request.response_nonce.is_empty();
        if is_acknowledgement || (!is_new && request.resource_names_subscribe.is_empty()) {
            return Ok(());
        }
        let mut removed = request.resource_names_subscribe;
        removed.retain(|name| name != "*");
        self.send(DeltaDiscoveryResponse {
            type_url: request.type_url,
            removed_resources: removed,
            nonce: "none".to_owned(),
            ..DeltaDiscoveryResponse::default()
        })
        .await
    }

    async fn send_next_response(&mut self) -> Result<(), Status> {
        let (response, outcomes) = self.publisher.next_response(self.id);
        self.report(outcomes).await?;
        match response {
            Some(response) => self.send(response_to_proto(response)).await,
            None => Ok(()),
        }
    }

    async fn report(&self, outcomes: Vec<Outcome>) -> Result<(), Status> {
        let stream = self.id;
        for outcome in outcomes {
            let event = match outcome {
                Outcome::Acked(seq) => XdsEvent::Acked { stream, seq },
                Outcome::Nacked { names, seq, reason } => {
                    tracing::error!(
                        stream = stream.0,
                        ?names,
                        error = reason,
                        "Envoy rejected clusters"
                    );
                    let tenants = names.iter().filter_map(|name| tenant_of(name)).collect();
                    XdsEvent::Nacked { stream, tenants, seq, reason }
                }
                Outcome::UnknownNonce => {
                    tracing::debug!(stream = stream.0, "request has an unknown nonce");
                    continue;
                }
            };
            self.emit(event).await?;
        }
        Ok(())
    }

    async fn emit(&self, event: XdsEvent) -> Result<(), Status> {
        let sent = self.publisher.events.send(event).await;
        sent.map_err(|_| Status::unavailable("the orchestrator is shutting down"))
    }

    async fn send(&self, response: DeltaDiscoveryResponse) -> Result<(), Status> {
        let sent = self.outbox.send(Ok(response)).await;
        sent.map_err(|_| Status::cancelled("Envoy has left"))
    }
}

async fn wait_until_closing(closing: &mut watch::Receiver<bool>) {
    // The publisher of this stream keeps the sender, so this can't fail.
    let _ = closing.wait_for(|closing| *closing).await;
}

fn tenant_of(name: &str) -> Option<TenantId> {
    TenantId::parse(name.strip_prefix(CLUSTER_PREFIX)?).ok()
}

fn request_from_proto(request: DeltaDiscoveryRequest) -> Request {
    Request {
        nonce: request.response_nonce,
        error: request.error_detail.map(|status| status.message),
        subscribe: request.resource_names_subscribe,
        unsubscribe: request.resource_names_unsubscribe,
        initial_versions: request.initial_resource_versions.into_iter().collect(),
    }
}

fn response_to_proto(response: Response) -> DeltaDiscoveryResponse {
    let resources = response.resources.into_iter().map(|resource| proto::Resource {
        name: resource.name.to_string(),
        version: resource.version.0,
        resource: Some(Any { type_url: CLUSTER_TYPE.to_owned(), value: resource.body.to_vec() }),
        ..proto::Resource::default()
    });
    DeltaDiscoveryResponse {
        resources: resources.collect(),
        type_url: CLUSTER_TYPE.to_owned(),
        removed_resources: response.removed.iter().map(ToString::to_string).collect(),
        nonce: response.nonce,
        ..DeltaDiscoveryResponse::default()
    }
}
