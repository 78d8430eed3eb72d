//! Parses a client's request and rebuilds it for SQ.
//!
//! ```text
//! head ──parse──► Request ──method(), path()──► SQ
//!        │           └─body()─► BodyCheck ──on_chunk, on_end──► SQ
//!        └──► Refusal: parameter, fault, a request that succeeds
//! ```
//!
//! No text of the client is copied: each parameter is decoded once, checked, and encoded again so that
//! every decoder reads the same bytes. Ambiguous requests are refused: a repeated or unknown
//! parameter, a missing coordinate, a text in both query and body. The table of endpoints is in
//! [`super::endpoint`]; the reason for each rule, with SQ's own behaviour, in `docs/sq.md`.

#[cfg(test)]
mod tests;

use protocol::{Limits, SqVersion};

use super::body::QUERY_ITEMS_MAX;
use super::endpoint::{BodyRule, Rule};
use super::params::Params;
use super::response::{self, ResponseRule};
use crate::Refusal;

pub use super::body::BodyCheck;
pub use super::coordinate::Coordinate;
pub use super::endpoint::{Access, Endpoint, Verb};

/// Common prefix of all paths.
pub(crate) const BASE: &str = "/api/v2/";
/// Longest `:path`: SQ stops reading at 64 KiB of headers, Envoy by default at 60.
pub(crate) const PATH_MAX_BYTES: usize = 32 * 1024;

/// The algorithm of `where`. SQ's default computes coordinates that do not exist.
const WHERE_ALGORITHM: &str = "checksum";

/// The head of a request as received.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// Value of `:method`.
    pub method: &'a str,
    /// Value of `:path` with its query, not decoded. HTTP/2 allows any bytes.
    pub path: &'a [u8],
    /// Value of `content-length`, if present.
    pub content_length: Option<u64>,
    /// A body may follow (`!end_of_stream`).
    pub has_body: bool,
    /// Value of `content-type`, if present.
    pub content_type: Option<&'a str>,
}

/// A valid request.
#[derive(Debug, Clone)]
pub struct Request {
    /// The requested endpoint.
    pub endpoint: Endpoint,
    /// Effect on storage.
    pub access: Access,
    /// Name of the phext; `None` only if the gateway itself responds.
    pub phext: Option<String>,
    params: Params,
    upstream: Upstream,
    body: Option<BodyCheck>,
}

/// The request that SQ receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Upstream {
    method: &'static str,
    /// May differ from the client's: `json-export` becomes `get`, an emptying `update` becomes `delete`.
    endpoint: Endpoint,
}

const GET: &str = "GET";
const POST: &str = "POST";

/// Parses a request, or refuses it with the reason.
pub fn parse(head: &Head<'_>, limits: &Limits, sq: SqVersion) -> Result<Request, Refusal> {
    let (path, query) = split(head.path)?;
    let endpoint = endpoint_of(path)?;
    let rule = rule_of(endpoint, head.method)?;
    if !endpoint.exists_in(sq) {
        return Err(Refusal::no_such_endpoint_in(sq, endpoint.name()));
    }
    let mut params = Params::parse(endpoint, rule, query)?;
    let (upstream, body) = match rule.body {
        BodyRule::Empty => without_body(head, endpoint, rule, &params)?,
        BodyRule::Text => with_text(head, endpoint, rule, &params, limits)?,
        BodyRule::Lines => {
            expect_body(head, rule, limits)?;
            let check =
                BodyCheck::lines(limits.body_max_bytes(), limits.phext_max_bytes(), rule.example);
            (Upstream { method: POST, endpoint }, Some(check))
        }
        BodyRule::Set => with_set(head, endpoint, rule, &params, limits)?,
    };
    let phext = params.p.take();
    Ok(Request { endpoint, access: upstream.endpoint.access(), phext, params, upstream, body })
}

/// Splits path and query. Bytes that no client sends unencoded are refused, because later readers may
/// disagree on them.
fn split(path: &[u8]) -> Result<(&str, &str), Refusal> {
    let example = Endpoint::Select.rules()[0].example;
    if path.len() > PATH_MAX_BYTES {
        let fault = "the path with its query is longer than 32 KiB; send a long text as a body";
        return Err(Refusal::bad_request(fault).example(example));
    }
    // HTTP/2 allows other bytes, which readers interpret in different ways.
    let plain = |byte: &u8| byte.is_ascii_graphic() && *byte != b'#';
    let Some(path) =
        std::str::from_utf8(path).ok().filter(|path| path.as_bytes().iter().all(plain))
    else {
        let fault = "the path contains a space, a control character, `#` or a character outside \
                     ASCII; encode it (`%20`, `%23`, `%C3%A9`)";
        return Err(Refusal::bad_request(fault).example(example));
    };
    Ok(path.split_once('?').unwrap_or((path, "")))
}

fn endpoint_of(path: &str) -> Result<Endpoint, Refusal> {
    path.strip_prefix(BASE).and_then(Endpoint::of).ok_or_else(|| {
        let known: Vec<&str> = Endpoint::ALL.iter().map(|endpoint| endpoint.name()).collect();
        Refusal::unknown_endpoint(BASE, &known, Endpoint::Toc.rules()[0].example)
    })
}

fn rule_of(endpoint: Endpoint, method: &str) -> Result<&'static Rule, Refusal> {
    let verb = match method {
        "GET" => Some(Verb::Get),
        "HEAD" if endpoint.access() == Access::Read => Some(Verb::Get),
        "POST" => Some(Verb::Post),
        "DELETE" => Some(Verb::Delete),
        _ => None,
    };
    verb.and_then(|verb| endpoint.rule(verb)).ok_or_else(|| {
        Refusal::method_not_allowed(endpoint.name(), method, endpoint.allow())
            .example(endpoint.rules().last().unwrap_or(&endpoint.rules()[0]).example)
    })
}

type Plan = (Upstream, Option<BodyCheck>);

/// Plans GET, HEAD and DELETE. A body of undeclared length may still be empty.
fn without_body(
    head: &Head<'_>,
    endpoint: Endpoint,
    rule: &Rule,
    params: &Params,
) -> Result<Plan, Refusal> {
    let upstream = match (endpoint, params.s.as_deref()) {
        (Endpoint::Insert | Endpoint::Update, Some(text)) => for_text(endpoint, rule, text)?,
        (Endpoint::JsonExport, _) => Endpoint::Get,
        _ => endpoint,
    };
    Ok((Upstream { method: GET, endpoint: upstream }, no_body(head, rule)?))
}

fn no_body(head: &Head<'_>, rule: &Rule) -> Result<Option<BodyCheck>, Refusal> {
    match (head.has_body, head.content_length) {
        (_, Some(0)) | (false, None) => Ok(None),
        (true, None) => Ok(Some(BodyCheck::empty(rule.example))),
        (_, Some(_)) => Err(Refusal::bad_body("this request takes none").example(rule.example)),
    }
}

/// Returns the endpoint for a text in the query. SQ stores an empty text as a scroll, and all later
/// scrolls move when 0.5.0 writes the file (on 0.6.0, in the response to `delta`). An emptying update
/// is therefore forwarded as a delete, and an empty insert is refused.
fn for_text(endpoint: Endpoint, rule: &Rule, text: &str) -> Result<Endpoint, Refusal> {
    match (endpoint, text.is_empty()) {
        (_, false) => Ok(endpoint),
        (Endpoint::Update, true) => Ok(Endpoint::Delete),
        (_, true) => Err(Refusal::bad_parameter("s", "it is empty").example(rule.example)),
    }
}

/// Plans POST `insert`, `update` and `where`: the text is either the body or `s`.
fn with_text(
    head: &Head<'_>,
    endpoint: Endpoint,
    rule: &Rule,
    params: &Params,
    limits: &Limits,
) -> Result<Plan, Refusal> {
    if let Some(text) = &params.s {
        if head.content_length.is_some_and(|length| length > 0) {
            let fault = "the text is in `s` and in the body; send it once";
            return Err(Refusal::bad_parameter("s", fault).example(rule.example));
        }
        let upstream = Upstream { method: GET, endpoint: for_text(endpoint, rule, text)? };
        return Ok((upstream, no_body(head, rule)?));
    }
    let is_empty = head.content_length == Some(0);
    if is_empty && endpoint == Endpoint::Update {
        return Ok((Upstream { method: GET, endpoint: Endpoint::Delete }, None));
    }
    expect_body(head, rule, limits)?;
    let is_form = head.content_type.is_some_and(is_form);
    let check = BodyCheck::text(limits.body_max_bytes(), is_form, rule.example);
    Ok((Upstream { method: POST, endpoint }, Some(check)))
}

/// Plans POST `query`: the set is either the body or `set`; a range needs neither.
fn with_set(
    head: &Head<'_>,
    endpoint: Endpoint,
    rule: &Rule,
    params: &Params,
    limits: &Limits,
) -> Result<Plan, Refusal> {
    let may_have_body = head.content_length.map_or(head.has_body, |length| length > 0);
    if params.set.is_some() && head.content_length.is_some_and(|length| length > 0) {
        let fault = "the coordinates are in `set` and in the body; send them once";
        return Err(Refusal::bad_parameter("set", fault).example(rule.example));
    }
    if params.set.is_some() || (params.from.is_some() && !may_have_body) {
        return Ok((Upstream { method: GET, endpoint }, no_body(head, rule)?));
    }
    expect_body(head, rule, limits)?;
    let check = BodyCheck::set(limits.body_max_bytes(), params.from.is_some(), rule.example);
    Ok((Upstream { method: POST, endpoint }, Some(check)))
}

/// Checks the head of a request that must have a body.
fn expect_body(head: &Head<'_>, rule: &Rule, limits: &Limits) -> Result<(), Refusal> {
    let refuse = |fault: &str| Err(Refusal::bad_body(fault).example(rule.example));
    if head.content_length == Some(0) || !head.has_body {
        return refuse("it is missing");
    }
    if let Some(length) = head.content_length.filter(|length| *length > limits.body_max_bytes()) {
        let refusal = Refusal::body_too_large(length, limits.body_max_bytes());
        return Err(refusal.example(rule.example));
    }
    let content_type = head.content_type.unwrap_or("").to_ascii_lowercase();
    if content_type.starts_with("multipart/") {
        return refuse(
            "it is stored as it is, and a multipart form is not a text; send the text itself (with \
             `curl --data-binary`)",
        );
    }
    let charset = content_type
        .split_once("charset=")
        .map(|(_, charset)| charset.split(';').next().unwrap_or("").trim_matches([' ', '"', '\'']));
    match charset {
        None | Some("utf-8" | "utf8" | "us-ascii" | "ascii") => Ok(()),
        Some(_) => refuse(
            "it must be UTF-8; convert it first, such as with `iconv -f latin1 -t utf-8`, and send \
             `charset=utf-8` or no charset",
        ),
    }
}

/// Returns whether the content type is that of a form, which curl and others send by default.
fn is_form(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or("").trim();
    essence.eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

/// The value of `Allow` for a path: the methods of its endpoint. `None` if there is no endpoint.
pub(crate) fn allowed_methods(path: &[u8]) -> Option<&'static str> {
    let (path, _) = split(path).ok()?;
    endpoint_of(path).ok().map(Endpoint::allow)
}

impl Request {
    /// Returns whether the gateway itself responds, without waking the tenant: `version` and `usage`.
    pub fn is_answered_here(&self) -> bool {
        matches!(self.endpoint, Endpoint::Version | Endpoint::Usage)
    }

    /// Method of the request to SQ.
    pub fn method(&self) -> &'static str {
        self.upstream.method
    }

    /// Path of the request to SQ with its query, which SQ decodes to exactly the parsed values. Not for
    /// requests where [`Request::is_answered_here`].
    pub fn path(&self) -> String {
        let mut path =
            String::with_capacity(96 + self.params.s.as_ref().map_or(0, |s| s.len() * 3));
        path.push_str(BASE);
        path.push_str(self.upstream.endpoint.name());
        let keeps_text = self.upstream.endpoint.access() == Access::Write;
        let algorithm = (self.endpoint == Endpoint::Where).then_some(WHERE_ALGORITHM);
        let phext = self.phext.as_deref();
        self.params.write_to(&mut path, phext, keeps_text, algorithm, self.query_limit());
        path
    }

    /// Upper bound on the growth of the phext's file by the head alone: the text in `s` and the
    /// delimiters up to the coordinate. A body adds to it.
    pub fn growth_bytes(&self) -> u64 {
        if self.access != Access::Write {
            return 0;
        }
        let text = self.params.s.as_ref().map_or(0, |text| text.len() as u64);
        text + self.params.c.map_or(0, |coordinate| coordinate.delimiters_max())
    }

    /// Coordinate of the scroll, if the endpoint takes one.
    pub(crate) fn scroll(&self) -> Option<Coordinate> {
        self.params.c
    }

    /// Check that the body must pass; `None` if no body follows.
    pub fn body(&self) -> Option<BodyCheck> {
        self.body.clone()
    }

    /// The `content-type` of the response.
    pub(crate) fn content_type(&self) -> &'static str {
        response::content_type(self.endpoint)
    }

    /// Treatment of SQ's response.
    pub fn response_rule(&self) -> ResponseRule {
        let emptied = self.endpoint == Endpoint::Update && self.access == Access::Delete;
        ResponseRule::new(self.endpoint, self.phext.as_deref().unwrap_or(""), emptied)
    }

    /// Value of `limit` for SQ. A range without one could exceed SQ's memory.
    fn query_limit(&self) -> Option<u64> {
        let by_default = self.endpoint == Endpoint::Query && self.params.from.is_some();
        self.params.limit.or_else(|| by_default.then_some(QUERY_ITEMS_MAX))
    }
}
