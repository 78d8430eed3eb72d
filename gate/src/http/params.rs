//! Parses the query parameters of one request. Each may appear once and is checked as it is parsed.

use std::borrow::Cow;
use std::fmt::Display;

use crate::Refusal;

use super::body::QUERY_ITEMS_MAX;
use super::coordinate::{Coordinate, Groups, Scan, ScanResult};
use super::endpoint::{Access, Endpoint, Param, Rule};
use super::query::{self, Pair};
use super::refusal::details::echo;
use super::text;

/// Longest text in a query, which is three times as long when encoded. Longer texts go into a body.
const QUERY_TEXT_MAX_BYTES: usize = 8 * 1024;
/// Bound on the digits of `limit`.
const LIMIT_DIGITS_MAX: usize = 9;
const COORDINATE: &str = "nine integers from 1 to 999, such as `1.1.1/1.1.1/1.1.1`";
/// The way out for clients that have names for their scrolls.
const ABOUT_NAMES: &str = ". Scrolls have no names: POST the name to `/api/v2/where?p=…`, which computes a \
                           coordinate from it, or keep a scroll that lists names and coordinates";

/// The parsed parameters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Params {
    pub(super) p: Option<String>,
    pub(super) c: Option<Coordinate>,
    pub(super) s: Option<String>,
    pub(super) from: Option<Coordinate>,
    pub(super) to: Option<Coordinate>,
    pub(super) set: Option<Vec<Coordinate>>,
    pub(super) limit: Option<u64>,
}

/// The parser of one query string. Knows the endpoint for the texts of refusals.
struct Parser {
    endpoint: Endpoint,
    rule: &'static Rule,
    seen: u16,
    params: Params,
}

impl Params {
    /// Parses a query string by the endpoint's rule.
    pub(super) fn parse(
        endpoint: Endpoint,
        rule: &'static Rule,
        query: &str,
    ) -> Result<Self, Refusal> {
        let mut parser = Parser { endpoint, rule, seen: 0, params: Self::default() };
        for pair in query::pairs(query) {
            let pair = pair.map_err(|_| {
                Refusal::bad_request("the query is not UTF-8 after decoding").example(rule.example)
            })?;
            parser.pair(pair)?;
        }
        parser.end()
    }

    /// Appends the query for SQ, in a fixed order.
    pub(super) fn write_to(
        &self,
        path: &mut String,
        phext: Option<&str>,
        keeps_text: bool,
        algorithm: Option<&str>,
        limit: Option<u64>,
    ) {
        let mut before = '?';
        let mut name = |path: &mut String, name: &str| {
            path.push(before);
            path.push_str(name);
            path.push('=');
            before = '&';
        };
        if let Some(phext) = phext {
            name(path, "p");
            query::encode_to(path, phext);
        }
        for (key, coordinate) in [("c", self.c), ("from", self.from), ("to", self.to)] {
            if let Some(coordinate) = coordinate {
                name(path, key);
                coordinate.write_to(path);
            }
        }
        if let Some(set) = &self.set {
            name(path, "set");
            for (at, coordinate) in set.iter().enumerate() {
                path.push_str(if at == 0 { "" } else { "," });
                coordinate.write_to(path);
            }
        }
        if let Some(algorithm) = algorithm {
            name(path, "algo");
            path.push_str(algorithm);
        }
        if let Some(limit) = limit {
            name(path, "limit");
            path.push_str(&limit.to_string());
        }
        if let Some(text) = self.s.as_deref().filter(|_| keeps_text) {
            name(path, "s");
            query::encode_to(path, text);
        }
    }
}

impl Parser {
    fn bad(&self, parameter: &'static str, fault: impl Display) -> Refusal {
        Refusal::bad_parameter(parameter, fault).example(self.rule.example)
    }

    fn pair(&mut self, Pair { name, value }: Pair<'_>) -> Result<(), Refusal> {
        if Param::of(&name).is_some_and(|param| self.rule.dropped.contains(&param)) {
            return Ok(());
        }
        let Some(param) = Param::of(&name).filter(|param| self.rule.takes(*param)) else {
            return Err(self.unknown(&name));
        };
        let bit = 1 << (param as u16);
        if self.seen & bit != 0 {
            return Err(self.bad(param.name(), "it is given more than once"));
        }
        self.seen |= bit;
        match param {
            Param::P => {
                text::check_name(&value).map_err(|fault| self.bad("p", fault.text()))?;
                self.params.p = Some(value.into_owned());
            }
            Param::C => self.params.c = Some(self.coordinate("c", &value)?),
            Param::From => self.params.from = Some(self.coordinate("from", &value)?),
            Param::To => self.params.to = Some(self.coordinate("to", &value)?),
            Param::S => self.params.s = Some(self.text(value)?),
            Param::Set => self.params.set = Some(self.set(&value)?),
            Param::Limit => self.params.limit = Some(self.limit(&value)?),
            Param::Algo => self.check_algorithm(&value)?,
        }
        Ok(())
    }

    /// `checksum` is the only algorithm. SQ's default, `xor`, computes 0.0.0/0.0.0/0.0.0 for most
    /// texts and 1.1.1/1.1.1/1.1.1 for the others.
    fn check_algorithm(&self, value: &str) -> Result<(), Refusal> {
        let fault = match value {
            "checksum" => return Ok(()),
            "xor" => "`xor` computes coordinates that do not exist; use `checksum`".to_owned(),
            other => format!("`{}` is unknown; use `checksum`", echo(other)),
        };
        Err(self.bad("algo", fault))
    }

    fn unknown(&self, name: &str) -> Refusal {
        let known: Vec<&str> =
            Param::ALL.iter().filter(|p| self.rule.takes(**p)).map(|p| p.name()).collect();
        let takes = if known.is_empty() { "no parameter".to_owned() } else { known.join(", ") };
        let fault = format!("it is unknown to `{}`, which takes {takes}", self.endpoint.name());
        Refusal::bad_parameter(echo(name), fault).example(self.rule.example)
    }

    fn coordinate(&self, name: &'static str, value: &str) -> Result<Coordinate, Refusal> {
        Coordinate::parse(value).ok_or_else(|| {
            let fault = format!("`{}` is not a coordinate; use {COORDINATE}", echo(value));
            let is_a_name = value.contains(char::is_alphabetic);
            self.bad(name, if is_a_name { fault + ABOUT_NAMES } else { fault })
        })
    }

    fn text(&self, value: Cow<'_, str>) -> Result<String, Refusal> {
        if let Some(byte) = text::find_break(value.as_bytes()) {
            let fault = format!("it contains the byte 0x{byte:02x}, which separates scrolls");
            return Err(self.bad("s", fault));
        }
        if value.len() > QUERY_TEXT_MAX_BYTES {
            let fault = "it is longer than 8 KiB; send a long text as the body of a POST";
            return Err(self.bad("s", fault).example(self.endpoint.rules()[1].example));
        }
        Ok(value.into_owned())
    }

    /// Parses coordinates with `,`, `;` or a line break between them. A `;` inside an incomplete
    /// coordinate stands for `/`. This is unambiguous, because a coordinate has exactly three groups.
    fn set(&self, value: &str) -> Result<Vec<Coordinate>, Refusal> {
        let wrong = || {
            let fault = format!("each coordinate must be {COORDINATE}, separated by commas");
            self.bad("set", fault)
        };
        let mut all = Vec::new();
        let mut scan: Option<Scan> = None;
        for byte in value.bytes() {
            let current = scan.get_or_insert_with(|| Scan::new(Groups::SlashOrSemicolon));
            match current.push(byte) {
                ScanResult::Accepted => {}
                ScanResult::Complete(coordinate) if matches!(byte, b',' | b';' | b'\n') => {
                    all.push(coordinate);
                    scan = None;
                }
                _ => return Err(wrong()),
            }
        }
        all.push(scan.and_then(|scan| scan.end()).ok_or_else(wrong)?);
        if all.len() as u64 > QUERY_ITEMS_MAX {
            return Err(
                self.bad("set", format!("it names more than {QUERY_ITEMS_MAX} coordinates"))
            );
        }
        Ok(all)
    }

    fn limit(&self, value: &str) -> Result<u64, Refusal> {
        let plain = (1..=LIMIT_DIGITS_MAX).contains(&value.len())
            && value.bytes().all(|byte| byte.is_ascii_digit());
        let limit = plain.then(|| value.parse::<u64>().ok()).flatten();
        let most = (self.endpoint == Endpoint::Query).then_some(QUERY_ITEMS_MAX);
        match (limit, most) {
            (None, _) => {
                let fault = format!("`{}` is not a whole number", echo(value));
                Err(self.bad("limit", fault))
            }
            (Some(limit), Some(most)) if limit > most => {
                let fault = format!(
                    "it may be at most {most}; request the rest from the coordinate after the last \
                     result"
                );
                Err(self.bad("limit", fault))
            }
            (Some(limit), _) => Ok(limit),
        }
    }

    fn end(self) -> Result<Params, Refusal> {
        for param in self.rule.required {
            if self.seen & 1 << (*param as u16) == 0 {
                let reason = match (param, self.endpoint.access()) {
                    (Param::C, Access::Write | Access::Delete) => {
                        "without it SQ would change the scroll at 1.1.1/1.1.1/1.1.1"
                    }
                    (Param::C, Access::Read) => "it names the scroll",
                    (Param::P, _) => "it names the phext",
                    _ => "it is the text",
                };
                return Err(self.bad(param.name(), format!("it is missing; {reason}")));
            }
        }
        if self.endpoint == Endpoint::Query {
            self.check_range()?;
        }
        Ok(self.params)
    }

    fn check_range(&self) -> Result<(), Refusal> {
        let Params { from, to, set, .. } = &self.params;
        match (from, to) {
            (Some(_), None) => Err(self.bad("to", "a range needs `from` and `to`")),
            (None, Some(_)) => Err(self.bad("from", "a range needs `from` and `to`")),
            (Some(from), Some(to)) if from > to => Err(self.bad("from", "it comes after `to`")),
            (None, None) if set.is_none() && self.rule.body == super::endpoint::BodyRule::Empty => {
                Err(self.bad("from", "a query needs a range (`from` and `to`) or a `set`"))
            }
            _ => Ok(()),
        }
    }
}
