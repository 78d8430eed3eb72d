//! Types of single values. Each carries its bounds, checks them while it is read, and describes them
//! in the schema.
//!
//! The bounds are part of the type, so that a key's rule stands in one place: `lease: Duration<50,
//! 600_000>` is from 50 ms to 10 min. The readers behind them are not generic over the bounds, which
//! keeps the filter's module small.

use std::fmt;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::units::{self, DURATIONS_MS, SIZES};

/// A duration from `MIN_MS` to `MAX_MS` milliseconds, written such as `"250ms"` or `"5min"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Duration<const MIN_MS: u64, const MAX_MS: u64>(u64);

/// A size from `MIN` to `MAX` bytes, written such as `"256MiB"` or as the bare number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size<const MIN: u64, const MAX: u64>(u64);

/// A whole number from `MIN` to `MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Integer<const MIN: u64, const MAX: u64>(u64);

/// A text that is not empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text(String);

impl<const MIN_MS: u64, const MAX_MS: u64> Duration<MIN_MS, MAX_MS> {
    /// The duration of `ms` milliseconds, moved into the bounds.
    pub fn from_ms(ms: u64) -> Self {
        Self(ms.clamp(MIN_MS, MAX_MS))
    }

    /// The duration in milliseconds.
    pub fn as_ms(self) -> u64 {
        self.0
    }

    /// The duration in milliseconds, for bounds that fit into 32 bits: up to 49 days.
    pub fn as_ms_u32(self) -> u32 {
        u32::try_from(self.0).unwrap_or(u32::MAX)
    }

    /// The duration as the standard library's type.
    pub fn get(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }
}

impl<const MIN: u64, const MAX: u64> Size<MIN, MAX> {
    /// The size of `bytes` bytes, moved into the bounds.
    pub fn from_bytes(bytes: u64) -> Self {
        Self(bytes.clamp(MIN, MAX))
    }

    /// The size in bytes.
    pub fn as_bytes(self) -> u64 {
        self.0
    }
}

impl<const MIN: u64, const MAX: u64> Integer<MIN, MAX> {
    /// The number `value`, moved into the bounds.
    pub fn new(value: u64) -> Self {
        Self(value.clamp(MIN, MAX))
    }

    /// The number itself.
    pub fn get(self) -> u64 {
        self.0
    }

    /// The number for bounds that fit into 32 bits.
    pub fn as_u32(self) -> u32 {
        u32::try_from(self.0).unwrap_or(u32::MAX)
    }

    /// The number as a count of things in memory.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl Text {
    /// The text itself.
    pub fn into_string(self) -> String {
        self.0
    }

    /// The text itself, borrowed.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl<const MIN_MS: u64, const MAX_MS: u64> fmt::Display for Duration<MIN_MS, MAX_MS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Kind::Duration.format(self.0))
    }
}

impl<'de, const MIN_MS: u64, const MAX_MS: u64> Deserialize<'de> for Duration<MIN_MS, MAX_MS> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bounded = Bounded { kind: Kind::Duration, min: MIN_MS, max: MAX_MS };
        deserializer.deserialize_any(bounded).map(Self)
    }
}

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Size<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bounded = Bounded { kind: Kind::Size, min: MIN, max: MAX };
        deserializer.deserialize_any(bounded).map(Self)
    }
}

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Integer<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bounded = Bounded { kind: Kind::Integer, min: MIN, max: MAX };
        deserializer.deserialize_any(bounded).map(Self)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() {
            return Err(D::Error::custom("is empty: write a text, or leave the key out"));
        }
        Ok(Self(text))
    }
}

impl<const MIN_MS: u64, const MAX_MS: u64> Serialize for Duration<MIN_MS, MAX_MS> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Kind::Duration.format(self.0))
    }
}

impl<const MIN: u64, const MAX: u64> Serialize for Size<MIN, MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Kind::Size.format(self.0))
    }
}

impl<const MIN: u64, const MAX: u64> Serialize for Integer<MIN, MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Kinds of numbers that have bounds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Duration,
    Size,
    Integer,
}

impl Kind {
    /// The name of the kind and how to write it: what a fault recommends.
    fn expectation(self) -> &'static str {
        match self {
            Self::Duration => {
                "a duration: write a number and a unit, such as `250ms`, `30s` or `5min`"
            }
            Self::Size => "a size: write a number and a unit, such as `256MiB` or `1GB`",
            Self::Integer => "a whole number",
        }
    }

    fn parse(self, text: &str) -> Option<u64> {
        match self {
            Self::Duration => units::parse(text, DURATIONS_MS),
            Self::Size => units::parse(text, SIZES),
            Self::Integer => None,
        }
    }

    pub(crate) fn format(self, value: u64) -> String {
        match self {
            Self::Duration if value == 0 => "0s".to_owned(),
            Self::Duration => units::format(value, DURATIONS_MS, ""),
            Self::Size => units::format(value, SIZES, ""),
            Self::Integer => value.to_string(),
        }
    }
}

/// Reads a number of a kind and checks its bounds. Faults are completed by the reader, which puts
/// the value in front: "`5x`" "is not a duration: …".
struct Bounded {
    kind: Kind,
    min: u64,
    max: u64,
}

impl Bounded {
    fn check<E: Error>(&self, value: u64) -> Result<u64, E> {
        if (self.min..=self.max).contains(&value) { Ok(value) } else { Err(self.out_of_bounds()) }
    }

    fn out_of_bounds<E: Error>(&self) -> E {
        let min = self.kind.format(self.min);
        let max = self.kind.format(self.max);
        E::custom(format_args!("is out of bounds: write `{min}` to `{max}`"))
    }
}

impl Visitor<'_> for Bounded {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.expectation())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<u64, E> {
        if self.kind == Kind::Duration {
            return Err(E::invalid_type(Unexpected::Unsigned(number), &self));
        }
        self.check(number)
    }

    /// Only for numbers below 0, which are below every lower bound.
    fn visit_i64<E: Error>(self, number: i64) -> Result<u64, E> {
        if self.kind == Kind::Duration {
            return Err(E::invalid_type(Unexpected::Signed(number), &self));
        }
        Err(self.out_of_bounds())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
        match self.kind.parse(text) {
            Some(value) => self.check(value),
            None => Err(E::invalid_value(Unexpected::Str(text), &self)),
        }
    }
}
