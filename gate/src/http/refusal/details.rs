//! Constructors of refusals: they fill in what the table leaves open.

use std::borrow::Cow;
use std::fmt::Display;

use protocol::SqVersion;

use super::{Refusal, RefusalKind};

/// The most of a client's own text that a refusal repeats.
const ECHO_MAX_CHARS: usize = 40;
const KEY_EXAMPLE: &str = "Authorization: Bearer pmb-v1-0123456789abcdef0123456789abcdef";

impl Refusal {
    /// A refusal whose detail depends on nothing.
    pub(crate) fn new(kind: RefusalKind) -> Self {
        let row = kind.row();
        Self {
            kind,
            detail: Cow::Borrowed(row.detail),
            parameter: None,
            example: None,
            retry_after_s: row.retry_after_s,
            allow: None,
            used_and_cap: None,
        }
    }

    /// A refusal with the arguments of its detail.
    fn from_arguments(kind: RefusalKind, arguments: &[(&str, &dyn Display)]) -> Self {
        Self { detail: Cow::Owned(fill(kind.row().detail, arguments)), ..Self::new(kind) }
    }

    /// A missing, malformed or ambiguous key.
    pub(crate) fn credentials(kind: RefusalKind) -> Self {
        Self::new(kind).example(KEY_EXAMPLE)
    }

    pub(crate) fn unknown_endpoint(base: &str, endpoints: &[&str], example: &'static str) -> Self {
        let endpoints = endpoints.join(", ");
        let arguments: [(&str, &dyn Display); 2] = [("base", &base), ("endpoints", &endpoints)];
        Self::from_arguments(RefusalKind::UnknownEndpoint, &arguments).example(example)
    }

    pub(crate) fn method_not_allowed(endpoint: &str, method: &str, allowed: &'static str) -> Self {
        let method = echo(method);
        let arguments: [(&str, &dyn Display); 3] =
            [("endpoint", &endpoint), ("method", &method), ("allowed", &allowed)];
        let refusal = Self::from_arguments(RefusalKind::MethodNotAllowed, &arguments);
        Self { allow: Some(allowed), ..refusal }
    }

    /// `parameter` is the client's own text if it is unknown. `fault` goes on after a colon.
    pub(crate) fn bad_parameter(
        parameter: impl Into<Cow<'static, str>>,
        fault: impl Display,
    ) -> Self {
        let parameter = parameter.into();
        let shown = echo(&parameter);
        let arguments: [(&str, &dyn Display); 2] = [("parameter", &shown), ("fault", &fault)];
        let refusal = Self::from_arguments(RefusalKind::BadParameter, &arguments);
        Self { parameter: Some(parameter), ..refusal }
    }

    pub(crate) fn bad_request(fault: impl Display) -> Self {
        Self::from_arguments(RefusalKind::BadRequest, &[("fault", &fault)])
    }

    pub(crate) fn bad_body(fault: impl Display) -> Self {
        Self::from_arguments(RefusalKind::BadBody, &[("fault", &fault)])
    }

    /// The gateway is set up without the `buffer` filter.
    pub(crate) fn unknown_length() -> Self {
        Self::bad_body("its length is unknown; send it with `Content-Length`")
    }

    /// `bytes` have come or were announced.
    pub(crate) fn body_too_large(bytes: u64, max: u64) -> Self {
        Self::from_arguments(RefusalKind::BodyTooLarge, &[("max", &max)]).used_and_cap(bytes, max)
    }

    pub(crate) fn no_such_endpoint_in(sq_version: SqVersion, endpoint: &str) -> Self {
        let reason =
            format!("SQ {sq_version} has no endpoint `{endpoint}`: SQ 0.6.0 and later have it");
        Self::from_arguments(RefusalKind::NotImplemented, &[("reason", &reason)])
    }

    /// `header` is the name of a precondition's header.
    pub(crate) fn no_preconditions(header: &str) -> Self {
        let reason = format!("`{header}` is not evaluated here: a write is carried out or refused")
            + ", whatever the scroll contains. Send it without the header if that is right";
        Self::from_arguments(RefusalKind::NotImplemented, &[("reason", &reason)])
    }

    pub(crate) fn no_usage() -> Self {
        let reason = "This gateway runs without an orchestrator and records no usage";
        Self::from_arguments(RefusalKind::NotImplemented, &[("reason", &reason)])
    }

    pub(crate) fn rate_limited(burst: u32, retry_after_s: u32) -> Self {
        Self::from_arguments(RefusalKind::RateLimited, &[("burst", &burst)])
            .retry_after_s(retry_after_s)
    }

    /// Other VMs were writing the tenant's shared record all the time.
    pub(crate) fn too_many_writes() -> Self {
        let detail = "Too many of your writes came at the same moment. Send this one again.";
        Self { detail: Cow::Borrowed(detail), ..Self::new(RefusalKind::RateLimited) }
    }

    /// `unit` names the things that are counted and the period.
    pub(crate) fn quota_exceeded(unit: &str, used: u64, cap: u64, wait_s: u64) -> Self {
        let arguments: [(&str, &dyn Display); 3] =
            [("cap", &cap), ("unit", &unit), ("wait_s", &wait_s)];
        Self::from_arguments(RefusalKind::QuotaExceeded, &arguments)
            .retry_after_s(u32::try_from(wait_s).unwrap_or(u32::MAX))
            .used_and_cap(used, cap)
    }

    /// `used` and `cap` are the bytes of the day's responses.
    pub(crate) fn egress_quota_exceeded(used: u64, cap: u64, wait_s: u64) -> Self {
        let arguments: [(&str, &dyn Display); 2] = [("cap", &cap), ("wait_s", &wait_s)];
        Self::from_arguments(RefusalKind::EgressQuotaExceeded, &arguments)
            .retry_after_s(u32::try_from(wait_s).unwrap_or(u32::MAX))
            .used_and_cap(used, cap)
    }

    /// The orchestrator has refused a lease for a quota that this VM does not see used up.
    pub(crate) fn quota_exceeded_elsewhere() -> Self {
        let detail = "Your requests of this day or month are used up.";
        let refusal = Self::new(RefusalKind::QuotaExceeded).retry_after_s(1);
        Self { detail: Cow::Borrowed(detail), ..refusal }
    }

    pub(crate) fn storage_full(used: u64, cap: u64) -> Self {
        let arguments: [(&str, &dyn Display); 2] = [("used", &used), ("cap", &cap)];
        Self::from_arguments(RefusalKind::StorageFull, &arguments).used_and_cap(used, cap)
    }

    /// `size` is the most that the phext might have after the request.
    pub(crate) fn phext_too_large(size: u64, cap: u64) -> Self {
        let arguments: [(&str, &dyn Display); 2] = [("size", &size), ("cap", &cap)];
        Self::from_arguments(RefusalKind::PhextTooLarge, &arguments)
            .about_phext()
            .used_and_cap(size, cap)
    }

    pub(crate) fn too_many_phexts(count: u64, cap: u64) -> Self {
        Self::from_arguments(RefusalKind::TooManyPhexts, &[("cap", &cap)])
            .about_phext()
            .used_and_cap(count, cap)
    }

    fn about_phext(self) -> Self {
        Self { parameter: Some(Cow::Borrowed("p")), ..self }
    }

    /// Adds a request that would work.
    #[must_use]
    pub(crate) fn example(self, example: &'static str) -> Self {
        Self { example: Some(example), ..self }
    }

    /// Sets when to try again; at least one second.
    #[must_use]
    pub(crate) fn retry_after_s(self, seconds: u32) -> Self {
        Self { retry_after_s: Some(seconds.max(1)), ..self }
    }

    fn used_and_cap(self, used: u64, cap: u64) -> Self {
        Self { used_and_cap: Some((used, cap)), ..self }
    }
}

/// Repeats a client's own text, cut short.
pub(crate) fn echo(text: &str) -> String {
    match text.char_indices().nth(ECHO_MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Replaces each `{name}` of a template by its argument, in one pass: arguments may contain braces.
fn fill(template: &str, arguments: &[(&str, &dyn Display)]) -> String {
    let mut out = String::with_capacity(template.len() + 64);
    let mut rest = template;
    while let Some((text, placeholder)) = rest.split_once('{') {
        out.push_str(text);
        let (name, after) = placeholder.split_once('}').unwrap_or((placeholder, ""));
        if let Some((_, argument)) = arguments.iter().find(|(argument, _)| *argument == name) {
            out.push_str(&argument.to_string());
        }
        rest = after;
    }
    out.push_str(rest);
    out
}
