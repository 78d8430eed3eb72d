//! A parsed settings file in which a key may still occur twice.
//!
//! The maps of `toml` and `serde_json` cannot represent a duplicate key, and the format's own errors
//! would end the reading at the first one. JSON permits duplicates and keeps the last; a tree keeps
//! all of them, so that they can be reported. TOML forbids them: there the parser refuses the file.

use std::fmt;

use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// The longest value that a fault quotes in full, in characters.
const QUOTED_MAX: usize = 60;

/// A value of any type, as it is written in the file.
#[derive(Debug, Clone, PartialEq)]
pub enum Tree {
    /// `null`, which means the same as an absent key.
    Null,
    /// `true` or `false`.
    Flag(bool),
    /// A whole number of 0 or more.
    Whole(u64),
    /// A whole number below 0.
    Negative(i64),
    /// A number with a fraction or an exponent.
    Fraction(f64),
    /// A quoted text.
    Text(String),
    /// Values in brackets.
    List(Vec<Self>),
    /// A section with its keys in the order of the file.
    Section(Vec<(String, Self)>),
}

/// The form in which faults quote the value, without the back quotes around it.
impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Flag(flag) => flag.fmt(f),
            Self::Whole(number) => number.fmt(f),
            Self::Negative(number) => number.fmt(f),
            #[cfg(not(target_family = "wasm"))]
            Self::Fraction(number) => number.fmt(f),
            // Writing floats would add 24 kB to the filter's module.
            #[cfg(target_family = "wasm")]
            Self::Fraction(_) => f.write_str("a fraction"),
            Self::Text(text) => match text.char_indices().nth(QUOTED_MAX) {
                Some((end, _)) => write!(f, "{}…", &text[..end]),
                None => f.write_str(text),
            },
            Self::List(_) => f.write_str("[…]"),
            Self::Section(_) => f.write_str("{…}"),
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<Tree, E> {
        Ok(Tree::Flag(flag))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Tree, E> {
        Ok(Tree::Whole(number))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Tree, E> {
        Ok(u64::try_from(number).map_or(Tree::Negative(number), Tree::Whole))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Tree, E> {
        Ok(Tree::Fraction(number))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Tree, E> {
        Ok(Tree::Text(text.to_owned()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Tree, E> {
        Ok(Tree::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tree, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element()? {
            values.push(value);
        }
        Ok(Tree::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Tree::Section(entries))
    }
}
