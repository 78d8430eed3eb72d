//! What happens to SQ's answers on their way to the client.
//!
//! SQ gives no Content-Type, prints server paths in `status` and `load`, and its `json-export` can't
//! be read back: it escapes a line break but not a backslash, so two texts give the same answer. The
//! gateway asks for `get` instead and writes the JSON itself, scroll by scroll as the bytes come.

pub mod export;

use crate::http::request::Endpoint;
use export::Export;

/// Answers that are rewritten as a whole are shorter than this; longer ones are cut.
const WHOLE_MAX_BYTES: usize = 1024;
/// How SQ 0.6.0's `get` begins, with status 200, when it can't read the file; a path and the reason
/// follow.
const UNREADABLE: &str = "Unable to open requested phext ";
/// The reason that every damaged phext gives.
const NOT_UTF8: &str = "stream did not contain valid UTF-8";

/// What most of SQ's answers are, and all of its errors.
pub(crate) const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// How an answer with status 200 is passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerRule {
    endpoint: Endpoint,
    phext: String,
    /// An `update` that was sent on as `delete`.
    emptied: bool,
}

/// Rewrites one answer as it comes. What it gives back has another length: `content-length` must go.
#[derive(Debug)]
pub(crate) enum Rewriter {
    /// Needs all of it; SQ writes a few lines here.
    Whole {
        /// What came so far.
        buffer: Vec<u8>,
        /// How it is rewritten.
        rule: AnswerRule,
    },
    /// A phext becomes JSON.
    Export(Export),
}

impl AnswerRule {
    pub(crate) fn new(endpoint: Endpoint, phext: &str, emptied: bool) -> Self {
        Self { endpoint, phext: phext.to_owned(), emptied }
    }

    /// For the `content-type` header.
    pub(crate) fn content_type(&self) -> &'static str {
        match self.endpoint {
            Endpoint::Query | Endpoint::JsonExport | Endpoint::Usage => JSON,
            _ => TEXT,
        }
    }

    /// How the body is rewritten; `None`: it passes as it is. `content_length` is SQ's.
    pub(crate) fn rewriter(&self, content_length: Option<u64>) -> Option<Rewriter> {
        let short = content_length.is_none_or(|length| length <= WHOLE_MAX_BYTES as u64);
        let whole = match self.endpoint {
            Endpoint::JsonExport if content_length.is_none() || !short => {
                return Some(Rewriter::Export(Export::default()));
            }
            Endpoint::JsonExport | Endpoint::Status | Endpoint::Load => true,
            Endpoint::Get => content_length.is_some() && short,
            Endpoint::Update => self.emptied,
            _ => false,
        };
        whole.then(|| Rewriter::Whole { buffer: Vec::new(), rule: self.clone() })
    }

    /// A whole body at once.
    pub fn on_body(&self, body: &[u8]) -> Vec<u8> {
        let Some(mut rewriter) = self.rewriter(Some(body.len() as u64)) else {
            return body.to_vec();
        };
        let mut out = rewriter.on_chunk(body);
        out.extend(rewriter.on_end());
        out
    }

    fn rewrite(&self, body: &[u8]) -> Vec<u8> {
        match self.endpoint {
            Endpoint::Load => format!("Loaded {}", self.phext).into_bytes(),
            Endpoint::Update => b"Updated 0 bytes".to_vec(),
            // The first line is the path.
            Endpoint::Status => {
                let rest = body.iter().position(|byte| *byte == b'\n').unwrap_or(body.len());
                [format!("Hosting: {}", self.phext).as_bytes(), &body[rest..]].concat()
            }
            Endpoint::Get if self.is_unreadable(body) => self.unreadable().into_bytes(),
            // The status is gone already; no array, so that nobody takes it for an empty phext.
            Endpoint::JsonExport if self.is_unreadable(body) => {
                format!("{}\n", serde_json::json!({ "error": self.unreadable() })).into_bytes()
            }
            Endpoint::JsonExport => {
                let mut export = Export::default();
                [export.on_chunk(body), export.on_end()].concat()
            }
            _ => body.to_vec(),
        }
    }

    fn unreadable(&self) -> String {
        [UNREADABLE, &self.phext].concat()
    }

    /// Whether this is SQ's message. A phext that holds nothing but such a message about itself can't
    /// be told apart: only its owner can have written it, and loses the path in it.
    fn is_unreadable(&self, body: &[u8]) -> bool {
        let file = format!("/{}.phext", self.phext);
        let said = std::str::from_utf8(body).ok().and_then(|text| text.strip_prefix(UNREADABLE));
        // The reason holds no colon and a space, a path may.
        said.and_then(|said| said.rsplit_once(": ")).is_some_and(|(path, reason)| {
            let by_system = reason
                .strip_suffix(')')
                .and_then(|reason| reason.rsplit_once(" (os error "))
                .is_some_and(|(_, number)| number.bytes().all(|digit| digit.is_ascii_digit()));
            path.starts_with('/') && path.ends_with(&file) && (by_system || reason == NOT_UTF8)
        })
    }
}

impl Rewriter {
    /// Takes the next bytes of SQ's answer and gives those for the client.
    pub(crate) fn on_chunk(&mut self, chunk: &[u8]) -> Vec<u8> {
        match self {
            Self::Whole { buffer, .. } => {
                let room = WHOLE_MAX_BYTES.saturating_sub(buffer.len()).min(chunk.len());
                buffer.extend_from_slice(&chunk[..room]);
                Vec::new()
            }
            Self::Export(export) => export.on_chunk(chunk),
        }
    }

    /// SQ's answer is over.
    pub(crate) fn on_end(&mut self) -> Vec<u8> {
        match self {
            Self::Whole { buffer, rule } => rule.rewrite(buffer),
            Self::Export(export) => export.on_end(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn answer(endpoint: Endpoint, body: &str) -> String {
        let rule = AnswerRule::new(endpoint, "index", false);
        String::from_utf8(rule.on_body(body.as_bytes())).unwrap()
    }

    #[test]
    fn a_server_path_never_reaches_a_client() {
        let status =
            "Hosting: /data/alice/index.phext\nConnection ID: 9\nPhext Size: 10\nScrolls: 2";
        assert_eq!(
            answer(Endpoint::Status, status),
            "Hosting: index\nConnection ID: 9\nPhext Size: 10\nScrolls: 2"
        );
        assert_eq!(answer(Endpoint::Load, "Loaded /data/alice/index.phext"), "Loaded index");
        assert_eq!(answer(Endpoint::Get, MESSAGES[0]), "Unable to open requested phext index");
    }

    /// What SQ 0.6.0 says of a file that it can't read.
    const MESSAGES: [&str; 2] = [
        "Unable to open requested phext /data/a/index.phext: stream did not contain valid UTF-8",
        "Unable to open requested phext /data/a: b/index.phext: Permission denied (os error 13)",
    ];

    #[test]
    fn what_sq_says_of_an_unreadable_file_is_never_exported_as_a_scroll() {
        for message in MESSAGES {
            let said = answer(Endpoint::JsonExport, message);
            assert_eq!(said, "{\"error\":\"Unable to open requested phext index\"}\n");
            assert_eq!(answer(Endpoint::Get, message), "Unable to open requested phext index");
        }
    }

    #[test]
    fn a_phext_that_begins_like_a_message_passes_as_it_is() {
        let other_phext = MESSAGES[0].replace("index", "other");
        for text in [
            "Unable to open requested phext ",
            "Unable to open requested phext a: b",
            "Unable to open requested phext /data/a/index.phext: and what I did about it",
            &other_phext,
            &[MESSAGES[0], "\x17and more"].concat(),
            &[MESSAGES[1], "\n"].concat(),
            &["\x17", MESSAGES[0]].concat(),
            "",
        ] {
            assert_eq!(answer(Endpoint::Get, text), text);
            let exported = answer(Endpoint::JsonExport, text);
            assert!(exported.starts_with('['), "{text:?}: {exported}");
        }
    }

    #[test]
    fn a_scroll_passes_as_it_is() {
        assert_eq!(answer(Endpoint::Select, "Loaded /x"), "Loaded /x");
        assert!(AnswerRule::new(Endpoint::Select, "index", false).rewriter(None).is_none());
    }

    #[test]
    fn an_emptying_update_is_answered_as_an_update() {
        let rule = AnswerRule::new(Endpoint::Update, "index", true);
        assert_eq!(rule.on_body(b"Removed 7 bytes"), b"Updated 0 bytes");
    }
}
