//! Reads a [`Tree`] into a type that derives `Deserialize`, and reports all faults instead of the
//! first one.
//!
//! A derived `Deserialize` gives up at the first value that it cannot use. The reader therefore reads
//! the file several times: after each failure it notes the fault, leaves that value out and starts
//! again, so that the key's default takes its place. The last pass succeeds and yields the keys that
//! are unknown or duplicate. Settings files are small; a file with ten faults is read eleven times.

use std::cell::RefCell;
use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Expected, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;

use crate::fault::{Fault, Faults};
use crate::tree::Tree;

/// Reads `tree` and adds its faults to `faults`. A key that is absent, `null` or faulty has its
/// default in the result, so that the caller can check the other keys in the same run.
///
/// `T` and the sections in it must derive `Deserialize` with `#[serde(default)]`.
pub fn read<T: DeserializeOwned + Default>(tree: &Tree, faults: &mut Faults) -> T {
    let mut left_out: Vec<String> = Vec::new();
    loop {
        let pass = Pass { left_out: &left_out, notes: RefCell::default() };
        let root = Node { value: tree, key: String::new(), pass: &pass };
        match T::deserialize(root) {
            Ok(value) => {
                faults.extend(pass.notes.into_inner());
                return value;
            }
            Err(failure) => {
                let failure = failure.quote(tree);
                let key = failure.key.unwrap_or_default();
                faults.push(&key, failure.message);
                // The file as a whole is of a wrong type, or `T` has a field without a default.
                if key.is_empty() || left_out.contains(&key) {
                    return T::default();
                }
                left_out.push(key);
            }
        }
    }
}

/// One reading of the tree.
struct Pass<'p> {
    /// Keys whose values have turned out to be faulty.
    left_out: &'p [String],
    /// Unknown and duplicate keys.
    notes: RefCell<Vec<Fault>>,
}

impl Pass<'_> {
    fn note(&self, key: String, message: String) {
        self.notes.borrow_mut().push(Fault { key, message });
    }
}

/// A value and its place in the file.
struct Node<'p> {
    value: &'p Tree,
    /// Full name of the key, such as `lifecycle.lease`.
    key: String,
    pass: &'p Pass<'p>,
}

/// The end of a pass: the value that could not be used, and why.
#[derive(Debug)]
struct Failure {
    /// `None` until the failure has reached the section that contains the key.
    key: Option<String>,
    /// True once the message begins with the value.
    is_quoted: bool,
    message: String,
}

impl Failure {
    fn new(message: impl fmt::Display) -> Self {
        Self { key: None, is_quoted: false, message: message.to_string() }
    }

    /// Puts the value in front of the message, unless a part of the value already stands there.
    fn quote(self, value: &Tree) -> Self {
        if self.is_quoted {
            return self;
        }
        Self { message: format!("`{value}` {}", self.message), is_quoted: true, ..self }
    }

    /// Names the key, unless one further inside is named already.
    fn at(self, key: &str) -> Self {
        Self { key: self.key.or_else(|| Some(key.to_owned())), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Messages continue a sentence that begins with the value: "`x`" "is not a duration: …".
impl serde::de::Error for Failure {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message)
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(format_args!("is not {expected}"))
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(format_args!("is not {expected}"))
    }

    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        Self::new(format_args!("is not one of {}", listed(expected)))
    }
}

/// Names in back quotes, separated by commas.
fn listed(names: &[&str]) -> String {
    let mut text = String::new();
    for name in names {
        let comma = if text.is_empty() { "`" } else { ", `" };
        text.push_str(comma);
        text.push_str(name);
        text.push('`');
    }
    text
}

impl<'p> Node<'p> {
    fn child(&self, name: &str, value: &'p Tree) -> Self {
        let key =
            if self.key.is_empty() { name.to_owned() } else { format!("{}.{name}", self.key) };
        Self { value, key, pass: self.pass }
    }

    /// The keys of a section that can be read; notes those that are unknown or duplicate.
    fn known_keys(
        &self,
        entries: &'p [(String, Tree)],
        known: &'static [&'static str],
    ) -> Vec<(&'p str, Self)> {
        let mut read: Vec<(&str, Self)> = Vec::new();
        for (index, (name, value)) in entries.iter().enumerate() {
            let child = self.child(name, value);
            let is_repeated = entries[..index].iter().any(|(earlier, _)| earlier == name);
            if is_repeated {
                self.pass.note(child.key, format!("`{value}` is a second value: keep one of them"));
            } else if !known.contains(&name.as_str()) {
                self.pass.note(child.key, format!("unknown key: write one of {}", listed(known)));
            } else if *value != Tree::Null && !self.pass.left_out.contains(&child.key) {
                read.push((name, child));
            }
        }
        read
    }
}

impl<'de> Deserializer<'de> for Node<'_> {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.value {
            Tree::Null => visitor.visit_unit(),
            Tree::Flag(flag) => visitor.visit_bool(*flag),
            Tree::Whole(number) => visitor.visit_u64(*number),
            Tree::Negative(number) => visitor.visit_i64(*number),
            Tree::Fraction(number) => visitor.visit_f64(*number),
            Tree::Text(text) => visitor.visit_str(text),
            Tree::List(values) => {
                visitor.visit_seq(Elements { values: values.iter(), pass: self.pass })
            }
            Tree::Section(_) => Err(Failure::new("is not a single value")),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.value {
            Tree::Flag(flag) => visitor.visit_bool(*flag),
            _ => Err(Failure::new("is not a boolean: write `true` or `false`")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.value {
            Tree::Text(text) => visitor.visit_str(text),
            _ => Err(Failure::new("is not a text: write it in quotes")),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.value {
            Tree::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.value {
            Tree::List(_) => self.deserialize_any(visitor),
            _ => Err(Failure::new("is not a list: write values in brackets, such as `[\"a\"]`")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        let Tree::Section(entries) = self.value else {
            let message = format!("is not a section: it has the keys {}", listed(known));
            return Err(Failure::new(message));
        };
        let keys = self.known_keys(entries, known);
        visitor.visit_map(Keys { keys: keys.into_iter(), value: None })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        match self.value {
            Tree::Text(text) => visitor.visit_enum(text.as_str().into_deserializer()),
            _ => Err(Failure::new(format_args!("is not one of {}", listed(variants)))),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str bytes byte_buf unit unit_struct
        tuple tuple_struct map identifier ignored_any
    }
}

/// The keys of a section, one after the other.
struct Keys<'p> {
    keys: std::vec::IntoIter<(&'p str, Node<'p>)>,
    value: Option<Node<'p>>,
}

impl<'de> MapAccess<'de> for Keys<'_> {
    type Error = Failure;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Failure> {
        let Some((name, node)) = self.keys.next() else {
            return Ok(None);
        };
        self.value = Some(node);
        let name: StrDeserializer<'_, Failure> = name.into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Failure> {
        let Some(node) = self.value.take() else {
            return Err(Failure::new("has no value"));
        };
        let key = node.key.clone();
        let value = node.value;
        seed.deserialize(node).map_err(|failure| failure.quote(value).at(&key))
    }
}

/// The elements of a list. A faulty one makes the whole list faulty.
struct Elements<'p> {
    values: std::slice::Iter<'p, Tree>,
    pass: &'p Pass<'p>,
}

impl<'de> SeqAccess<'de> for Elements<'_> {
    type Error = Failure;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Failure> {
        let Some(value) = self.values.next() else {
            return Ok(None);
        };
        let node = Node { value, key: String::new(), pass: self.pass };
        seed.deserialize(node).map(Some).map_err(|failure| failure.quote(value))
    }
}

#[cfg(test)]
mod tests;
