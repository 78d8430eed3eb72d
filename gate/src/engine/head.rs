//! The parts of a request head that the gate retains. The API key is dropped; only its digest is
//! kept.

use protocol::KeyHash;

use crate::http::{grpc, request};
use crate::identity::credentials::{CredentialFault, Credentials};

/// A request head without its credentials.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestHead {
    /// The `:method` pseudo-header.
    pub method: String,
    /// The `:path` pseudo-header with its query, undecoded: the parser refuses bytes outside ASCII.
    pub path: Vec<u8>,
    /// The `content-length`, already validated by the host's codec.
    pub content_length: Option<u64>,
    pub(crate) content_type: Option<String>,
    /// The `content-encoding`, unless it is `identity`.
    pub(crate) encoding: Option<String>,
    /// The precondition that the request has, by the name of its header.
    pub(crate) precondition: Option<&'static str>,
    /// No body follows.
    pub ends: bool,
    /// Set by the host, and returned to the client with the response.
    pub(crate) request_id: Option<String>,
    /// An `OPTIONS` request with `origin` and `access-control-request-method`: a CORS preflight.
    pub is_preflight: bool,
    /// Has two `Host` headers, which Envoy joins with a comma.
    pub(crate) has_two_hosts: bool,
    /// Has `x-sq-test-panic`.
    #[cfg(feature = "test-panic")]
    pub(crate) test_panic: bool,
}

impl RequestHead {
    /// Reads a head and the digest of its key. Bytes that are not UTF-8 in method, type and encoding
    /// become U+FFFD, which no accepted value contains.
    pub fn read(
        headers: &[(String, Vec<u8>)],
        ends: bool,
    ) -> (Self, Result<KeyHash, CredentialFault>) {
        let mut head = Self { ends, ..Self::default() };
        let mut credentials = Credentials::default();
        let mut has_origin = false;
        let mut has_cors_method = false;
        for (name, value) in headers {
            match name.as_str() {
                ":method" => head.method = lossy(value),
                ":authority" => head.has_two_hosts = value.contains(&b','),
                ":path" => head.path.clone_from(value),
                "content-length" => {
                    head.content_length =
                        std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
                }
                "content-type" => head.content_type = Some(lossy(value)),
                "x-request-id" => head.request_id = String::from_utf8(value.clone()).ok(),
                "content-encoding" if !is_identity(value) => head.encoding = Some(lossy(value)),
                "if-match" => head.precondition = Some("If-Match"),
                "if-none-match" => head.precondition = Some("If-None-Match"),
                "origin" => has_origin = true,
                "access-control-request-method" => has_cors_method = true,
                name => {
                    credentials.see(name, value);
                    #[cfg(feature = "test-panic")]
                    {
                        head.test_panic |= name == "x-sq-test-panic";
                    }
                }
            }
        }
        head.is_preflight = has_origin && has_cors_method && head.method == "OPTIONS";
        (head, credentials.digest())
    }

    /// Returns whether Envoy takes the request for gRPC.
    pub(crate) fn is_grpc(&self) -> bool {
        self.content_type.as_deref().is_some_and(grpc::is_grpc)
    }

    /// The head in the form that the request parser takes.
    pub fn as_request(&self) -> request::Head<'_> {
        request::Head {
            method: &self.method,
            path: &self.path,
            content_length: self.content_length,
            has_body: !self.ends,
            content_type: self.content_type.as_deref(),
        }
    }
}

fn lossy(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

fn is_identity(coding: &[u8]) -> bool {
    let coding = coding.trim_ascii();
    coding.is_empty() || coding.eq_ignore_ascii_case(b"identity")
}
