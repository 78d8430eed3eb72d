//! The query string: decoded once, written anew.
//!
//! Decoding is that of the URL standard's `application/x-www-form-urlencoded`: pairs end at `&`,
//! names at the first `=`, `+` is a space, `%` and two digits are a byte, any other `%` stands for
//! itself. SQ's own decoder agrees on all of this; where it does not (it takes the last of repeated
//! names, and replaces what is not UTF-8), the request is refused before.

use std::borrow::Cow;

/// One decoded pair. Borrowed where nothing was encoded: most requests allocate nothing here.
pub(crate) struct Pair<'a> {
    /// Before the first `=`, decoded.
    pub(crate) name: Cow<'a, str>,
    /// After it, decoded.
    pub(crate) value: Cow<'a, str>,
}

/// Bytes that are not UTF-8 once decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotUtf8;

/// The pairs of a query; empty ones (`&&`) are skipped.
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

/// Appends `text` so that every decoder reads exactly its bytes: only RFC 3986's unreserved
/// characters stay as they are.
pub(crate) fn encode_to(out: &mut String, text: &str) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let plain =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    if text.bytes().all(plain) {
        return out.push_str(text);
    }
    for byte in text.bytes() {
        if plain(byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn a_value_is_decoded_as_the_url_standard_says() {
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
    fn a_pair_ends_at_the_ampersand_and_a_name_at_the_first_equals_sign() {
        let all: Vec<_> = pairs("a=1&&b&c=x=y&=z;w=1")
            .map(|pair| pair.unwrap())
            .map(|pair| (pair.name.into_owned(), pair.value.into_owned()))
            .collect();
        let expected = [("a", "1"), ("b", ""), ("c", "x=y"), ("", "z;w=1")];
        assert_eq!(all, expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_to_the_same_bytes(text in ".*") {
            let mut encoded = String::new();
            encode_to(&mut encoded, &text);
            prop_assert!(encoded.bytes().all(|b| b.is_ascii_graphic() && !b"&+#;=?".contains(&b)));
            prop_assert_eq!(decode(&encoded).unwrap(), text);
        }
    }
}
