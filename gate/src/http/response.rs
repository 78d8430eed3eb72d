//! Rewrites SQ's responses on their way to the client.
//!
//! SQ sends no Content-Type and prints server paths in `status` and `load`. Its `json-export` cannot be
//! read back: it escapes a line break but not a backslash, so two texts give the same output. The
//! gateway requests `get` instead and writes the JSON, scroll by scroll as the bytes arrive.

pub mod export;

use crate::http::endpoint::Endpoint;
use export::Export;

/// Bound on responses that are rewritten as a whole; longer ones are truncated.
const WHOLE_MAX_BYTES: usize = 1024;
/// Beginning of SQ 0.6.0's response to `get`, with status 200, for a file that it cannot read. A path
/// and the reason follow.
const UNREADABLE: &str = "Unable to open requested phext ";
/// The reason in that message for every damaged phext.
const NOT_UTF8: &str = "stream did not contain valid UTF-8";

/// Content type of most of SQ's responses, and of all its errors.
pub(crate) const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// SQ's table of contents of an empty phext: one scroll that is not there. A scroll that begins with a
/// line break is shown with `...` instead.
const EMPTY_TOC: &str = "* 1.1.1/1.1.1/1.1.1: \n";
/// The end of SQ's status of a phext that was always empty.
const EMPTY_STATUS: &str = "Phext Size: 0\nScrolls: 1";

/// The treatment of a response with status 200.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseRule {
    endpoint: Endpoint,
    phext: String,
    /// The request was an `update` that was forwarded as `delete`.
    emptied: bool,
}

/// Rewrites one response as it arrives. The length changes, so `content-length` must be removed.
#[derive(Debug)]
pub(crate) enum Rewriter {
    /// Buffers the whole response, which is a few lines here.
    Whole {
        /// Bytes received so far.
        buffer: Vec<u8>,
        /// Treatment of the response.
        rule: ResponseRule,
    },
    /// Converts a phext to JSON.
    Export(Export),
}

impl ResponseRule {
    pub(crate) fn new(endpoint: Endpoint, phext: &str, emptied: bool) -> Self {
        Self { endpoint, phext: phext.to_owned(), emptied }
    }

    /// Value of the header `content-type`.
    pub(crate) fn content_type(&self) -> &'static str {
        content_type(self.endpoint)
    }

    /// Returns the rewriter for the body; `None` if it passes unchanged. `content_length` is SQ's.
    pub(crate) fn rewriter(&self, content_length: Option<u64>) -> Option<Rewriter> {
        let short = content_length.is_none_or(|length| length <= WHOLE_MAX_BYTES as u64);
        let whole = match self.endpoint {
            Endpoint::JsonExport if content_length.is_none() || !short => {
                return Some(Rewriter::Export(Export::default()));
            }
            Endpoint::JsonExport | Endpoint::Status | Endpoint::Load => true,
            Endpoint::Get => content_length.is_some() && short,
            Endpoint::Toc => content_length.is_some_and(|bytes| bytes <= EMPTY_TOC.len() as u64),
            Endpoint::Update => self.emptied,
            _ => false,
        };
        whole.then(|| Rewriter::Whole { buffer: Vec::new(), rule: self.clone() })
    }

    /// Rewrites a whole body at once.
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
            // The first line holds the path.
            Endpoint::Status => self.status(body),
            Endpoint::Toc if body == EMPTY_TOC.as_bytes() => Vec::new(),
            Endpoint::Get if self.is_unreadable(body) => self.unreadable().into_bytes(),
            // The status has been sent. An object, so that no client takes it for an empty phext.
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

    /// The status without the server's path, which is in its first line. An empty phext has no scroll.
    fn status(&self, body: &[u8]) -> Vec<u8> {
        let text = String::from_utf8_lossy(body);
        let rest = text.find('\n').map_or("", |at| &text[at..]);
        let mut status = format!("Hosting: {}{rest}", self.phext);
        if status.ends_with(EMPTY_STATUS) {
            status.pop();
            status.push('0');
        }
        status.into_bytes()
    }

    fn unreadable(&self) -> String {
        [UNREADABLE, &self.phext].concat()
    }

    /// Returns whether the body is SQ's message. A phext that holds nothing but such a message about
    /// itself cannot be distinguished from it; only its owner can have written that.
    fn is_unreadable(&self, body: &[u8]) -> bool {
        let file = format!("/{}.phext", self.phext);
        let message = std::str::from_utf8(body).ok().and_then(|text| text.strip_prefix(UNREADABLE));
        // The path may contain a colon and a space, the reason does not.
        message.and_then(|message| message.rsplit_once(": ")).is_some_and(|(path, reason)| {
            let by_system = reason
                .strip_suffix(')')
                .and_then(|reason| reason.rsplit_once(" (os error "))
                .is_some_and(|(_, number)| number.bytes().all(|digit| digit.is_ascii_digit()));
            path.starts_with('/') && path.ends_with(&file) && (by_system || reason == NOT_UTF8)
        })
    }
}

/// The `content-type` of an endpoint's responses.
pub(crate) fn content_type(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Query | Endpoint::JsonExport | Endpoint::Usage => JSON,
        _ => TEXT,
    }
}

impl Rewriter {
    /// Takes the next bytes of SQ's response and returns those for the client.
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

    /// Ends SQ's response and returns the last bytes for the client.
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

    fn rewrite(endpoint: Endpoint, body: &str) -> String {
        let rule = ResponseRule::new(endpoint, "index", false);
        String::from_utf8(rule.on_body(body.as_bytes())).unwrap()
    }

    #[test]
    fn server_path_never_reaches_a_client() {
        let status =
            "Hosting: /data/alice/index.phext\nConnection ID: 9\nPhext Size: 10\nScrolls: 2";
        assert_eq!(
            rewrite(Endpoint::Status, status),
            "Hosting: index\nConnection ID: 9\nPhext Size: 10\nScrolls: 2"
        );
        assert_eq!(rewrite(Endpoint::Load, "Loaded /data/alice/index.phext"), "Loaded index");
        assert_eq!(rewrite(Endpoint::Get, MESSAGES[0]), "Unable to open requested phext index");
    }

    /// SQ 0.6.0's messages about files that it cannot read.
    const MESSAGES: [&str; 2] = [
        "Unable to open requested phext /data/a/index.phext: stream did not contain valid UTF-8",
        "Unable to open requested phext /data/a: b/index.phext: Permission denied (os error 13)",
    ];

    #[test]
    fn message_about_unreadable_file_is_no_scroll() {
        for message in MESSAGES {
            let exported = rewrite(Endpoint::JsonExport, message);
            assert_eq!(exported, "{\"error\":\"Unable to open requested phext index\"}\n");
            assert_eq!(rewrite(Endpoint::Get, message), "Unable to open requested phext index");
        }
    }

    #[test]
    fn phext_similar_to_the_message_passes_unchanged() {
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
            assert_eq!(rewrite(Endpoint::Get, text), text);
            let exported = rewrite(Endpoint::JsonExport, text);
            assert!(exported.starts_with('['), "{text:?}: {exported}");
        }
    }

    #[test]
    fn empty_phext_has_no_scroll() {
        assert_eq!(rewrite(Endpoint::Toc, "* 1.1.1/1.1.1/1.1.1: \n"), "");
        for toc in ["* 1.1.1/1.1.1/1.1.1: ...\n", "* 1.1.1/1.1.1/1.1.2: x\n"] {
            assert_eq!(rewrite(Endpoint::Toc, toc), toc);
        }
        let status = "Hosting: /data/index.phext\nConnection ID: 9\nPhext Size: 0\nScrolls: 1";
        assert_eq!(
            rewrite(Endpoint::Status, status),
            "Hosting: index\nConnection ID: 9\nPhext Size: 0\nScrolls: 0"
        );
    }

    #[test]
    fn scroll_passes_unchanged() {
        assert_eq!(rewrite(Endpoint::Select, "Loaded /x"), "Loaded /x");
        assert!(ResponseRule::new(Endpoint::Select, "index", false).rewriter(None).is_none());
    }

    #[test]
    fn emptying_update_gets_the_response_of_an_update() {
        let rule = ResponseRule::new(Endpoint::Update, "index", true);
        assert_eq!(rule.on_body(b"Removed 7 bytes"), b"Updated 0 bytes");
    }
}
