//! The table of accepted requests: endpoint, verb, parameters, body, effect.
//!
//! | endpoint | verbs | needs | may have | body | access |
//! |---|---|---|---|---|---|
//! | `version` | GET HEAD | | p | | read, from the gateway |
//! | `usage` | GET HEAD | | | | read, from the gateway |
//! | `toc` `get` | GET HEAD | p | (c) | | read |
//! | `checksum` `status` `load` `json-export` | GET HEAD | p | | | read |
//! | `select` | GET HEAD | p c | | | read |
//! | `insert` `update` | GET | p c s | | | write |
//! | `insert` `update` | POST | p c | s | text, unless `s` | write |
//! | `delete` | GET POST DELETE | p c | | | delete |
//! | `delta` | GET HEAD | p | (c) | | read |
//! | `delta` | POST | p | (c) | lines `coordinate: checksum` | read |
//! | `where` | POST | p | algo limit | text | read |
//! | `query` | GET HEAD | p | from to set limit | | read |
//! | `query` | POST | p | from to set limit | coordinates, unless `set` or a range | read |
//!
//! A parameter in brackets is dropped unread: clients send it, and SQ does not look at it.
//!
//! HEAD is GET without the response body, for reads only. `update` with an empty text is forwarded as
//! `delete`: the scroll is empty afterwards in both cases, and SQ 0.5.0 moves all later scrolls when
//! it stores an empty one. The gateway makes `json-export` from `get`.

use protocol::SqVersion;

/// Builds an example that names a phext and a coordinate.
macro_rules! example {
    ($verb:literal, $name:literal, BODY) => {
        example!($verb, $name, " with the body hello")
    };
    ($verb:literal, $name:literal, $rest:literal) => {
        concat!($verb, " /api/v2/", $name, "?p=index&c=1.1.1/1.1.1/1.1.1", $rest)
    };
}

/// An endpoint under `/api/v2/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Endpoint {
    /// The version of SQ, from the gateway.
    Version,
    /// The tenant's usage and limits, from the gateway.
    Usage,
    /// Coordinates and first lines of all scrolls.
    Toc,
    /// The text of one scroll.
    Select,
    /// The whole phext.
    Get,
    /// Appends to a scroll.
    Insert,
    /// Overwrites a scroll.
    Update,
    /// Removes a scroll.
    Delete,
    /// Scrolls that differ from the checksums given.
    Delta,
    /// Scrolls of a range or set of coordinates.
    Query,
    /// A coordinate computed from a text.
    Where,
    /// Size and number of scrolls.
    Status,
    /// The phext's checksum.
    Checksum,
    /// Loads the phext again.
    Load,
    /// All scrolls as JSON.
    JsonExport,
}

/// A parameter of the query string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Param {
    /// Name of the phext.
    P,
    /// Coordinate of the scroll.
    C,
    /// Text of the scroll.
    S,
    /// First coordinate of a range.
    From,
    /// Last coordinate of a range.
    To,
    /// List of coordinates.
    Set,
    /// For `query` the maximum number of results, for `where` the minimum length of a scroll.
    Limit,
    /// Algorithm of `where`: `checksum`.
    Algo,
}

/// A method that an endpoint distinguishes. HEAD counts as [`Verb::Get`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// GET or HEAD.
    Get,
    /// The method POST.
    Post,
    /// The method DELETE.
    Delete,
}

/// The effect of a request on storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Access {
    /// Leaves the phext unchanged.
    Read,
    /// May enlarge the phext.
    Write,
    /// Shrinks the phext.
    Delete,
}

/// The accepted content of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyRule {
    /// No body at all.
    Empty,
    /// The text of a scroll.
    Text,
    /// `coordinate: checksum` lines.
    Lines,
    /// List of coordinates.
    Set,
}

/// One row of the table: an endpoint with one verb.
#[derive(Debug)]
pub(crate) struct Rule {
    /// Verb of this row.
    pub(crate) verb: Verb,
    /// Parameters that must be present.
    pub(crate) required: &'static [Param],
    /// Parameters that may be present.
    pub(crate) optional: &'static [Param],
    /// Parameters that may be present and are dropped: SQ does not look at them.
    pub(crate) dropped: &'static [Param],
    /// Accepted content of the body.
    pub(crate) body: BodyRule,
    /// A request that succeeds.
    pub(crate) example: &'static str,
}

impl Param {
    /// Every parameter, in the order of the enum.
    pub(crate) const ALL: [Self; 8] =
        [Self::P, Self::C, Self::S, Self::From, Self::To, Self::Set, Self::Limit, Self::Algo];

    /// Name in the query string.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::P => "p",
            Self::C => "c",
            Self::S => "s",
            Self::From => "from",
            Self::To => "to",
            Self::Set => "set",
            Self::Limit => "limit",
            Self::Algo => "algo",
        }
    }

    /// Finds a parameter by its name.
    pub(crate) fn of(name: &str) -> Option<Self> {
        Some(match name {
            "p" => Self::P,
            "c" => Self::C,
            "s" => Self::S,
            "from" => Self::From,
            "to" => Self::To,
            "set" => Self::Set,
            "limit" => Self::Limit,
            "algo" => Self::Algo,
            _ => return None,
        })
    }
}

impl Rule {
    /// Returns whether the parameter may be present.
    pub(crate) fn takes(&self, param: Param) -> bool {
        self.required.contains(&param) || self.optional.contains(&param)
    }
}

const fn rule(
    verb: Verb,
    required: &'static [Param],
    optional: &'static [Param],
    body: BodyRule,
    example: &'static str,
) -> Rule {
    Rule { verb, required, optional, dropped: &[], body, example }
}

impl Rule {
    /// The same rule with parameters that are dropped.
    const fn dropping(self, dropped: &'static [Param]) -> Self {
        Self { dropped, ..self }
    }
}

impl Endpoint {
    /// Every endpoint, in the order of the enum.
    pub(crate) const ALL: [Self; 15] = [
        Self::Version,
        Self::Usage,
        Self::Toc,
        Self::Select,
        Self::Get,
        Self::Insert,
        Self::Update,
        Self::Delete,
        Self::Delta,
        Self::Query,
        Self::Where,
        Self::Status,
        Self::Checksum,
        Self::Load,
        Self::JsonExport,
    ];

    /// True if the release `sq` serves this endpoint.
    pub fn exists_in(self, sq: SqVersion) -> bool {
        self != Self::Query || sq.has_query()
    }

    /// Last segment of the path, after `/api/v2/`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Usage => "usage",
            Self::Toc => "toc",
            Self::Select => "select",
            Self::Get => "get",
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Delta => "delta",
            Self::Query => "query",
            Self::Where => "where",
            Self::Status => "status",
            Self::Checksum => "checksum",
            Self::Load => "load",
            Self::JsonExport => "json-export",
        }
    }

    /// Finds an endpoint by its whole name. SQ itself would take `selectXYZ` for `select`.
    pub(crate) fn of(name: &str) -> Option<Self> {
        Some(match name {
            "version" => Self::Version,
            "usage" => Self::Usage,
            "toc" => Self::Toc,
            "select" => Self::Select,
            "get" => Self::Get,
            "insert" => Self::Insert,
            "update" => Self::Update,
            "delete" => Self::Delete,
            "delta" => Self::Delta,
            "query" => Self::Query,
            "where" => Self::Where,
            "status" => Self::Status,
            "checksum" => Self::Checksum,
            "load" => Self::Load,
            "json-export" => Self::JsonExport,
            _ => return None,
        })
    }

    /// Effect on storage.
    pub(crate) const fn access(self) -> Access {
        match self {
            Self::Insert | Self::Update => Access::Write,
            Self::Delete => Access::Delete,
            _ => Access::Read,
        }
    }

    /// Value of the header `Allow`.
    pub(crate) const fn allow(self) -> &'static str {
        match self {
            Self::Insert | Self::Update => "GET, POST, OPTIONS",
            Self::Delete => "GET, POST, DELETE, OPTIONS",
            Self::Delta | Self::Query => "GET, HEAD, POST, OPTIONS",
            Self::Where => "POST, OPTIONS",
            _ => "GET, HEAD, OPTIONS",
        }
    }

    /// The rows of this endpoint.
    pub(crate) const fn rules(self) -> &'static [Rule] {
        use BodyRule::{Empty, Lines, Set, Text};
        use Param::{Algo, C, From, Limit, P, S, Set as SetParam, To};
        use Verb::{Delete, Get, Post};
        match self {
            Self::Version => &[const { rule(Get, &[], &[P], Empty, "GET /api/v2/version") }],
            Self::Usage => &[const { rule(Get, &[], &[], Empty, "GET /api/v2/usage") }],
            Self::Toc => {
                &[const { rule(Get, &[P], &[], Empty, "GET /api/v2/toc?p=index").dropping(&[C]) }]
            }
            Self::Get => {
                &[const { rule(Get, &[P], &[], Empty, "GET /api/v2/get?p=index").dropping(&[C]) }]
            }
            Self::Status => &[const { rule(Get, &[P], &[], Empty, "GET /api/v2/status?p=index") }],
            Self::Load => &[const { rule(Get, &[P], &[], Empty, "GET /api/v2/load?p=index") }],
            Self::Checksum => {
                &[const { rule(Get, &[P], &[], Empty, "GET /api/v2/checksum?p=index") }]
            }
            Self::JsonExport => {
                &[const { rule(Get, &[P], &[], Empty, "GET /api/v2/json-export?p=index") }]
            }
            Self::Select => {
                &[const { rule(Get, &[P, C], &[], Empty, example!("GET", "select", "")) }]
            }
            Self::Insert => &[
                const { rule(Get, &[P, C, S], &[], Empty, example!("GET", "insert", "&s=hello")) },
                const { rule(Post, &[P, C], &[S], Text, example!("POST", "insert", BODY)) },
            ],
            Self::Update => &[
                const { rule(Get, &[P, C, S], &[], Empty, example!("GET", "update", "&s=hello")) },
                const { rule(Post, &[P, C], &[S], Text, example!("POST", "update", BODY)) },
            ],
            Self::Delete => &[
                const { rule(Get, &[P, C], &[], Empty, example!("GET", "delete", "")) },
                const { rule(Post, &[P, C], &[], Empty, example!("POST", "delete", "")) },
                const { rule(Delete, &[P, C], &[], Empty, example!("DELETE", "delete", "")) },
            ],
            Self::Delta => &[
                const { rule(Get, &[P], &[], Empty, "GET /api/v2/delta?p=index").dropping(&[C]) },
                const { rule(Post, &[P], &[], Lines, DELTA_EXAMPLE).dropping(&[C]) },
            ],
            Self::Where => &[const { rule(Post, &[P], &[Algo, Limit], Text, WHERE_EXAMPLE) }],
            Self::Query => &[
                const { rule(Get, &[P], &[From, To, SetParam, Limit], Empty, QUERY_EXAMPLE) },
                const { rule(Post, &[P], &[From, To, SetParam, Limit], Set, QUERY_SET_EXAMPLE) },
            ],
        }
    }

    /// The row for one verb.
    pub(crate) fn rule(self, verb: Verb) -> Option<&'static Rule> {
        self.rules().iter().find(|rule| rule.verb == verb)
    }
}

const DELTA_EXAMPLE: &str = "POST /api/v2/delta?p=index with the body \
     1.1.1/1.1.1/1.1.1: 99aa06d3014798d86001c324468d497f";
const WHERE_EXAMPLE: &str = "POST /api/v2/where?p=index with the body hello";
const QUERY_EXAMPLE: &str =
    "GET /api/v2/query?p=index&from=1.1.1/1.1.1/1.1.1&to=1.1.1/1.1.1/9.9.9&limit=100";
const QUERY_SET_EXAMPLE: &str =
    "POST /api/v2/query?p=index with the body 1.1.1/1.1.1/1.1.1,1.1.1/1.1.1/1.1.2";

#[cfg(test)]
mod tests {
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn only_query_is_missing_before_0_6_0() {
        for endpoint in Endpoint::ALL {
            assert!(endpoint.exists_in(SqVersion::V0_6_0));
            assert_eq!(endpoint.exists_in(SqVersion::V0_5_0), endpoint != Endpoint::Query);
        }
    }
}
