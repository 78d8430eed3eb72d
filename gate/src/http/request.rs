//! A client's request, parsed and rebuilt: what SQ is sent is written anew from what was understood.
//!
//! ```text
//! head ──parse──► Request ──method(), path()──► SQ
//!        │           └─body()─► BodyCheck ──on_chunk, on_end──► SQ
//!        └──► Refusal: which parameter, what was wrong, a request that works
//! ```
//!
//! Nothing that a client wrote is copied: each parameter is decoded once, checked, and encoded again
//! so that every decoder reads the same bytes. What could be understood in two ways is refused: a
//! repeated or unknown parameter, a coordinate left out, a text in both query and body. The table of
//! endpoints is in [`super::endpoint`]; why each rule is there, with SQ's own behaviour, in `docs/sq.md`.

#[cfg(test)]
mod tests;

use protocol::{Limits, SqVersion};

use super::body::{QUERY_ITEMS_MAX, too_large};
use super::endpoint::{BodyRule, Rule};
use super::params::Params;
use super::response::AnswerRule;
use crate::{Refusal, RefusalKind};

pub use super::body::BodyCheck;
pub use super::coordinate::Coordinate;
pub use super::endpoint::{Class, Endpoint, Verb};

/// What every path begins with.
pub(crate) const BASE: &str = "/api/v2/";
/// The longest `:path`: SQ stops reading at 64 KiB of headers, Envoy by default at 60.
pub(crate) const PATH_MAX_BYTES: usize = 32 * 1024;
/// The longest text in a query: three times as long when encoded. Longer ones go into a body.
pub(crate) const QUERY_TEXT_MAX_BYTES: usize = 8 * 1024;

/// The head of a request as it came.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// `:method`.
    pub method: &'a str,
    /// `:path`, query included, not decoded: any bytes over HTTP/2.
    pub path: &'a [u8],
    /// `content-length`, where there is one.
    pub content_length: Option<u64>,
    /// Whether anything may follow the headers (`!end_of_stream`).
    pub has_body: bool,
    /// `content-type`.
    pub content_type: Option<&'a str>,
}

/// A request that was understood.
#[derive(Debug, Clone)]
pub struct Request {
    /// What is asked for.
    pub endpoint: Endpoint,
    /// What it does to storage.
    pub class: Class,
    /// The phext; `None` only for what the gateway answers itself.
    pub phext: Option<String>,
    params: Params,
    upstream: Upstream,
    body: Option<BodyCheck>,
}

/// How SQ is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Upstream {
    method: &'static str,
    /// Not always the client's: `json-export` becomes `get`, an emptying `update` becomes `delete`.
    endpoint: Endpoint,
}

const GET: &str = "GET";
const POST: &str = "POST";

/// Understands a request or says what is wrong with it.
pub fn parse(head: &Head<'_>, limits: &Limits, sq: SqVersion) -> Result<Request, Refusal> {
    let (path, query) = split(head.path)?;
    let endpoint = endpoint_of(path)?;
    let rule = rule_of(endpoint, head.method)?;
    if !endpoint.exists_in(sq) {
        let detail = format!("SQ {sq} has no {}; SQ 0.6.0 and later have", endpoint.name());
        return Err(Refusal::new(RefusalKind::NotImplemented, detail));
    }
    let mut params = Params::read(endpoint, rule, query)?;
    let (upstream, body) = match rule.body {
        BodyRule::Empty => without_body(head, endpoint, rule, &params)?,
        BodyRule::Text => with_text(head, endpoint, rule, &params, limits)?,
        BodyRule::Lines => {
            expect_body(head, rule, limits)?;
            let (max, answer_max) = (limits.body_max_bytes(), limits.phext_max_bytes());
            let check = BodyCheck::lines(max, answer_max, rule.example);
            (Upstream { method: POST, endpoint }, Some(check))
        }
        BodyRule::Set => with_set(head, endpoint, rule, &params, limits)?,
    };
    let phext = params.p.take();
    Ok(Request { endpoint, class: upstream.endpoint.class(), phext, params, upstream, body })
}

/// Path and query. Bytes that no client sends unencoded could be read in two ways further on.
fn split(path: &[u8]) -> Result<(&str, &str), Refusal> {
    let refuse = |detail: &'static str| {
        let example = Endpoint::Select.rules()[0].example;
        Err(Refusal::new(RefusalKind::BadRequest, detail).example(example))
    };
    if path.len() > PATH_MAX_BYTES {
        return refuse("the path with its query is longer than 32 KiB; send a long text as a body");
    }
    // HTTP/2 lets other bytes through; what they are read as would be up to the reader.
    let plain = |byte: &u8| byte.is_ascii_graphic() && *byte != b'#';
    let Some(path) =
        std::str::from_utf8(path).ok().filter(|path| path.as_bytes().iter().all(plain))
    else {
        return refuse(
            "the path has a space, a control character, # or é in it; encode it (%20, %23, %C3%A9)",
        );
    };
    Ok(path.split_once('?').unwrap_or((path, "")))
}

fn endpoint_of(path: &str) -> Result<Endpoint, Refusal> {
    path.strip_prefix(BASE).and_then(Endpoint::of).ok_or_else(|| {
        let known: Vec<&str> = Endpoint::ALL.iter().map(|endpoint| endpoint.name()).collect();
        let detail = format!("the endpoints are {BASE}{{{}}}", known.join(","));
        Refusal::new(RefusalKind::UnknownEndpoint, detail).example(Endpoint::Toc.rules()[0].example)
    })
}

fn rule_of(endpoint: Endpoint, method: &str) -> Result<&'static Rule, Refusal> {
    let verb = match method {
        "GET" => Some(Verb::Get),
        "HEAD" if endpoint.class() == Class::Read => Some(Verb::Get),
        "POST" => Some(Verb::Post),
        "DELETE" => Some(Verb::Delete),
        _ => None,
    };
    verb.and_then(|verb| endpoint.rule(verb)).ok_or_else(|| {
        let (name, allow) = (endpoint.name(), endpoint.allow());
        Refusal::new(RefusalKind::MethodNotAllowed, format!("{name} takes {allow}"))
            .allow(allow)
            .example(endpoint.rules()[0].example)
    })
}

type Plan = (Upstream, Option<BodyCheck>);

/// GET, HEAD and DELETE. A length that is not told may still turn out to be nothing.
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
        (_, Some(_)) => {
            Err(Refusal::new(RefusalKind::BadBody, "this request takes no body")
                .example(rule.example))
        }
    }
}

/// SQ keeps an empty scroll as a scroll, and all later ones move when 0.5.0 writes the file (on
/// 0.6.0 when `delta` answers). An emptying update is what `delete` does; an empty insert is nothing.
fn for_text(endpoint: Endpoint, rule: &Rule, text: &str) -> Result<Endpoint, Refusal> {
    match (endpoint, text.is_empty()) {
        (_, false) => Ok(endpoint),
        (Endpoint::Update, true) => Ok(Endpoint::Delete),
        (_, true) => Err(Refusal::new(RefusalKind::BadParameter, "the text is empty")
            .parameter("s")
            .example(rule.example)),
    }
}

/// POST insert, update and where: the text is the body, or `s`, not both.
fn with_text(
    head: &Head<'_>,
    endpoint: Endpoint,
    rule: &Rule,
    params: &Params,
    limits: &Limits,
) -> Result<Plan, Refusal> {
    let said_empty = head.content_length == Some(0);
    if let Some(text) = &params.s {
        if head.content_length.is_some_and(|length| length > 0) {
            let detail = "the text is in s and in the body; send one of them";
            return Err(Refusal::new(RefusalKind::BadParameter, detail)
                .parameter("s")
                .example(rule.example));
        }
        let upstream = Upstream { method: GET, endpoint: for_text(endpoint, rule, text)? };
        return Ok((upstream, no_body(head, rule)?));
    }
    if said_empty && endpoint == Endpoint::Update {
        return Ok((Upstream { method: GET, endpoint: Endpoint::Delete }, None));
    }
    expect_body(head, rule, limits)?;
    let check = BodyCheck::text(limits.body_max_bytes(), rule.example);
    Ok((Upstream { method: POST, endpoint }, Some(check)))
}

/// POST query: the set is the body, or `set`, not both; a range needs neither.
fn with_set(
    head: &Head<'_>,
    endpoint: Endpoint,
    rule: &Rule,
    params: &Params,
    limits: &Limits,
) -> Result<Plan, Refusal> {
    let may_come = head.content_length.map_or(head.has_body, |length| length > 0);
    if params.set.is_some() && head.content_length.is_some_and(|length| length > 0) {
        let detail = "the coordinates are in set and in the body; send one of them";
        return Err(Refusal::new(RefusalKind::BadParameter, detail)
            .parameter("set")
            .example(rule.example));
    }
    if params.set.is_some() || (params.from.is_some() && !may_come) {
        return Ok((Upstream { method: GET, endpoint }, no_body(head, rule)?));
    }
    expect_body(head, rule, limits)?;
    let check = BodyCheck::set(limits.body_max_bytes(), params.from.is_some(), rule.example);
    Ok((Upstream { method: POST, endpoint }, Some(check)))
}

/// The body that must come, as far as the head tells.
fn expect_body(head: &Head<'_>, rule: &Rule, limits: &Limits) -> Result<(), Refusal> {
    let refuse = |kind, detail: &'static str| Err(Refusal::new(kind, detail).example(rule.example));
    if head.content_length == Some(0) || !head.has_body {
        return refuse(RefusalKind::BadBody, "the body is missing");
    }
    if let Some(length) = head.content_length.filter(|length| *length > limits.body_max_bytes()) {
        return Err(too_large(length, limits.body_max_bytes()).example(rule.example));
    }
    let content_type = head.content_type.unwrap_or("").to_ascii_lowercase();
    if content_type.starts_with("multipart/") {
        let detail = "the body is stored as it is, and a multipart form is not a text; send the \
                      text itself (curl --data-binary)";
        return refuse(RefusalKind::BadBody, detail);
    }
    let charset = content_type
        .split_once("charset=")
        .map(|(_, charset)| charset.split(';').next().unwrap_or("").trim_matches([' ', '"', '\'']));
    match charset {
        None | Some("utf-8" | "utf8" | "us-ascii") => Ok(()),
        Some(_) => refuse(RefusalKind::BadBody, "the body must be UTF-8"),
    }
}

impl Request {
    /// What the gateway answers itself, without waking anyone: `version` and `usage`.
    pub fn is_answered_here(&self) -> bool {
        matches!(self.endpoint, Endpoint::Version | Endpoint::Usage)
    }

    /// The method for SQ.
    pub fn method(&self) -> &'static str {
        self.upstream.method
    }

    /// The path for SQ, query included: SQ decodes it to exactly what was understood. Of no use where
    /// [`Request::is_answered_here`].
    pub fn path(&self) -> String {
        let mut path =
            String::with_capacity(96 + self.params.s.as_ref().map_or(0, |s| s.len() * 3));
        path.push_str(BASE);
        path.push_str(self.upstream.endpoint.name());
        let keeps_text = self.upstream.endpoint.class() == Class::Write;
        self.params.write_to(&mut path, self.phext.as_deref(), keeps_text, self.query_limit());
        path
    }

    /// By how many bytes the phext's file may grow through what stands in the head: the text in `s`
    /// and the delimiters on the way to the coordinate. What a body brings comes on top.
    pub fn growth_bytes(&self) -> u64 {
        if self.class != Class::Write {
            return 0;
        }
        let text = self.params.s.as_ref().map_or(0, |text| text.len() as u64);
        text + self.params.c.map_or(0, |coordinate| coordinate.delimiters_max())
    }

    /// The scroll that is written to or taken away.
    pub(crate) fn scroll(&self) -> Option<Coordinate> {
        self.params.c
    }

    /// The check that the body must pass; `None`: nothing follows the head.
    pub fn body(&self) -> Option<BodyCheck> {
        self.body.clone()
    }

    /// What happens to SQ's answer.
    pub fn answer(&self) -> AnswerRule {
        let emptied = self.endpoint == Endpoint::Update && self.class == Class::Delete;
        AnswerRule::new(self.endpoint, self.phext.as_deref().unwrap_or(""), emptied)
    }

    /// `limit` for SQ. A range without one could ask for more than SQ's memory holds.
    fn query_limit(&self) -> Option<u64> {
        let by_default = self.endpoint == Endpoint::Query && self.params.from.is_some();
        self.params.limit.or_else(|| by_default.then_some(QUERY_ITEMS_MAX))
    }
}
