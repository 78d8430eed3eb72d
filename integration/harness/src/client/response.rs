//! A complete response, and the expectations that a test has of it.
//!
//! Each `expect_*` returns an error that names the request, the status and the body, so a test
//! needs no further message:
//!
//! ```text
//! GET /api/v2/toc?p=index: expected status 200, got 503: {"type":"urn:sq:problem:…
//! ```

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use hyper::{HeaderMap, StatusCode, Version};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Prefix of every problem type of the gateway.
const PROBLEM_TYPE: &str = "urn:sq:problem:";

/// A complete response.
#[derive(Debug, Clone)]
pub struct Response {
    /// Method and path of the request, for error messages.
    pub request: String,
    /// HTTP status code.
    pub status: u16,
    /// HTTP version of the response.
    pub version: Version,
    /// All header fields.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

/// A problem document (RFC 9457) of the gateway.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Problem {
    /// The full problem type, such as `urn:sq:problem:rate-limited`.
    pub r#type: String,
    /// Short text, the same for each occurrence of the type.
    pub title: String,
    /// HTTP status code, repeated in the body.
    pub status: u16,
    /// Text about this occurrence.
    pub detail: String,
    /// Name of the invalid parameter.
    pub parameter: Option<String>,
    /// Time until a retry can succeed, in seconds, as in `Retry-After`.
    pub retry_after_s: Option<u64>,
    /// Amount in use, in the unit of the limit.
    pub used: Option<u64>,
    /// Limit that the request would exceed.
    pub cap: Option<u64>,
}

impl Problem {
    /// The type without its prefix, such as `rate-limited`.
    pub fn kind(&self) -> &str {
        self.r#type.strip_prefix(PROBLEM_TYPE).unwrap_or(&self.r#type)
    }
}

impl Response {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header's value, empty if it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// True for status 200.
    pub fn ok(&self) -> bool {
        self.status == StatusCode::OK.as_u16()
    }

    /// Fails unless the status is 200.
    pub fn expect_ok(self) -> Result<Self> {
        self.expect_status(StatusCode::OK.as_u16())
    }

    /// Fails unless the response has this status.
    pub fn expect_status(self, status: u16) -> Result<Self> {
        ensure!(
            self.status == status,
            "{}: expected status {status}, got {}: {}",
            self.request,
            self.status,
            self.text()
        );
        Ok(self)
    }

    /// Fails unless the response has this status and exactly this body.
    pub fn expect_text(self, status: u16, text: &str) -> Result<Self> {
        let response = self.expect_status(status)?;
        ensure!(
            response.body == text.as_bytes(),
            "{}: expected the body {text:?}, got {:?}",
            response.request,
            response.text()
        );
        Ok(response)
    }

    /// Fails unless the response is a problem document of this status and kind (`rate-limited`)
    /// whose header fields agree with its body.
    pub fn expect_problem(&self, status: u16, kind: &str) -> Result<Problem> {
        let problem = self.problem()?;
        ensure!(
            self.status == status && problem.kind() == kind,
            "{}: expected status {status} and problem {kind}, got {}: {}",
            self.request,
            self.status,
            self.text()
        );
        Ok(problem)
    }

    /// Parses the problem document. Fails unless `Content-Type`, status and `Retry-After` agree
    /// with it.
    pub fn problem(&self) -> Result<Problem> {
        let content_type = self.header("content-type");
        ensure!(
            content_type == "application/problem+json",
            "{}: expected a problem document, got {} of type {content_type:?}: {}",
            self.request,
            self.status,
            self.text()
        );
        let problem: Problem = self.json()?;
        ensure!(problem.status == self.status, "{}: {self:?}", self.request);
        let retry_after_s = problem.retry_after_s.map(|s| s.to_string()).unwrap_or_default();
        ensure!(self.header("retry-after") == retry_after_s, "{}: {self:?}", self.request);
        Ok(problem)
    }

    /// True for a problem document of this kind, such as `rate-limited`.
    pub fn is_problem(&self, kind: &str) -> bool {
        self.problem().is_ok_and(|problem| problem.kind() == kind)
    }

    /// Parses the body as JSON.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("{}: {} {}", self.request, self.status, self.text()))
    }

    /// The value of `Retry-After` in seconds.
    pub fn retry_after_s(&self) -> Result<u64> {
        let value = self.header("retry-after");
        value.parse().with_context(|| {
            format!("{}: {} with Retry-After {value:?}", self.request, self.status)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(status: u16, content_type: &'static str, body: &str) -> Response {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", hyper::header::HeaderValue::from_static(content_type));
        headers.insert("retry-after", hyper::header::HeaderValue::from_static("7"));
        Response {
            request: "GET /a".to_owned(),
            status,
            version: Version::HTTP_11,
            headers,
            body: body.to_owned().into(),
        }
    }

    const LIMITED: &str = r#"{"type":"urn:sq:problem:rate-limited","title":"t","status":429,
                             "detail":"d","retry_after_s":7}"#;

    #[test]
    fn an_unexpected_status_names_request_and_body() {
        let error = response(503, "text/plain", "busy").expect_ok().unwrap_err().to_string();
        assert_eq!(error, "GET /a: expected status 200, got 503: busy");
    }

    #[test]
    fn a_problem_needs_its_content_type() {
        assert!(response(429, "application/json", LIMITED).problem().is_err());
        let limited = response(429, "application/problem+json", LIMITED);
        assert_eq!(limited.expect_problem(429, "rate-limited").unwrap().retry_after_s, Some(7));
        assert!(limited.expect_problem(429, "quota-exceeded").is_err());
    }

    #[test]
    fn a_problem_must_agree_with_its_headers() {
        let other = LIMITED.replace(":7", ":8");
        assert!(response(429, "application/problem+json", &other).problem().is_err());
        assert!(response(503, "application/problem+json", LIMITED).problem().is_err());
    }
}
