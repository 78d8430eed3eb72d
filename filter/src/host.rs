//! Every hostcall of this filter, counted. Each costs 1 to 1.3 µs, so the warm path makes few.
//!
//! Only `proxy_wasm::hostcalls` is used: the methods of its traits panic where these return errors.

use std::cell::Cell;
use std::time::{Duration, UNIX_EPOCH};

use gate::effect::{Call, Headers, Reply};
use gate::engine::{Origin, ResponseHead};
use gate::http::grpc;
use gate::shared::{Changed, Shared};
use protocol::headers::RESERVED_PREFIX;
use proxy_wasm::hostcalls;
use proxy_wasm::types::{BufferType, MapType, MetricType, Status};

thread_local! {
    static HOSTCALLS: Cell<u64> = const { Cell::new(0) };
    /// The wall clock as read last.
    static CLOCK: Cell<u64> = const { Cell::new(0) };
}

/// With this version `set_shared_data` writes only if there is no entry yet; with version 0 it would
/// write unconditionally.
const ABSENT: u32 = u32::MAX;

fn counted() {
    HOSTCALLS.with(|calls| calls.set(calls.get() + 1));
}

/// Number of hostcalls since this was called last.
pub(crate) fn take_hostcalls() -> u64 {
    HOSTCALLS.with(Cell::take)
}

/// The wall clock, in nanoseconds since 1970; 0 if the host has none.
pub(crate) fn now_ns() -> u64 {
    counted();
    let now = hostcalls::get_current_time().ok();
    let since = now.and_then(|now| now.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    let now = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
    CLOCK.set(now);
    now
}

/// The wall clock as [`now_ns`] has read it last, without a hostcall.
pub(crate) fn last_now_ns() -> u64 {
    CLOCK.get()
}

pub(crate) fn set_tick_period(period: Duration) {
    counted();
    let _ = hostcalls::set_tick_period(period);
}

/// The plugin's configuration, unparsed.
pub(crate) fn plugin_configuration(size: usize) -> Vec<u8> {
    counted();
    hostcalls::get_buffer(BufferType::PluginConfiguration, 0, size)
        .ok()
        .flatten()
        .unwrap_or_default()
}

/// The `node.id` of this Envoy.
pub(crate) fn node_id() -> String {
    counted();
    let id = hostcalls::get_property(vec!["xds", "node", "id"]).ok().flatten();
    String::from_utf8_lossy(&id.unwrap_or_default()).into_owned()
}

/// Address and port of the client, as seen by Envoy's connection manager.
pub(crate) fn client_address() -> String {
    counted();
    let address = hostcalls::get_property(vec!["source", "address"]).ok().flatten();
    String::from_utf8(address.unwrap_or_default()).unwrap_or_default()
}

pub(crate) fn request_headers() -> Vec<(String, Vec<u8>)> {
    counted();
    hostcalls::get_map_bytes(MapType::HttpRequestHeaders).unwrap_or_default()
}

/// Replaces all request headers.
pub(crate) fn set_request_headers(headers: &Headers) -> Result<(), Status> {
    counted();
    hostcalls::set_map(MapType::HttpRequestHeaders, borrowed(headers))
}

/// Removes the headers that the client has sent under names reserved for the gateway.
pub(crate) fn remove_reserved(headers: &[(String, Vec<u8>)]) {
    for (name, _) in headers.iter().filter(|(name, _)| name.starts_with(RESERVED_PREFIX)) {
        counted();
        let _ = hostcalls::set_map_value(MapType::HttpRequestHeaders, name, None);
    }
}

/// Sets these response headers and leaves the others.
pub(crate) fn set_response_headers(headers: &Headers) {
    for (name, value) in headers {
        counted();
        let _ = hostcalls::set_map_value(MapType::HttpResponseHeaders, name, Some(value));
    }
}

pub(crate) fn remove_response_header(name: &str) {
    counted();
    let _ = hostcalls::set_map_value(MapType::HttpResponseHeaders, name, None);
}

/// Returns whether Envoy takes a request for gRPC.
pub(crate) fn is_grpc(headers: &[(String, Vec<u8>)]) -> bool {
    let content_type = headers.iter().find(|(name, _)| name == "content-type");
    content_type.is_some_and(|(_, value)| std::str::from_utf8(value).is_ok_and(grpc::is_grpc))
}

/// Gives a response that Envoy has put into gRPC's form its HTTP status again.
pub(crate) fn restore_status() {
    counted();
    let message = hostcalls::get_map_value_bytes(MapType::HttpResponseHeaders, "grpc-message");
    if let Some(status) = message.ok().flatten().and_then(|message| grpc::status_of(&message)) {
        set_response_headers(&vec![(":status", status.to_string().into())]);
    }
}

/// The head of the response whose callback is running.
pub(crate) struct CurrentResponse;

impl ResponseHead for CurrentResponse {
    fn status(&self) -> u16 {
        counted();
        let value = hostcalls::get_map_value_bytes(MapType::HttpResponseHeaders, ":status");
        let value = value.ok().flatten().unwrap_or_default();
        std::str::from_utf8(&value).ok().and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    fn content_length(&self) -> Option<u64> {
        counted();
        let value = hostcalls::get_map_value_bytes(MapType::HttpResponseHeaders, "content-length");
        std::str::from_utf8(&value.ok()??).ok()?.parse().ok()
    }

    fn origin(&self) -> Origin {
        counted();
        let details = hostcalls::get_property(vec!["response", "code_details"]);
        Origin::of(&details.ok().flatten().unwrap_or_default())
    }
}

pub(crate) fn request_body(size: usize) -> Vec<u8> {
    body(BufferType::HttpRequestBody, size)
}

pub(crate) fn response_body(size: usize) -> Vec<u8> {
    body(BufferType::HttpResponseBody, size)
}

fn body(which: BufferType, size: usize) -> Vec<u8> {
    counted();
    hostcalls::get_buffer(which, 0, size).ok().flatten().unwrap_or_default()
}

/// Replaces the first `size` bytes of the current piece.
pub(crate) fn set_response_body(size: usize, body: &[u8]) {
    counted();
    let _ = hostcalls::set_buffer(BufferType::HttpResponseBody, 0, size, body);
}

/// Responds to the stream of the current context, which must then be paused.
pub(crate) fn send_reply(reply: &Reply) {
    counted();
    let body = (!reply.body.is_empty()).then_some(reply.body.as_bytes());
    let _ = hostcalls::send_http_response(reply.status.into(), borrowed(&reply.headers), body);
}

/// Makes `context` the one that the following hostcalls are about; `false` if it does not exist.
pub(crate) fn switch_to(context: u32) -> bool {
    counted();
    hostcalls::set_effective_context(context).is_ok()
}

pub(crate) fn resume_request() {
    counted();
    let _ = hostcalls::resume_http_request();
}

/// Sends a call in the current context and returns its token.
pub(crate) fn dispatch(call: &Call) -> Result<u32, Status> {
    counted();
    let mut headers = vec![
        (":method", call.method),
        (":path", call.path.as_str()),
        (":authority", call.cluster.as_str()),
    ];
    if call.body.is_some() {
        headers.push(("content-type", "application/json"));
    }
    let body = call.body.as_ref().map(String::as_bytes);
    let timeout = Duration::from_millis(call.timeout_ms.into());
    hostcalls::dispatch_http_call(&call.cluster, headers, body, Vec::new(), timeout)
}

/// Status and body of the response whose callback is running; `None` if the call has failed.
pub(crate) fn call_response(headers: usize, size: usize) -> Option<(u16, Vec<u8>)> {
    if headers == 0 {
        return None;
    }
    counted();
    let status = hostcalls::get_map_value_bytes(MapType::HttpCallResponseHeaders, ":status");
    let status = String::from_utf8(status.ok()??).ok()?.parse().ok()?;
    Some((status, body(BufferType::HttpCallResponseBody, size)))
}

pub(crate) fn define_counter(name: &str) -> Option<u32> {
    counted();
    hostcalls::define_metric(MetricType::Counter, name).ok()
}

pub(crate) fn add(metric: u32, by: u64) {
    counted();
    let _ = hostcalls::increment_metric(metric, i64::try_from(by).unwrap_or(i64::MAX));
}

fn borrowed(headers: &Headers) -> Vec<(&str, &str)> {
    headers.iter().map(|(name, value)| (*name, value.as_ref())).collect()
}

/// The map that all VMs of this Envoy share.
pub(crate) struct SharedData;

impl Shared for SharedData {
    fn get(&self, key: &str) -> Option<(Vec<u8>, u32)> {
        counted();
        match hostcalls::get_shared_data(key) {
            Ok((Some(value), Some(version))) => Some((value, version)),
            _ => None,
        }
    }

    fn now_ns(&self) -> u64 {
        now_ns()
    }

    fn set(&mut self, key: &str, value: &[u8], version: Option<u32>) -> Result<(), Changed> {
        counted();
        let version = Some(version.unwrap_or(ABSENT));
        hostcalls::set_shared_data(key, Some(value), version).map_err(|_| Changed)
    }
}
