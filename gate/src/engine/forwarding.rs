//! The request head that SQ gets. Nothing that the client wrote is copied: each header is named here.

use std::borrow::Cow;

use protocol::{WakeKind, headers};

use super::Gate;
use super::stream::{Body, Stream, TenantRequest, Wake};
use crate::effect::Headers;

/// The most headers of a forwarded head, so that the list never grows.
const FORWARDED_HEADERS: usize = 14;

impl Gate {
    /// Builds the head of a forwarded request. The `x-sq-response-…` headers are instructions for
    /// Envoy, which removes them and adds their values to the response.
    pub(super) fn forwarded_head(
        &self,
        stream: &Stream,
        request: &TenantRequest,
        body: &Body,
        cluster: String,
    ) -> Headers {
        let mut out: Headers = Vec::with_capacity(FORWARDED_HEADERS);
        out.push((":method", Cow::Borrowed(request.request.method())));
        out.push((":path", Cow::Owned(request.request.path())));
        out.push((":authority", Cow::Borrowed("sq")));
        // Envoy finds no route without it; the route removes it again.
        out.push(("x-forwarded-proto", Cow::Borrowed("https")));
        if let (Body::Incoming(_), Some(length)) = (body, stream.head.content_length) {
            out.push(("content-length", Cow::Owned(length.to_string())));
        }
        if let Some(request_id) = &stream.head.request_id {
            out.push(("x-request-id", Cow::Owned(request_id.clone())));
        }
        out.push((headers::CLUSTER, Cow::Owned(cluster)));
        let content_type = request.request.content_type();
        if content_type != headers::response::DEFAULT_TYPE {
            out.push((headers::response::TYPE, Cow::Borrowed(content_type)));
        }
        out.push((headers::response::TIMING, server_timing(stream.auth_hit, stream.wake)));
        add_response_headers(&mut out, stream, &self.config.cors_origin);
        out
    }
}

/// Tells Envoy what else to add to the response.
fn add_response_headers(out: &mut Headers, stream: &Stream, cors_origin: &str) {
    if !cors_origin.is_empty() && cors_origin != headers::response::DEFAULT_CORS {
        out.push((headers::response::CORS, Cow::Owned(cors_origin.to_owned())));
    }
    if cfg!(feature = "unlimited-with-headers") {
        out.push((headers::response::RATE, Cow::Borrowed("\"burst\";r=999999;t=1")));
        out.push((headers::response::POLICY, Cow::Borrowed("\"burst\";q=1000000;w=1")));
    }
    if let Some(rate) = &stream.marks.rate {
        out.push((headers::response::RATE, Cow::Owned(rate.header())));
        out.push((headers::response::POLICY, Cow::Owned(rate.policy.to_string())));
    }
    if let Some(warning) = &stream.marks.warning {
        out.push((headers::response::WARNING, Cow::Owned(warning.clone())));
    }
    if let Some(kind) = stream.marks.shadowed {
        out.push((headers::response::SHADOW, Cow::Borrowed(kind.row().name)));
    }
}

/// The `Server-Timing` header: whether the verdict was cached, and the wake with its duration.
pub(super) fn server_timing(auth_hit: bool, wake: Option<Wake>) -> Cow<'static, str> {
    let wake = wake.filter(|wake| wake.kind != WakeKind::None);
    match (wake, auth_hit) {
        (None, true) => Cow::Borrowed("auth;desc=hit, wake;desc=none"),
        (None, false) => Cow::Borrowed("auth;desc=miss, wake;desc=none"),
        (Some(Wake { kind, ms }), _) => {
            let auth = if auth_hit { "hit" } else { "miss" };
            let kind = kind.as_str();
            Cow::Owned(format!("auth;desc={auth}, wake;desc={kind};dur={ms}"))
        }
    }
}
