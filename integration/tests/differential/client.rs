//! Random operations of a client, and the many forms in which a client may write each.

use gate::http::request::{Coordinate, Endpoint};
use gate::http::text::is_break;
use protocol::SqVersion;

/// An operation on one phext.
#[derive(Debug)]
pub(crate) struct Operation {
    /// Name of the phext, valid or invalid.
    pub(crate) phext: String,
    pub(crate) action: Action,
}

/// The endpoints with the arguments that matter to SQ.
#[derive(Debug)]
pub(crate) enum Action {
    Insert(Place, String),
    Update(Place, String),
    Delete(Place),
    Select(Place),
    Get,
    Toc,
    Load,
    Status,
    Checksum,
    JsonExport,
    Where(String),
    /// Lines, each with the right checksum (true) or a wrong one. `None` sends no lines.
    Delta(Option<Vec<(Place, bool)>>),
    Query {
        range: Option<(Place, Place)>,
        set: Vec<Place>,
    },
}

/// A coordinate as a client writes it, valid or invalid.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    text: String,
    coordinate: Option<Coordinate>,
}

impl Place {
    fn is_invalid(&self) -> bool {
        self.coordinate.is_none()
    }

    /// The coordinate of a place in a request that the gate accepted.
    pub(crate) fn valid(&self) -> Coordinate {
        self.coordinate.expect("an invalid coordinate was accepted")
    }

    /// The coordinate; `None` if the text is invalid.
    pub(crate) fn coordinate(&self) -> Option<Coordinate> {
        self.coordinate
    }

    /// The coordinate in SQ's own form.
    fn canonical(&self) -> String {
        self.coordinate.map_or_else(|| self.text.clone(), |coordinate| coordinate.to_string())
    }
}

/// A request as a client sends it.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) body: Option<Vec<u8>>,
}

/// A client whose operations are derived from a seed with `SplitMix64`.
pub(crate) struct Client(u64);

const NAMES: [&str; 4] = ["index", "日本 100%+&=", "a.b~c", "it's;#1"];
const INVALID_NAMES: [&str; 7] = ["", "../up", ".hidden", "a/b", "a\\b", "nul\0", "line\n"];
const INVALID_PLACES: [&str; 9] = [
    "1.1.1/1.1.1/1.1.0",
    "0.1.1/1.1.1/1.1.1",
    "1.1.1/1.1.1/1.1.1000",
    "1.1.1/1.1.1/1.1.100000000",
    "1.1.1/1.1.1/1.1.x",
    "1.1.1/1.1.1",
    "1.1.1.1.1.1.1.1.1",
    "-1.1.1/1.1.1/1.1.1",
    "root",
];
const PIECES: [&str; 24] = [
    "hello",
    " ",
    "\n",
    "\r\n",
    "\"",
    "\\",
    "\\n",
    "%41",
    "%",
    "&c=9",
    "=",
    "+",
    "€",
    "𝄞",
    "\u{feff}",
    "\0",
    "\u{7}",
    "\u{b}",
    "\u{1b}",
    "\t",
    "<b>",
    ": ",
    " HTTP/1.1",
    "\u{2028}",
];
const DELIMITERS: [&str; 9] =
    ["\u{1}", "\u{17}", "\u{18}", "\u{19}", "\u{1a}", "\u{1c}", "\u{1d}", "\u{1e}", "\u{1f}"];

/// Percent-encodes every byte of a text.
pub(crate) fn encode_all(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect::<Vec<_>>().concat()
}

impl Client {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((mixed ^ (mixed >> 31)) % end as u64).unwrap_or(0)
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    fn place(&mut self) -> Place {
        if self.one_in(60) {
            return Place { text: self.pick(&INVALID_PLACES).to_owned(), coordinate: None };
        }
        // Mostly a few adjacent coordinates, so that operations hit the same scrolls; rarely distant
        // ones.
        let far = self.one_in(12);
        let mut parts = [1u16; 9];
        for (level, part) in parts.iter_mut().enumerate() {
            *part = if far {
                self.pick(&[1, 2, 37, 998, 999])
            } else if matches!(level, 2 | 5 | 7 | 8) {
                self.pick(&[1, 2, 3])
            } else {
                1
            };
        }
        let text =
            parts.map(|part| if self.one_in(30) { format!("{part:03}") } else { part.to_string() });
        let group = |at: usize| text[at..at + 3].join(".");
        let first = self.pick(&["/", ";"]);
        let second = self.pick(&["/", ";"]);
        let text = format!("{}{first}{}{second}{}", group(0), group(3), group(6));
        Place { text, coordinate: Coordinate::new(parts) }
    }

    fn text(&mut self) -> String {
        if self.one_in(25) {
            return "long text ".repeat(self.below(400));
        }
        let pieces = self.below(7);
        let mut text: String = (0..pieces).map(|_| self.pick(&PIECES)).collect();
        if self.one_in(25) {
            text += self.pick(&DELIMITERS);
        }
        text
    }

    fn places(&mut self, most: usize) -> Vec<Place> {
        (0..=self.below(most)).map(|_| self.place()).collect()
    }

    /// The next random operation.
    pub(crate) fn operation(&mut self) -> Operation {
        let invalid = self.one_in(60);
        let phext = if invalid { self.pick(&INVALID_NAMES) } else { self.pick(&NAMES) };
        let action = match self.below(24) {
            0..=4 => Action::Insert(self.place(), self.text()),
            5..=9 => Action::Update(self.place(), self.text()),
            10 | 11 => Action::Delete(self.place()),
            12..=14 => Action::Select(self.place()),
            15 => Action::Get,
            16 => Action::Toc,
            17 if self.one_in(3) => Action::Load,
            17 if self.one_in(2) => Action::Status,
            17 => Action::Checksum,
            18 => Action::JsonExport,
            19 => Action::Where(self.text()),
            20 => Action::Delta(None),
            21 => {
                let lines = self.places(4);
                Action::Delta(Some(lines.into_iter().map(|at| (at, self.one_in(2))).collect()))
            }
            22 => Action::Query { range: Some((self.place(), self.place())), set: self.places(2) },
            _ => Action::Query { range: None, set: self.places(4) },
        };
        Operation { phext: phext.to_owned(), action }
    }

    /// Encodes a value of the query in one of several equivalent forms.
    fn encode(&mut self, text: &str) -> String {
        let mut out = String::new();
        for byte in text.bytes() {
            let unreserved = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
            let tolerated = byte.is_ascii_graphic() && !b"%&+#".contains(&byte);
            match byte {
                b' ' if self.one_in(2) => out.push('+'),
                _ if (unreserved && !self.one_in(20)) || (tolerated && self.one_in(2)) => {
                    out.push(char::from(byte));
                }
                _ if self.one_in(2) => out.extend(["%", &format!("{byte:02x}")]),
                _ => out.extend(["%", &format!("{byte:02X}")]),
            }
        }
        out
    }

    /// Writes the request of an operation in a random form. `checksum` returns the present checksum of
    /// a scroll, or a wrong one if its second argument is false.
    pub(crate) fn write(
        &mut self,
        operation: &Operation,
        checksum: &mut dyn FnMut(&Place, bool) -> String,
    ) -> Written {
        let mut pairs = vec![("p", operation.phext.clone())];
        let reading = self.pick(&["GET", "HEAD"]);
        let mut method = reading;
        let mut body = None;
        match &operation.action {
            Action::Insert(at, text) | Action::Update(at, text) => {
                pairs.push(("c", at.text.clone()));
                method = self.pick(&["GET", "POST"]);
                if method == "GET" || self.one_in(4) {
                    pairs.push(("s", text.clone()));
                } else {
                    body = Some(text.clone().into_bytes());
                }
            }
            Action::Delete(at) => {
                pairs.push(("c", at.text.clone()));
                method = self.pick(&["GET", "DELETE"]);
            }
            Action::Select(at) => pairs.push(("c", at.text.clone())),
            Action::Where(text) => {
                method = "POST";
                body = Some(text.clone().into_bytes());
                pairs.push(("algo", "checksum".to_owned()));
            }
            Action::Delta(Some(lines)) => {
                method = "POST";
                let end = self.pick(&["\n", "\r\n"]);
                let lines = lines
                    .iter()
                    .map(|(at, right)| format!("{}: {}{end}", at.text, checksum(at, *right)));
                body = Some(lines.collect::<Vec<_>>().concat().into_bytes());
            }
            Action::Query { range, set } => {
                if let Some((from, to)) = range {
                    pairs.push(("from", from.text.clone()));
                    pairs.push(("to", to.text.clone()));
                }
                method = self.pick(&[reading, "POST"]);
                if method == "POST" && self.one_in(2) {
                    let items: Vec<String> = set.iter().map(Place::canonical).collect();
                    body = Some(items.join(self.pick(&[",", " ,\n", "\r\n", ";"])).into_bytes());
                } else {
                    let items: Vec<String> = set.iter().map(|at| at.text.clone()).collect();
                    pairs.push(("set", items.join(self.pick(&[",", "\n", ";"]))));
                }
            }
            _ => {}
        }
        let mut query = Vec::new();
        while !pairs.is_empty() {
            let (name, value) = pairs.swap_remove(self.below(pairs.len()));
            query.push(format!("{}={}", self.encode(name), self.encode(&value)));
        }
        let name = operation.endpoint().name();
        Written { method, path: format!("/api/v2/{name}?{}", query.join("&")), body }
    }
}

fn has_delimiter(text: &str) -> bool {
    text.bytes().any(is_break)
}

impl Operation {
    fn endpoint(&self) -> Endpoint {
        match self.action {
            Action::Insert(..) => Endpoint::Insert,
            Action::Update(..) => Endpoint::Update,
            Action::Delete(_) => Endpoint::Delete,
            Action::Select(_) => Endpoint::Select,
            Action::Get => Endpoint::Get,
            Action::Toc => Endpoint::Toc,
            Action::Load => Endpoint::Load,
            Action::Status => Endpoint::Status,
            Action::Checksum => Endpoint::Checksum,
            Action::JsonExport => Endpoint::JsonExport,
            Action::Where(_) => Endpoint::Where,
            Action::Delta(_) => Endpoint::Delta,
            Action::Query { .. } => Endpoint::Query,
        }
    }

    /// True if SQ would do something else than the client meant.
    pub(crate) fn must_be_refused(&self, sq: SqVersion) -> bool {
        let ambiguous = match &self.action {
            Action::Insert(at, text) => at.is_invalid() || text.is_empty() || has_delimiter(text),
            Action::Update(at, text) => at.is_invalid() || has_delimiter(text),
            Action::Delete(at) | Action::Select(at) => at.is_invalid(),
            Action::Where(text) => text.is_empty() || has_delimiter(text),
            Action::Delta(Some(lines)) => lines.iter().any(|(at, _)| at.is_invalid()),
            Action::Query { range, set } => {
                let invalid_range = range.iter().any(|(from, to)| {
                    from.is_invalid() || to.is_invalid() || from.coordinate > to.coordinate
                });
                invalid_range || set.iter().any(Place::is_invalid)
            }
            _ => false,
        };
        ambiguous || !self.endpoint().exists_in(sq) || INVALID_NAMES.contains(&self.phext.as_str())
    }
}
