//! The limits of the registry: one table row for each field of [`Limits`], with the form in which it
//! is written and the range of its values.

use protocol::Limits;
use protocol::limits::{
    CONCURRENCY, IDLE_MAX_S, MEMORY_BYTES, PRICE_CENTS_MAX, SNAPSHOTS_MAX, WEIGHT_MAX, WEIGHT_MIN,
};

use super::unit::{
    AUTO, HOURS_MAX, UNLIMITED, Unit, byte_limit_from_number, byte_limit_to_number,
    count_limit_from_number, count_limit_to_number, hours_from_number, hours_to_number,
    keep_from_number, keep_to_number,
};

/// A limit as the registry writes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LimitField {
    /// Name of the limit's line.
    pub(crate) name: &'static str,
    unit: Unit,
    min: u64,
    max: u64,
    /// Words, each with the number that it stands for.
    words: &'static [(&'static str, u64)],
    get: fn(&Limits) -> u64,
    set: fn(&mut Limits, u64),
}

const U32_MAX: u64 = u32::MAX as u64;
const STORAGE_MAX: u64 = 10_000_000_000_000;
/// 10 Gbit/s for a whole day are a tenth of this.
const EGRESS_MAX: u64 = 1_000_000_000_000_000;
/// More requests than a gateway could count in a century.
const COUNT_MAX: u64 = 1_000_000_000_000_000;
/// Least sustained bytes per second: a response of a megabyte then takes as long as a tenant may owe.
const BYTES_PER_S_MIN: u64 = 1_000;

// These words stand for a 0 that can't be written as a number.
const ZERO_IS_AUTO: &[(&str, u64)] = &[("auto", 0)];
const ZERO_IS_DEFAULT: &[(&str, u64)] = &[("default", 0)];
const ZERO_IS_NONE: &[(&str, u64)] = &[("none", 0)];
/// Here 0 is a number like any other.
const COUNT_LIMIT_WORDS: &[(&str, u64)] = &[("unlimited", UNLIMITED)];
const BYTE_LIMIT_WORDS: &[(&str, u64)] = &[("auto", AUTO), ("unlimited", UNLIMITED)];

/// All limits, in the order in which they are displayed.
pub(crate) const FIELDS: [LimitField; 24] = [
    field(
        "price-usd-month",
        Unit::Usd,
        (0, PRICE_CENTS_MAX as u64),
        |l| l.price_cents_month.into(),
        |l, v| l.price_cents_month = saturate(v),
    ),
    field(
        "storage",
        Unit::Bytes,
        (1, STORAGE_MAX),
        |l| l.storage_bytes,
        |l, v| l.storage_bytes = v,
    ),
    field(
        "memory",
        Unit::Bytes,
        (*MEMORY_BYTES.start(), *MEMORY_BYTES.end()),
        |l| l.memory_bytes,
        |l, v| l.memory_bytes = v,
    ),
    field("phexts", Unit::Count, (1, U32_MAX), |l| l.phexts.into(), |l, v| l.phexts = saturate(v)),
    field("phext-max", Unit::Bytes, (1, STORAGE_MAX), |l| l.phext_bytes, |l, v| l.phext_bytes = v)
        .words(ZERO_IS_AUTO),
    field("body-max", Unit::Bytes, (1, STORAGE_MAX), |l| l.body_bytes, |l, v| l.body_bytes = v)
        .words(ZERO_IS_AUTO),
    field(
        "requests-per-s",
        Unit::PerSecond,
        (1, 1_000_000),
        |l| l.requests_per_s.into(),
        |l, v| l.requests_per_s = saturate(v),
    ),
    field("burst", Unit::Count, (1, 1_000_000), |l| l.burst.into(), |l, v| l.burst = saturate(v)),
    field(
        "write-cost",
        Unit::Count,
        (1, 1_000),
        |l| l.write_cost.into(),
        |l, v| l.write_cost = saturate(v),
    ),
    field(
        "concurrency",
        Unit::Count,
        (*CONCURRENCY.start() as u64, *CONCURRENCY.end() as u64),
        |l| l.concurrency.into(),
        |l, v| l.concurrency = saturate(v),
    ),
    field(
        "requests-per-day",
        Unit::Count,
        (0, COUNT_MAX),
        |l| count_limit_to_number(l.requests_per_day),
        |l, v| l.requests_per_day = count_limit_from_number(v),
    )
    .words(COUNT_LIMIT_WORDS),
    field(
        "requests-per-month",
        Unit::Count,
        (0, COUNT_MAX),
        |l| count_limit_to_number(l.requests_per_month),
        |l, v| l.requests_per_month = count_limit_from_number(v),
    )
    .words(COUNT_LIMIT_WORDS),
    field(
        "writes-per-day",
        Unit::Count,
        (0, COUNT_MAX),
        |l| count_limit_to_number(l.writes_per_day),
        |l, v| l.writes_per_day = count_limit_from_number(v),
    )
    .words(COUNT_LIMIT_WORDS),
    field(
        "bytes-per-s",
        Unit::BytesPerSecond,
        (BYTES_PER_S_MIN, STORAGE_MAX),
        |l| byte_limit_to_number(l.bytes_per_s),
        |l, v| l.bytes_per_s = byte_limit_from_number(v),
    )
    .words(BYTE_LIMIT_WORDS),
    field(
        "egress-per-day",
        Unit::Bytes,
        (0, EGRESS_MAX),
        |l| byte_limit_to_number(l.egress_bytes_per_day),
        |l, v| l.egress_bytes_per_day = byte_limit_from_number(v),
    )
    .words(BYTE_LIMIT_WORDS),
    field(
        "wakes-per-hour",
        Unit::Count,
        (0, U32_MAX),
        |l| count_limit_to_number(l.wakes_per_hour),
        |l, v| l.wakes_per_hour = count_limit_from_number(v),
    )
    .words(COUNT_LIMIT_WORDS),
    field(
        "doze-after",
        Unit::Seconds,
        (1, IDLE_MAX_S as u64),
        |l| l.doze_after_s.unwrap_or(0).into(),
        |l, v| l.doze_after_s = non_zero(v),
    )
    .words(ZERO_IS_DEFAULT),
    field(
        "sleep-after",
        Unit::Seconds,
        (1, IDLE_MAX_S as u64),
        |l| l.sleep_after_s.unwrap_or(0).into(),
        |l, v| l.sleep_after_s = non_zero(v),
    )
    .words(ZERO_IS_DEFAULT),
    field(
        "keep",
        Unit::Keep,
        (0, 2),
        |l| keep_to_number(l.keep),
        |l, v| l.keep = keep_from_number(v),
    ),
    field(
        "warm-hours",
        Unit::Hours,
        (0, HOURS_MAX),
        |l| hours_to_number(l.warm_hours),
        |l, v| l.warm_hours = hours_from_number(v),
    )
    .words(ZERO_IS_NONE),
    field(
        "priority",
        Unit::Count,
        (0, 255),
        |l| l.priority.into(),
        |l, v| l.priority = u8::try_from(v).unwrap_or(u8::MAX),
    ),
    field(
        "weight",
        Unit::Count,
        (WEIGHT_MIN as u64, WEIGHT_MAX as u64),
        |l| l.weight.into(),
        |l, v| l.weight = saturate(v),
    ),
    field(
        "snapshots-hourly",
        Unit::Count,
        (0, SNAPSHOTS_MAX as u64),
        |l| l.snapshots_hourly.into(),
        |l, v| l.snapshots_hourly = saturate(v),
    ),
    field(
        "snapshots-daily",
        Unit::Count,
        (0, SNAPSHOTS_MAX as u64),
        |l| l.snapshots_daily.into(),
        |l, v| l.snapshots_daily = saturate(v),
    ),
];

const fn field(
    name: &'static str,
    unit: Unit,
    (min, max): (u64, u64),
    get: fn(&Limits) -> u64,
    set: fn(&mut Limits, u64),
) -> LimitField {
    LimitField { name, unit, min, max, words: &[], get, set }
}

fn saturate(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn non_zero(value: u64) -> Option<u32> {
    if value > 0 { Some(saturate(value)) } else { None }
}

impl LimitField {
    /// Finds the limit whose lines have this name.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        FIELDS.iter().find(|field| field.name == name)
    }

    /// Sets the limit to a written value. The error describes the expected form or range.
    pub(crate) fn apply(&self, text: &str, limits: &mut Limits) -> Result<(), String> {
        if let Some((_, number)) = self.words.iter().find(|(word, _)| *word == text) {
            (self.set)(limits, *number);
            return Ok(());
        }
        let Some(number) = self.unit.parse(text) else {
            return Err(format!("{}: expected {}", self.name, self.expected()));
        };
        if !(self.min..=self.max).contains(&number) {
            let min = self.unit.format(self.min);
            let max = self.unit.format(self.max);
            let mut range = format!("{}: must be between {min} and {max}", self.name);
            self.append_words(&mut range);
            return Err(range);
        }
        (self.set)(limits, number);
        Ok(())
    }

    /// Formats the limit's value so that it could be written in the registry.
    pub(crate) fn format(&self, limits: &Limits) -> String {
        let number = (self.get)(limits);
        match self.words.iter().find(|(_, meant)| *meant == number) {
            Some((word, _)) => (*word).to_owned(),
            None => self.unit.format(number),
        }
    }

    fn expected(&self) -> String {
        let mut expected = self.unit.expected().to_owned();
        self.append_words(&mut expected);
        expected
    }

    fn append_words(&self, text: &mut String) {
        for (word, _) in self.words {
            text.push_str(", or ");
            text.push_str(word);
        }
    }

    const fn words(mut self, words: &'static [(&'static str, u64)]) -> Self {
        self.words = words;
        self
    }
}

#[cfg(test)]
mod tests;
