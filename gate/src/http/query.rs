//! Decodes and encodes query strings.
//!
//! Decoding is that of the URL standard's `application/x-www-form-urlencoded`: pairs end at `&`,
//! names at the first `=`, `+` is a space, `%` and two digits are a byte, any other `%` stands for
//! itself. SQ's decoder agrees on this. Where it differs (it takes the last of repeated names and
//! replaces invalid UTF-8), the request is refused first.

use std::borrow::Cow;

/// One decoded pair, borrowed where nothing was encoded: most requests allocate nothing here.
pub(crate) struct Pair<'a> {
    /// Decoded text before the first `=`.
    pub(crate) name: Cow<'a, str>,
    /// Decoded text after the first `=`.
    pub(crate) value: Cow<'a, str>,
}

/// The decoded bytes are not UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotUtf8;

/// Iterates over the pairs of a query. Empty ones (`&&`) are skipped.
pub(crate) fn pairs(query: &str) -> impl Iterator<Item = Result<Pair<'_>, NotUtf8>> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        Ok(Pair { name: decode(name)?, value: decode(value)? })
    })
}

/// Decodes one name or value.
pub(crate) fn decode(text: &str) -> Result<Cow<'_, str>, NotUtf8> {
    if !text.bytes().any(|byte| byte == b'%' || byte == b'+') {
        return Ok(Cow::Borrowed(text));
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%')
            .then(|| Some(hex(*bytes.get(at + 1)?)? << 4 | hex(*bytes.get(at + 2)?)?))
            .flatten();
        match (bytes[at], escaped) {
            (_, Some(byte)) => {
                out.push(byte);
                at += 2;
            }
            (b'+', None) => out.push(b' '),
            (byte, None) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8(out).map(Cow::Owned).map_err(|_| NotUtf8)
}

fn hex(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Appends `text` in a form that every decoder reads in the same way: only RFC 3986's unreserved
/// characters are not encoded.
pub(crate) fn encode_to(out: &mut String, text: &str) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    if text.bytes().all(is_unreserved) {
        return out.push_str(text);
    }
    for byte in text.bytes() {
        if is_unreserved(byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn values_are_decoded_as_in_the_url_standard() {
        for (encoded, decoded) in [
            ("plain", "plain"),
            ("a+b%20c%2Bd", "a b c+d"),
            ("%e2%82%AC", "€"),
            ("100%", "100%"),
            ("%zz%4", "%zz%4"),
            ("%%41", "%A"),
            ("a=b", "a=b"),
        ] {
            assert_eq!(decode(encoded).unwrap(), decoded, "{encoded}");
        }
        for bad in ["%ff", "%c3", "%c3%28", "%ed%a0%80", "%c0%80"] {
            assert_eq!(decode(bad), Err(NotUtf8), "{bad}");
        }
    }

    #[test]
    fn pairs_and_names_end_at_their_separators() {
        let all: Vec<_> = pairs("a=1&&b&c=x=y&=z;w=1")
            .map(|pair| pair.unwrap())
            .map(|pair| (pair.name.into_owned(), pair.value.into_owned()))
            .collect();
        let expected = [("a", "1"), ("b", ""), ("c", "x=y"), ("", "z;w=1")];
        assert_eq!(all, expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
    }

    proptest! {
        #[test]
        fn encoded_text_round_trips(text in ".*") {
            let mut encoded = String::new();
            encode_to(&mut encoded, &text);
            prop_assert!(encoded.bytes().all(|b| b.is_ascii_graphic() && !b"&+#;=?".contains(&b)));
            prop_assert_eq!(decode(&encoded).unwrap(), text);
        }
    }
}
