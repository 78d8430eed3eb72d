//! The forms in which the registry writes the value of a limit.
//!
//! A value is a number inside; [`Unit`] says how that number is written.

use protocol::time::SECOND_MS;
use protocol::{ByteLimit, CountLimit, KeepAwake, WarmHours};
use settings::units::{self, DURATIONS_MS, SIZES, parse_whole};

/// The written form of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// `1000` or `1_000`.
    Count,
    /// Like `Count`, optionally followed by `/s`.
    PerSecond,
    /// `25 MB` or `64 MiB`; the number counts bytes.
    Bytes,
    /// Like `Bytes`, optionally followed by `/s`.
    BytesPerSecond,
    /// `90 s`, `90s`, `5min`, `2h` or `1d`; the number counts seconds.
    Seconds,
    /// `5` or `4.99`; the number counts cents.
    Usd,
    /// `sleep`, `doze` or `awake`; the number is an index into [`KEEP_WORDS`].
    Keep,
    /// `08-18`; the number is [`hours_to_number`] of the hours.
    Hours,
}

const KEEP_WORDS: [(&str, KeepAwake); 3] =
    [("sleep", KeepAwake::Sleep), ("doze", KeepAwake::Doze), ("awake", KeepAwake::Awake)];

/// Number of the latest warm hours, `23-24`. 0 stands for no warm hours.
pub(super) const HOURS_MAX: u64 = 24 * 24;

/// Numbers of the words of a [`ByteLimit`] or [`CountLimit`], beyond every number that the registry accepts.
pub(super) const AUTO: u64 = u64::MAX - 1;
pub(super) const UNLIMITED: u64 = u64::MAX;

/// Parses a time such as `24h`, `90 s` or `0` into seconds.
pub(crate) fn parse_seconds(text: &str) -> Option<u64> {
    Unit::Seconds.parse(text)
}

impl Unit {
    pub(super) fn parse(self, text: &str) -> Option<u64> {
        match self {
            Self::Count => parse_whole(text),
            Self::PerSecond => parse_whole(without_per_second(text)),
            Self::Bytes => units::parse(text, SIZES),
            Self::BytesPerSecond => units::parse(without_per_second(text), SIZES),
            Self::Seconds => parse_whole_seconds(text),
            Self::Usd => parse_cents(text),
            Self::Keep => {
                let index = KEEP_WORDS.iter().position(|(word, _)| *word == text)?;
                u64::try_from(index).ok()
            }
            Self::Hours => parse_hours(text),
        }
    }

    pub(super) fn format(self, number: u64) -> String {
        match self {
            Self::Count | Self::PerSecond => number.to_string(),
            Self::Bytes | Self::BytesPerSecond => units::format(number, SIZES, " "),
            Self::Seconds => units::format(number.saturating_mul(SECOND_MS), DURATIONS_MS, " "),
            Self::Usd if number.is_multiple_of(100) => (number / 100).to_string(),
            Self::Usd => format!("{}.{:02}", number / 100, number % 100),
            Self::Keep => keep_row(number).map_or("", |(word, _)| *word).to_owned(),
            Self::Hours => hours_from_number(number)
                .map_or_else(String::new, |h| format!("{:02}-{:02}", h.from_h, h.to_h)),
        }
    }

    /// Describes the form, for the fault of a value that can't be parsed.
    pub(super) fn expected(self) -> &'static str {
        match self {
            Self::Count => "a whole number such as 100 or 10_000",
            Self::PerSecond => "a whole number such as 20 or 20/s",
            Self::Bytes => "a size with its unit such as 25 MB, 64 MiB or 1 GB",
            Self::BytesPerSecond => "a size with its unit such as 500 kB, 1 MB or 1 MB/s",
            Self::Seconds => "a time with its unit such as 90 s, 5 min or 2 h",
            Self::Usd => "US dollars such as 5 or 4.99",
            Self::Keep => "sleep, doze or awake",
            Self::Hours => "full hours of UTC such as 08-18 or 22-06",
        }
    }
}

pub(super) fn byte_limit_to_number(limit: ByteLimit) -> u64 {
    match limit {
        ByteLimit::Auto => AUTO,
        ByteLimit::Unlimited => UNLIMITED,
        ByteLimit::Bytes(bytes) => bytes,
    }
}

pub(super) fn byte_limit_from_number(number: u64) -> ByteLimit {
    match number {
        AUTO => ByteLimit::Auto,
        UNLIMITED => ByteLimit::Unlimited,
        bytes => ByteLimit::Bytes(bytes),
    }
}

pub(super) fn count_limit_to_number(limit: CountLimit) -> u64 {
    limit.max().unwrap_or(UNLIMITED)
}

pub(super) fn count_limit_from_number(number: u64) -> CountLimit {
    match number {
        UNLIMITED => CountLimit::Unlimited,
        count => CountLimit::Count(count),
    }
}

fn without_per_second(text: &str) -> &str {
    text.strip_suffix("/s").unwrap_or(text).trim_end()
}

pub(super) fn keep_to_number(keep: KeepAwake) -> u64 {
    let index = KEEP_WORDS.iter().position(|(_, row)| *row == keep);
    index.and_then(|index| u64::try_from(index).ok()).unwrap_or(0)
}

pub(super) fn keep_from_number(number: u64) -> KeepAwake {
    keep_row(number).map_or_else(KeepAwake::default, |(_, keep)| *keep)
}

fn keep_row(number: u64) -> Option<&'static (&'static str, KeepAwake)> {
    usize::try_from(number).ok().and_then(|index| KEEP_WORDS.get(index))
}

/// Numbers the pairs of hours from 1: 24 ends for each first hour.
pub(super) fn hours_to_number(hours: Option<WarmHours>) -> u64 {
    hours.map_or(0, |hours| u64::from(hours.from_h) * 24 + u64::from(hours.to_h))
}

pub(super) fn hours_from_number(number: u64) -> Option<WarmHours> {
    let index = number.checked_sub(1)?;
    let from_h = u8::try_from(index / 24).ok()?;
    let to_h = u8::try_from(index % 24 + 1).ok()?;
    Some(WarmHours { from_h, to_h })
}

/// Parses a duration in the syntax of the settings files; it must be a number of whole seconds.
fn parse_whole_seconds(text: &str) -> Option<u64> {
    let ms = units::parse(text, DURATIONS_MS)?;
    let is_whole = ms.is_multiple_of(SECOND_MS);
    is_whole.then_some(ms / SECOND_MS)
}

/// Parses two full hours, `08-18`.
fn parse_hours(text: &str) -> Option<u64> {
    let (from, to) = text.split_once('-')?;
    let from_h = parse_two_digits(from.trim_end())?;
    let to_h = parse_two_digits(to.trim_start())?;
    let is_valid = from_h < 24 && (1..=24).contains(&to_h);
    is_valid.then_some(from_h * 24 + to_h)
}

fn parse_two_digits(text: &str) -> Option<u64> {
    if text.len() == 2 { parse_whole(text) } else { None }
}

fn parse_cents(text: &str) -> Option<u64> {
    let (dollars, cents) = text.split_once('.').unwrap_or((text, "00"));
    if cents.len() != 2 || !cents.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let cents: u64 = cents.parse().ok()?;
    parse_whole(dollars)?.checked_mul(100)?.checked_add(cents)
}
