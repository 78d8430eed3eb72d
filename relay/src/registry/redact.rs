//! The text of a registry with digests in place of plain keys, for the last good copy. Pure.
//!
//! Everything else stays as it is, so that the copy can be read, compared and put back.

use libphext::phext::is_phext_break;
use protocol::ApiKey;
use protocol::key::KEY_PREFIX;

use super::line::Line;

/// Replaces the digits of a key that stands outside a `key:` line.
const REDACTED_DIGITS: &str = "***";

/// Turns `key: KEY` into `key-sha256: DIGEST`, and removes the digits of a key anywhere else, such as
/// in a comment.
pub(crate) fn redact(text: &str) -> String {
    let mut redacted = String::with_capacity(text.len());
    for line in text.split_inclusive(|c: char| u8::try_from(c).is_ok_and(is_phext_break)) {
        match with_digest(line) {
            Some(line) => redacted.push_str(&without_key_digits(&line)),
            None => redacted.push_str(&without_key_digits(line)),
        }
    }
    redacted
}

/// The `key-sha256` line for a `key:` line with a well-formed key; `None` for any other line.
fn with_digest(line: &str) -> Option<String> {
    let Line::Field { name, value } = Line::parse(line.trim_end_matches(char::is_control)) else {
        return None;
    };
    if &line[name.clone()] != "key" {
        return None;
    }
    // Attributes such as `; expires=…` follow the key and stay.
    let key_text = line[value.clone()].split(';').next().unwrap_or_default().trim();
    let digest = ApiKey::parse(key_text).ok()?.hash();
    let indent = &line[..name.start];
    let separator = &line[name.end..value.start];
    let rest = &line[value.start + key_text.len()..];
    Some(format!("{indent}key-sha256{separator}{digest}{rest}"))
}

/// Replaces the hexadecimal digits after each key prefix by [`REDACTED_DIGITS`].
fn without_key_digits(line: &str) -> String {
    let mut parts = line.split(KEY_PREFIX);
    let mut redacted = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_hexdigit());
        redacted.push_str(KEY_PREFIX);
        if rest.len() < part.len() {
            redacted.push_str(REDACTED_DIGITS);
        }
        redacted.push_str(rest);
    }
    redacted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::registry::Registry;

    const KEY: &str = "pmb-v1-00112233445566778899aabbccddeeff";

    #[test]
    fn only_plain_keys_are_replaced() {
        let text = format!(
            "tiers\r\ntier: free\u{17}tenant: a # {KEY}, her first\n  key :\t{KEY} ; expires=2027-01-01 # x\u{17}\
             # key: {KEY}\ntenant: b\nx-note: {KEY}!\ntier: free\u{18}key: nonsense"
        );
        let digest = ApiKey::parse(KEY).unwrap().hash();
        assert_eq!(
            redact(&text),
            format!(
                "tiers\r\ntier: free\u{17}tenant: a # pmb-v1-***, her first\n  key-sha256 :\t{digest} ; \
                 expires=2027-01-01 # x\u{17}# key: pmb-v1-***\ntenant: b\nx-note: pmb-v1-***!\n\
                 tier: free\u{18}key: nonsense"
            )
        );
    }

    proptest! {
        #[test]
        fn redacted_text_means_the_same_without_keys(
            words in proptest::collection::vec(prop_oneof![
                Just("# é "), Just("\n"), Just("\r\n"), Just("x-a: "), Just(KEY), Just("\u{feff}"),
                Just("burst: 5"), Just(" "), Just("pmb-v1-"), Just(";"), Just("status: suspended"),
            ], 0..12),
            expires: bool,
            gap in "[\u{17}\u{18}\u{1a}]{1,2}",
        ) {
            let words = words.concat();
            let expiry = if expires { ";expires=2027-01-01 # x" } else { "" };
            let text =
                format!("tiers\ntier: free\n{gap}\ntenant: a\nkey: {KEY}{expiry}\ntier: free\n{words}");
            let redacted = redact(&text);
            prop_assert!(!redacted.contains(&KEY[7..]));
            if let Ok(mut before) = Registry::parse(text.as_bytes()) {
                let mut after = Registry::parse(redacted.as_bytes()).unwrap();
                for tenant in before.tenants.values_mut().chain(after.tenants.values_mut()) {
                    tenant.keys.iter_mut().for_each(|key| key.plain_text = false);
                    tenant.notes.clear();
                }
                prop_assert_eq!(before, after);
            }
        }
    }
}
