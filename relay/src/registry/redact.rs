//! A registry's text without plain keys: what may lie about. Pure.
//!
//! Everything else stays as it is, so that what is kept can be read, compared and put back.

use libphext::phext::is_phext_break;
use protocol::ApiKey;
use protocol::key::KEY_PREFIX;

use super::line::{self, Line};

/// What stands for a key that is in no `key:` line.
const HIDDEN: &str = "***";

/// `key: KEY` becomes `key-sha256: DIGEST`; a key anywhere else, as in a comment, loses its digits.
pub fn redact(text: &str) -> String {
    let lines = text.split_inclusive(|c: char| u8::try_from(c).is_ok_and(is_phext_break));
    lines.map(|line| hidden(&hashed(line).unwrap_or_else(|| line.to_owned()))).collect()
}

fn hashed(line: &str) -> Option<String> {
    let Line::Field { name, value } = line::split(line.trim_end_matches(char::is_control)) else {
        return None;
    };
    let whole = &line[value.clone()];
    let text = whole.split(';').next().unwrap_or_default().trim();
    let key = ApiKey::parse(text).ok().filter(|_| &line[name.clone()] == "key")?;
    let rest = &line[value.start + text.len()..];
    let between = &line[name.end..value.start];
    Some(format!("{}key-sha256{between}{}{rest}", &line[..name.start], key.hash()))
}

fn hidden(line: &str) -> String {
    let mut out = String::new();
    for (n, part) in line.split(KEY_PREFIX).enumerate() {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_hexdigit());
        match n {
            0 => out.push_str(part),
            _ if rest.len() == part.len() => out.extend([KEY_PREFIX, part]),
            _ => out.extend([KEY_PREFIX, HIDDEN, rest]),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::registry::Registry;

    const KEY: &str = "pmb-v1-00112233445566778899aabbccddeeff";

    #[test]
    fn a_plain_key_becomes_its_digest_and_nothing_else_changes() {
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
        fn what_is_kept_has_no_key_and_says_the_same(
            words in proptest::collection::vec(prop_oneof![
                Just("# é "), Just("\n"), Just("\r\n"), Just("x-a: "), Just(KEY), Just("\u{feff}"),
                Just("burst: 5"), Just(" "), Just("pmb-v1-"), Just(";"), Just("status: suspended"),
            ], 0..12),
            ends: bool,
            gap in "[\u{17}\u{18}\u{1a}]{1,2}",
        ) {
            let words = words.concat();
            let end = if ends { ";expires=2027-01-01 # x" } else { "" };
            let text = format!("tiers\ntier: free\n{gap}\ntenant: a\nkey: {KEY}{end}\ntier: free\n{words}");
            let kept = redact(&text);
            prop_assert!(!kept.contains(&KEY[7..]));
            if let Ok(mut before) = Registry::read(text.as_bytes()) {
                let mut after = Registry::read(kept.as_bytes()).unwrap();
                for tenant in before.tenants.values_mut().chain(after.tenants.values_mut()) {
                    tenant.keys.iter_mut().for_each(|key| key.plain = false);
                    tenant.notes.clear();
                }
                prop_assert_eq!(before, after);
            }
        }
    }
}
