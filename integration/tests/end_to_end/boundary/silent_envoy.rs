//! A client of xDS that subscribes to all clusters under an Envoy's name and never acknowledges.

use std::convert::Infallible;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::Request;
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// gRPC method of the aggregated service.
const METHOD: &str =
    "http://xds/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Type of the resources: clusters.
const CLUSTER_TYPE: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

/// An open stream. Dropping it ends it.
pub(super) struct SilentEnvoy {
    responses: Incoming,
    _sender: SendRequest<OneMessage>,
    /// Its drop ends the request's body.
    _open: oneshot::Sender<()>,
}

/// A request body with one message, which ends when the sender of `end` is dropped.
struct OneMessage {
    message: Option<Bytes>,
    end: oneshot::Receiver<()>,
}

impl Body for OneMessage {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.message.take() {
            Some(message) => Poll::Ready(Some(Ok(Frame::data(message)))),
            None => Pin::new(&mut self.end).poll(context).map(|_| None),
        }
    }
}

impl SilentEnvoy {
    /// Subscribes to all clusters as the Envoy `node`.
    pub(super) async fn connect(socket: &Path, node: &str) -> Result<Self> {
        let stream = UnixStream::connect(socket).await?;
        let (mut sender, connection) =
            handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let (open, end) = oneshot::channel();
        let request = Request::post(METHOD)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(OneMessage { message: Some(subscription(node)), end })?;
        let responses = sender.send_request(request).await?.into_body();
        Ok(Self { responses, _sender: sender, _open: open })
    }

    /// Waits until the server has ended the stream.
    pub(super) async fn ended(mut self, within: Duration) -> Result<()> {
        let end = async {
            while let Some(frame) = self.responses.frame().await {
                if frame.is_err() {
                    break;
                }
            }
        };
        timeout(within, end).await.context("the stream of a silent Envoy is not cut")
    }
}

/// A `DeltaDiscoveryRequest` in gRPC's framing: node, type, and `*` as subscription.
fn subscription(node: &str) -> Bytes {
    let node = field(1, node.as_bytes());
    let request = [field(1, &node), field(2, CLUSTER_TYPE.as_bytes()), field(3, b"*")].concat();
    let length = u32::try_from(request.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[0][..], &length, &request].concat().into()
}

/// A protobuf field of fewer than 128 bytes.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(value.len()).unwrap_or(u8::MAX);
    [&[number << 3 | 2, length][..], value].concat()
}
