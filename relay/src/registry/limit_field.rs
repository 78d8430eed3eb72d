//! The names of limits in the registry: one table row for each field of [`Limits`], with the unit
//! it is written in and the range it must be in.

use protocol::{KeepAwake, Limits, WarmHours};

/// One limit.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// As it is written.
    pub name: &'static str,
    unit: Unit,
    low: u64,
    high: u64,
    /// The word for 0, where 0 has a meaning of its own.
    zero: Option<&'static str>,
    get: fn(&Limits) -> u64,
    set: fn(&mut Limits, u64),
}

/// How a number is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    /// `1000` or `1_000`.
    Count,
    /// As `Count`; `/s` may follow.
    PerSecond,
    /// `25 MB`, `64 MiB`.
    Bytes,
    /// `90 s`, `5 min`, `2 h`, `1 d`.
    Seconds,
    /// `5` or `4.99`; cents inside.
    Usd,
    /// `sleep`, `doze`, `awake`.
    Keep,
    /// `08-18`; inside a number, see `hours_index`.
    Hours,
}

const KEEP: [(&str, KeepAwake); 3] =
    [("sleep", KeepAwake::Sleep), ("doze", KeepAwake::Doze), ("awake", KeepAwake::Awake)];
/// Longest unit first where one ends with another.
const BYTES: [(&str, u64); 8] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];
const SECONDS: [(&str, u64); 4] = [("min", 60), ("d", 86_400), ("h", 3_600), ("s", 1)];

const U32: u64 = u32::MAX as u64;
const DAY_S: u64 = 86_400;
/// SQ runs in less, but a phext could have no 2 MB then, and a body no 1 MB.
const MEMORY_MIN: u64 = 32 << 20;
const MEMORY_MAX: u64 = 64 << 30;
const STORAGE_MAX: u64 = 10_000_000_000_000;
/// SQ's own cap on connections.
const CONCURRENCY_MAX: u64 = 512;

/// `23-24`; 0 is none.
const HOURS_MAX: u64 = 24 * 24;

fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn some(value: u64) -> Option<u32> {
    (value > 0).then(|| narrow(value))
}

const fn row(
    name: &'static str,
    unit: Unit,
    range: (u64, u64),
    get: fn(&Limits) -> u64,
    set: fn(&mut Limits, u64),
) -> Field {
    Field { name, unit, low: range.0, high: range.1, zero: None, get, set }
}

impl Field {
    const fn zero(mut self, word: &'static str) -> Self {
        self.zero = Some(word);
        self
    }
}

/// Every limit, in the order in which they are shown.
pub const FIELDS: [Field; 21] = [
    row(
        "price-usd-month",
        Unit::Usd,
        (0, 100_000_000),
        |l| l.price_cents_month.into(),
        |l, v| l.price_cents_month = narrow(v),
    ),
    row("storage", Unit::Bytes, (1, STORAGE_MAX), |l| l.storage_bytes, |l, v| l.storage_bytes = v),
    row(
        "memory",
        Unit::Bytes,
        (MEMORY_MIN, MEMORY_MAX),
        |l| l.memory_bytes,
        |l, v| l.memory_bytes = v,
    ),
    row("phexts", Unit::Count, (1, U32), |l| l.phexts.into(), |l, v| l.phexts = narrow(v)),
    row("phext-max", Unit::Bytes, (0, STORAGE_MAX), |l| l.phext_bytes, |l, v| l.phext_bytes = v)
        .zero("auto"),
    row("body-max", Unit::Bytes, (0, STORAGE_MAX), |l| l.body_bytes, |l, v| l.body_bytes = v)
        .zero("auto"),
    row(
        "requests-per-s",
        Unit::PerSecond,
        (1, 1_000_000),
        |l| l.requests_per_s.into(),
        |l, v| l.requests_per_s = narrow(v),
    ),
    row("burst", Unit::Count, (1, 1_000_000), |l| l.burst.into(), |l, v| l.burst = narrow(v)),
    row(
        "write-cost",
        Unit::Count,
        (1, 1_000),
        |l| l.write_cost.into(),
        |l, v| l.write_cost = narrow(v),
    ),
    row(
        "concurrency",
        Unit::Count,
        (1, CONCURRENCY_MAX),
        |l| l.concurrency.into(),
        |l, v| l.concurrency = narrow(v),
    ),
    row(
        "requests-per-day",
        Unit::Count,
        (0, u64::MAX),
        |l| l.requests_per_day,
        |l, v| l.requests_per_day = v,
    )
    .zero("unlimited"),
    row(
        "requests-per-month",
        Unit::Count,
        (0, u64::MAX),
        |l| l.requests_per_month,
        |l, v| l.requests_per_month = v,
    )
    .zero("unlimited"),
    row(
        "writes-per-day",
        Unit::Count,
        (0, u64::MAX),
        |l| l.writes_per_day,
        |l, v| l.writes_per_day = v,
    )
    .zero("unlimited"),
    row(
        "wakes-per-hour",
        Unit::Count,
        (0, U32),
        |l| l.wakes_per_hour.into(),
        |l, v| l.wakes_per_hour = narrow(v),
    )
    .zero("unlimited"),
    row(
        "doze-after",
        Unit::Seconds,
        (0, 365 * DAY_S),
        |l| l.doze_after_s.unwrap_or(0).into(),
        |l, v| l.doze_after_s = some(v),
    )
    .zero("default"),
    row(
        "sleep-after",
        Unit::Seconds,
        (0, 365 * DAY_S),
        |l| l.sleep_after_s.unwrap_or(0).into(),
        |l, v| l.sleep_after_s = some(v),
    )
    .zero("default"),
    row("keep", Unit::Keep, (0, 2), keep_index, keep_set),
    row("warm-hours", Unit::Hours, (0, HOURS_MAX), hours_index, hours_set).zero("none"),
    row(
        "priority",
        Unit::Count,
        (0, 255),
        |l| l.priority.into(),
        |l, v| l.priority = u8::try_from(v).unwrap_or(u8::MAX),
    ),
    row(
        "snapshots-hourly",
        Unit::Count,
        (0, 1_000),
        |l| l.snapshots_hourly.into(),
        |l, v| l.snapshots_hourly = narrow(v),
    ),
    row(
        "snapshots-daily",
        Unit::Count,
        (0, 1_000),
        |l| l.snapshots_daily.into(),
        |l, v| l.snapshots_daily = narrow(v),
    ),
];

fn keep_index(limits: &Limits) -> u64 {
    KEEP.iter().zip(0..).find(|((_, keep), _)| *keep == limits.keep).map_or(0, |(_, i)| i)
}

fn keep_set(limits: &mut Limits, index: u64) {
    let row = usize::try_from(index).ok().and_then(|i| KEEP.get(i));
    limits.keep = row.map_or_else(KeepAwake::default, |(_, keep)| *keep);
}

/// 24 numbers per first hour, from 1 on.
fn hours_index(limits: &Limits) -> u64 {
    limits.warm_hours.map_or(0, |h| u64::from(h.from_h) * 24 + u64::from(h.to_h))
}

fn hours_of(index: u64) -> Option<WarmHours> {
    let (from, to) = (index.checked_sub(1)? / 24, (index - 1) % 24 + 1);
    Some(WarmHours { from_h: u8::try_from(from).ok()?, to_h: u8::try_from(to).ok()? })
}

fn hours_set(limits: &mut Limits, index: u64) {
    limits.warm_hours = hours_of(index);
}

impl Field {
    /// The field of that name.
    pub fn named(name: &str) -> Option<&'static Self> {
        FIELDS.iter().find(|f| f.name == name)
    }

    /// Writes the value that `text` says into `limits`, or tells what to write instead.
    pub fn apply(&self, text: &str, limits: &mut Limits) -> Result<(), String> {
        let value = match self.zero {
            Some(word) if word == text => Some(0),
            _ => self.unit.parse(text),
        };
        match value {
            None => Err(format!("{}: write {}", self.name, self.form())),
            Some(value) if !(self.low..=self.high).contains(&value) => Err(format!(
                "{}: must be within {} and {}",
                self.name,
                self.unit.format(self.low),
                self.unit.format(self.high)
            )),
            Some(value) => {
                (self.set)(limits, value);
                Ok(())
            }
        }
    }

    /// The value as it could be written.
    pub fn show(&self, limits: &Limits) -> String {
        match ((self.get)(limits), self.zero) {
            (0, Some(word)) => word.to_owned(),
            (value, _) => self.unit.format(value),
        }
    }

    fn form(&self) -> String {
        let form = match self.unit {
            Unit::Count => "a whole number such as 100 or 10_000",
            Unit::PerSecond => "a whole number such as 20 or 20/s",
            Unit::Bytes => "a size with its unit such as 25 MB, 64 MiB or 1 GB",
            Unit::Seconds => "a time with its unit such as 90 s, 5 min or 2 h",
            Unit::Usd => "US dollars such as 5 or 4.99",
            Unit::Keep => "sleep, doze or awake",
            Unit::Hours => "full hours of UTC such as 08-18 or 22-06",
        };
        self.zero.map_or_else(|| form.to_owned(), |word| format!("{form}, or {word}"))
    }
}

/// Reads a time such as `24h`, `90 s` or `0`.
pub fn parse_seconds(text: &str) -> Option<u64> {
    Unit::Seconds.parse(text)
}

impl Unit {
    fn parse(self, text: &str) -> Option<u64> {
        match self {
            Self::Count => whole(text),
            Self::PerSecond => whole(text.strip_suffix("/s").unwrap_or(text).trim_end()),
            Self::Bytes => scaled(text, &BYTES),
            Self::Seconds => scaled(text, &SECONDS),
            Self::Usd => cents(text),
            Self::Keep => KEEP.iter().zip(0..).find(|((word, _), _)| *word == text).map(|p| p.1),
            Self::Hours => hours(text),
        }
    }

    fn format(self, value: u64) -> String {
        match self {
            Self::Count | Self::PerSecond => value.to_string(),
            Self::Bytes => unscaled(value, &BYTES),
            Self::Seconds => unscaled(value, &SECONDS),
            Self::Usd if value.is_multiple_of(100) => (value / 100).to_string(),
            Self::Usd => format!("{}.{:02}", value / 100, value % 100),
            Self::Hours => hours_of(value)
                .map_or_else(String::new, |h| format!("{:02}-{:02}", h.from_h, h.to_h)),
            Self::Keep => {
                let row = usize::try_from(value).ok().and_then(|i| KEEP.get(i));
                row.map_or("", |(word, _)| *word).to_owned()
            }
        }
    }
}

/// Digits, `_` allowed between them.
fn whole(text: &str) -> Option<u64> {
    let edges = text.starts_with('_') || text.ends_with('_');
    let shape = !edges && text.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    shape.then(|| text.replace('_', "").parse().ok()).flatten()
}

/// A number with its unit. `25` is most likely a forgotten one, or half of a cut `25 MB`; 0 is 0.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let unit = units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)));
    let (number, factor) = unit.or_else(|| (text == "0").then_some((text, 1)))?;
    whole(number.trim_end())?.checked_mul(factor)
}

fn unscaled(value: u64, units: &[(&str, u64)]) -> String {
    let fits = |factor: u64| value >= factor && value.is_multiple_of(factor);
    let largest = units.iter().filter(|(_, factor)| fits(*factor)).max_by_key(|(_, f)| *f);
    largest.map_or_else(|| value.to_string(), |(unit, f)| format!("{} {unit}", value / f))
}

/// `08-18`: two full hours.
fn hours(text: &str) -> Option<u64> {
    let (from, to) = text.split_once('-')?;
    let two = |text: &str| (text.len() == 2).then(|| whole(text)).flatten();
    let (from, to) = (two(from.trim_end())?, two(to.trim_start())?);
    (from < 24 && (1..=24).contains(&to)).then_some(from * 24 + to)
}

fn cents(text: &str) -> Option<u64> {
    let (dollars, cents) = text.split_once('.').unwrap_or((text, "00"));
    let digits = cents.len() == 2 && cents.bytes().all(|b| b.is_ascii_digit());
    let cents: u64 = if digits { cents.parse().ok()? } else { return None };
    whole(dollars)?.checked_mul(100)?.checked_add(cents)
}

#[cfg(test)]
mod tests;
