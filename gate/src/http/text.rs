//! Rules for the text of a scroll and the name of a phext.
//!
//! A phext is one text in which nine control bytes separate the scrolls. If a text contains one, SQ
//! stores it and responds 200, and all later scrolls have moved at the next load.

/// Longest name of a phext in bytes: with `.phext` and a suffix of ours it must fit a file name.
pub(crate) const NAME_MAX_BYTES: usize = 120;

/// The reason a name is not valid for a phext.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadName {
    /// The name is empty.
    Empty,
    /// It is longer than [`NAME_MAX_BYTES`].
    Long,
    /// It contains a control character.
    Control,
    /// It contains `/` or `\`.
    Slash,
    /// It begins with a dot or contains two in a row.
    Dots,
}

impl BadName {
    /// Text for the client.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Empty => "it must not be empty",
            Self::Long => "it is longer than 120 bytes",
            Self::Control => "it contains a control character",
            Self::Slash => {
                "it contains a slash or backslash, but the name of a phext is not a path"
            }
            Self::Dots => "it begins with a dot or contains two dots in a row",
        }
    }
}

/// Checks the name of a phext: 1 to 120 bytes, no control character, `/` or `\`, no leading dot, no
/// `..`.
pub(crate) fn check_name(name: &str) -> Result<(), BadName> {
    if name.is_empty() {
        return Err(BadName::Empty);
    }
    if name.len() > NAME_MAX_BYTES {
        return Err(BadName::Long);
    }
    // Starts as after a dot, so that a leading dot counts as the second of two.
    let mut before = '.';
    for c in name.chars() {
        match c {
            '.' if before == '.' => return Err(BadName::Dots),
            '/' | '\\' => return Err(BadName::Slash),
            c if c.is_control() => return Err(BadName::Control),
            c => before = c,
        }
    }
    Ok(())
}

/// One bit for each byte from 0x00 to 0x1F that separates scrolls.
const BREAKS: u32 = 1 << 0x01
    | 1 << 0x17
    | 1 << 0x18
    | 1 << 0x19
    | 1 << 0x1A
    | 1 << 0x1C
    | 1 << 0x1D
    | 1 << 0x1E
    | 1 << 0x1F;

/// Returns whether `byte` separates scrolls. A line break does not.
pub const fn is_break(byte: u8) -> bool {
    byte < 0x20 && BREAKS >> byte & 1 == 1
}

/// Finds the first separator in `bytes`.
pub(crate) fn find_break(bytes: &[u8]) -> Option<u8> {
    bytes.iter().copied().find(|byte| is_break(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn nine_separators_are_breaks() {
        let found: Vec<u8> = (0..=255).filter(|byte| is_break(*byte)).collect();
        assert_eq!(found, [0x01, 0x17, 0x18, 0x19, 0x1A, 0x1C, 0x1D, 0x1E, 0x1F]);
    }

    #[test]
    fn name_is_a_file_name_and_no_path() {
        for good in ["index", "a", "a b", "a.b", "héllo", "日本", "100%", "a&b=c", &"x".repeat(120)]
        {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("", BadName::Empty),
            (".", BadName::Dots),
            (".hidden", BadName::Dots),
            ("..", BadName::Dots),
            ("a..b", BadName::Dots),
            ("a/b", BadName::Slash),
            ("a\\b", BadName::Slash),
            ("a\0", BadName::Control),
            ("a\nb", BadName::Control),
            ("a\u{7f}", BadName::Control),
            ("a\u{85}", BadName::Control),
            (&"é".repeat(61), BadName::Long),
        ] {
            assert_eq!(check_name(bad), Err(why), "{bad:?}");
        }
    }
}
