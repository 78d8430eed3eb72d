//! The gRPC side of [`super`]: the services, and one task per stream.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::service::cluster::v3::cluster_discovery_service_server as cds;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server as ads;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use envoy_types::pb::google::protobuf::Any;
use protocol::headers::CLUSTER_PREFIX;
use protocol::{GatewayId, TenantId};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Code, Status, Streaming};

use super::{Publisher, STREAMS_MAX, StreamId, XdsEvent};
use crate::xds::cluster::CLUSTER_TYPE;
use crate::xds::session::{Outcome, Request, Response};

/// Responses between a stream's task and gRPC: one is in flight at a time, and one for other types.
const OUTBOX: usize = 4;

/// Types other than clusters that one stream may ask for; Envoy has about a dozen.
const OTHER_TYPES_MAX: usize = 32;

/// The first request of an Envoy that holds 100 000 clusters: 60 bytes each, with room.
const REQUEST_MAX_BYTES: usize = 16 << 20;

/// A dead peer is noticed after these two: its leases end by themselves, so this only keeps
/// retirements from waiting for an ack that will not come.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves Envoys until `shutdown`; open streams are then ended, Envoys keep what they have.
pub async fn serve(
    listener: TcpListener,
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
        .tcp_nodelay(true)
        .add_service(ads)
        .add_service(cds)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), shutdown)
        .await
}

#[derive(Debug, Clone)]
struct Service {
    publisher: Publisher,
}

type Outbox = mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>;
type DeltaStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;
/// The older protocol is not spoken: a stream that never is.
type NoStream = Pin<Box<dyn Stream<Item = Result<DiscoveryResponse, Status>> + Send>>;

const DELTA_ONLY: &str = "only delta xDS is spoken here: api_type must be DELTA_GRPC";

impl Service {
    fn accept(
        &self,
        inbound: Streaming<DeltaDiscoveryRequest>,
    ) -> Result<tonic::Response<DeltaStream>, Status> {
        let Some((id, wake)) = self.publisher.open() else {
            return Err(Status::resource_exhausted(format!("more than {STREAMS_MAX} streams")));
        };
        let (outbox, responses) = mpsc::channel(OUTBOX);
        let stream = StreamTask {
            publisher: self.publisher.clone(),
            id,
            wake,
            outbox,
            connected: false,
            other_types: BTreeSet::new(),
        };
        // The task ends with its stream: when Envoy leaves, `inbound` ends and `outbox` closes.
        tokio::spawn(stream.run(inbound));
        Ok(tonic::Response::new(ReceiverStream::new(responses)))
    }
}

#[tonic::async_trait]
impl ads::AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = NoStream;
    type DeltaAggregatedResourcesStream = DeltaStream;

    async fn stream_aggregated_resources(
        &self,
        _: tonic::Request<Streaming<DiscoveryRequest>>,
    ) -> Result<tonic::Response<NoStream>, Status> {
        Err(Status::unimplemented(DELTA_ONLY))
    }

    async fn delta_aggregated_resources(
        &self,
        request: tonic::Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<tonic::Response<DeltaStream>, Status> {
        self.accept(request.into_inner())
    }
}

#[tonic::async_trait]
impl cds::ClusterDiscoveryService for Service {
    type StreamClustersStream = NoStream;
    type DeltaClustersStream = DeltaStream;

    async fn stream_clusters(
        &self,
        _: tonic::Request<Streaming<DiscoveryRequest>>,
    ) -> Result<tonic::Response<NoStream>, Status> {
        Err(Status::unimplemented(DELTA_ONLY))
    }

    async fn delta_clusters(
        &self,
        request: tonic::Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<tonic::Response<DeltaStream>, Status> {
        self.accept(request.into_inner())
    }

    async fn fetch_clusters(
        &self,
        _: tonic::Request<DiscoveryRequest>,
    ) -> Result<tonic::Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented(DELTA_ONLY))
    }
}

/// One stream. Dropping it takes its session away.
struct StreamTask {
    publisher: Publisher,
    id: StreamId,
    wake: Arc<Notify>,
    outbox: Outbox,
    connected: bool,
    other_types: BTreeSet<String>,
}

impl Drop for StreamTask {
    fn drop(&mut self) {
        self.publisher.hub().streams.remove(&self.id);
    }
}

impl StreamTask {
    async fn run(mut self, inbound: Streaming<DeltaDiscoveryRequest>) {
        let status = self.converse(inbound).await.err();
        if let Some(status) = status {
            tracing::warn!(stream = self.id.0, %status, "xDS stream ended");
            // Envoy may be gone already.
            let _ = self.outbox.send(Err(status)).await;
        }
        let (connected, stream) = (self.connected, self.id);
        let events = self.publisher.events.clone();
        // The session is gone before its end is told.
        drop(self);
        if connected {
            let _ = events.send(XdsEvent::Disconnected { stream }).await;
        }
    }

    async fn converse(
        &mut self,
        mut inbound: Streaming<DeltaDiscoveryRequest>,
    ) -> Result<(), Status> {
        let mut closing = self.publisher.closing.subscribe();
        loop {
            tokio::select! {
                message = inbound.message() => match message {
                    Ok(Some(request)) => self.on_request(request).await?,
                    Ok(None) => return Ok(()),
                    // A connection that breaks is the ordinary end of a stream.
                    Err(status) if matches!(status.code(), Code::Cancelled | Code::Unknown) => {
                        return Ok(());
                    }
                    Err(status) => return Err(status),
                },
                () = self.wake.notified() => {
                    if !self.publisher.is_open(self.id) {
                        return Err(Status::deadline_exceeded("changes were not acknowledged"));
                    }
                }
                () = self.outbox.closed() => return Ok(()),
                () = closed(&mut closing) => {
                    return Err(Status::unavailable("the xDS server shuts down"));
                }
            }
            self.flush().await?;
        }
    }

    async fn on_request(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        // On the clusters' own service the type may be left out.
        if !request.type_url.is_empty() && request.type_url != CLUSTER_TYPE {
            return self.on_other_type(request).await;
        }
        if !self.connected {
            let id = request.node.as_ref().map_or("", |node| node.id.as_str());
            let gateway = GatewayId::parse(id).map_err(|e| {
                Status::invalid_argument(format!("node.id {id:?} is not a gateway's id: {e}"))
            })?;
            self.connected = true;
            self.tell(XdsEvent::Connected { stream: self.id, gateway }).await?;
        }
        let outcomes = self.publisher.request(self.id, &read(request));
        let outcomes = outcomes.map_err(|e| Status::resource_exhausted(e.to_string()))?;
        self.report(outcomes).await
    }

    /// Nothing but clusters is served: said once per type, so that Envoy's start does not wait.
    async fn on_other_type(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        let news = self.other_types.len() < OTHER_TYPES_MAX
            && self.other_types.insert(request.type_url.clone());
        let asks = request.response_nonce.is_empty();
        if !asks || (!news && request.resource_names_subscribe.is_empty()) {
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

    /// Sends what is due, one response at a time.
    async fn flush(&mut self) -> Result<(), Status> {
        let (response, outcomes) = self.publisher.response(self.id);
        self.report(outcomes).await?;
        match response {
            Some(response) => self.send(write(response)).await,
            None => Ok(()),
        }
    }

    async fn report(&self, outcomes: Vec<Outcome>) -> Result<(), Status> {
        let stream = self.id;
        for outcome in outcomes {
            let event = match outcome {
                Outcome::Acked(seq) => XdsEvent::Acked { stream, seq },
                Outcome::Nacked { names, seq, reason } => {
                    tracing::error!(stream = stream.0, ?names, reason, "Envoy refuses clusters");
                    let tenants = names.iter().filter_map(|name| tenant_of(name)).collect();
                    XdsEvent::Nacked { stream, tenants, seq, reason }
                }
                Outcome::UnknownNonce => {
                    tracing::debug!(stream = stream.0, "answer to an unknown nonce");
                    continue;
                }
            };
            self.tell(event).await?;
        }
        Ok(())
    }

    async fn tell(&self, event: XdsEvent) -> Result<(), Status> {
        let told = self.publisher.events.send(event).await;
        told.map_err(|_| Status::unavailable("the orchestrator shuts down"))
    }

    async fn send(&self, response: DeltaDiscoveryResponse) -> Result<(), Status> {
        let sent = self.outbox.send(Ok(response)).await;
        sent.map_err(|_| Status::cancelled("Envoy has left"))
    }
}

async fn closed(closing: &mut watch::Receiver<bool>) {
    // The sender lives as long as the stream's publisher.
    let _ = closing.wait_for(|closing| *closing).await;
}

fn tenant_of(name: &str) -> Option<TenantId> {
    TenantId::parse(name.strip_prefix(CLUSTER_PREFIX)?).ok()
}

fn read(request: DeltaDiscoveryRequest) -> Request {
    Request {
        nonce: request.response_nonce,
        error: request.error_detail.map(|status| status.message),
        subscribe: request.resource_names_subscribe,
        unsubscribe: request.resource_names_unsubscribe,
        initial_versions: request.initial_resource_versions.into_iter().collect(),
    }
}

fn write(response: Response) -> DeltaDiscoveryResponse {
    let resources = response.resources.into_iter().map(|r| Resource {
        name: r.name.to_string(),
        version: r.version.0,
        resource: Some(Any { type_url: CLUSTER_TYPE.to_owned(), value: r.body.to_vec() }),
        ..Resource::default()
    });
    DeltaDiscoveryResponse {
        resources: resources.collect(),
        type_url: CLUSTER_TYPE.to_owned(),
        removed_resources: response.removed.iter().map(ToString::to_string).collect(),
        nonce: response.nonce,
        ..DeltaDiscoveryResponse::default()
    }
}
