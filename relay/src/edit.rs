//! Edits of a registry's text. Pure: text in, text out.
//!
//! An edit changes the lines it is about and leaves every other byte as it was: comments, spacing,
//! order, line ends and other scrolls are the operator's. An edit starts from a valid registry and
//! its result is read again before it is handed out, so no edit can make a registry invalid.

use std::fmt::Write as _;
use std::ops::Range;

use libphext::phext::{self, Coordinate};
use protocol::calendar;
use protocol::{ApiKey, KeyHash, TenantId, TenantStatus, TierName};

use crate::registry::line::{self, Line};
use crate::registry::scroll::{COORDINATE_MAX, lines};
use crate::registry::{Faults, Registry};

pub mod registry_file;

/// A registry's text that has been read without a fault.
#[derive(Debug, Clone)]
pub struct Document {
    text: String,
    registry: Registry,
}

/// Why an edit was not made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EditError {
    /// The text was no valid registry before.
    #[error("the registry is not valid:\n{0}")]
    Invalid(Faults),
    /// What was asked for would make it invalid.
    #[error("that would make the registry invalid:\n{0}")]
    WouldBreak(Faults),
    /// No such tenant.
    #[error("there is no tenant {0}")]
    NoTenant(TenantId),
    /// The tenant is there.
    #[error("tenant {0} is there already, at {1}")]
    TenantExists(TenantId, String),
    /// No such tier.
    #[error("there is no tier {0}; there are: {1}")]
    NoTier(TierName, String),
    /// Name or value can't stand in a line.
    #[error("{0}: a name has no `:` or `#`, a value no line end or ` #`")]
    Unwritable(String),
    /// `tenant`, `key` and `key-sha256` have commands of their own.
    #[error("{0} can't be set; see `relay registry --help`")]
    Fixed(String),
    /// 999 to the ninth scrolls.
    #[error("there is no room after the last scroll")]
    Full,
}

/// A tenant to be added.
#[derive(Debug, Clone)]
pub struct NewTenant {
    /// Its name.
    pub id: TenantId,
    /// What it pays for.
    pub tier: TierName,
    /// Digest of its key.
    pub key: KeyHash,
    /// Further lines: limits and `x-…`.
    pub lines: Vec<(String, String)>,
}

impl Document {
    /// Takes a text that must be a valid registry.
    pub fn read(text: &[u8]) -> Result<Self, EditError> {
        let registry = Registry::read(text).map_err(EditError::Invalid)?;
        Ok(Self { text: String::from_utf8_lossy(text).into_owned(), registry })
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What it says.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Adds a tenant in a scroll of its own after the last one.
    pub fn add(&self, new: &NewTenant) -> Result<Self, EditError> {
        if let Some(tenant) = self.registry.tenants.get(&new.id) {
            return Err(EditError::TenantExists(new.id.clone(), tenant.at.to_string()));
        }
        if !self.registry.tiers.contains_key(&new.tier) {
            let names: Vec<_> = self.registry.tiers.keys().map(TierName::as_str).collect();
            return Err(EditError::NoTier(new.tier.clone(), names.join(", ")));
        }
        // The scroll starts on a line of its own: an editor shows the break before it.
        let mut scroll =
            format!("\ntenant: {}\nkey-sha256: {}\ntier: {}\n", new.id, new.key, new.tier);
        if new.lines.iter().all(|(name, _)| name != "status") {
            scroll.push_str("status: active\n");
        }
        for (name, value) in &new.lines {
            settable(name, value)?;
            let _ = writeln!(scroll, "{name}: {value}");
        }
        self.with_scroll(free_coordinate(&self.text)?, &scroll)
    }

    /// Sets the tenant's status; the same document when it has it already.
    pub fn status(&self, id: &TenantId, status: TenantStatus) -> Result<Self, EditError> {
        if self.registry.tenants.get(id).is_some_and(|t| t.status == status) {
            return Ok(self.clone());
        }
        let word = match status {
            TenantStatus::Active => "active",
            TenantStatus::Suspended => "suspended",
        };
        self.set(id, &[("status".to_owned(), word.to_owned())])
    }

    /// Sets lines of a tenant: its tier, its status, a limit, an `x-…`. An empty value takes the
    /// line out.
    pub fn set(&self, id: &TenantId, values: &[(String, String)]) -> Result<Self, EditError> {
        let (at, mut scroll) = self.scroll(id)?;
        for (name, value) in values {
            settable(name, value)?;
            match (find(&scroll, |n| n == name).pop(), value.as_str()) {
                (Some(found), "") => scroll.replace_range(found.line, ""),
                (None, "") => {}
                (Some(found), value) => replace_value(&mut scroll, &found, value),
                (None, value) => {
                    let last = find(&scroll, |n| !n.starts_with("x-")).pop();
                    insert_after(&mut scroll, last, name, value);
                }
            }
        }
        self.with_scroll(at, &scroll)
    }

    /// Adds a key and lets those that are there end at `old_end_s`, unless they end before.
    /// Keys that have ended at `now_s` are taken out.
    pub fn rotate(
        &self,
        id: &TenantId,
        key: KeyHash,
        now_s: u64,
        old_end_s: u64,
    ) -> Result<Self, EditError> {
        let (at, mut scroll) = self.scroll(id)?;
        let tenant = self.registry.tenants.get(id);
        let keys = tenant.map(|t| t.keys.as_slice()).unwrap_or_default();
        let found = find(&scroll, |n| n == "key" || n == "key-sha256");
        let anchor = found.last().cloned().or_else(|| find(&scroll, |n| n == "tenant").pop());
        insert_after(&mut scroll, anchor, "key-sha256", &key.to_string());
        // From the last to the first, so that the ranges before stay right.
        for (found, key) in found.iter().zip(keys).rev() {
            if !key.live(now_s) {
                scroll.replace_range(found.line.clone(), "");
            } else if key.expires_s.is_none_or(|end| end > old_end_s) {
                let value = ending(&scroll[found.value.clone()], old_end_s);
                replace_value(&mut scroll, found, &value);
            }
        }
        self.with_scroll(at, &scroll)
    }

    /// Empties the tenant's scroll. Its coordinate stays free; no other scroll moves.
    pub fn remove(&self, id: &TenantId) -> Result<Self, EditError> {
        let (at, _) = self.scroll(id)?;
        self.with_scroll(at, "")
    }

    fn scroll(&self, id: &TenantId) -> Result<(Coordinate, String), EditError> {
        let tenant =
            self.registry.tenants.get(id).ok_or_else(|| EditError::NoTenant(id.clone()))?;
        Ok((tenant.at, phext::fetch(&self.text, tenant.at)))
    }

    fn with_scroll(&self, at: Coordinate, scroll: &str) -> Result<Self, EditError> {
        let text = phext::replace(&self.text, at, scroll);
        let registry = Registry::read(text.as_bytes()).map_err(EditError::WouldBreak)?;
        Ok(Self { text, registry })
    }
}

/// A new key, its randomness given by the caller, and the digest to store.
pub fn new_key(random: [u8; 16]) -> (ApiKey, KeyHash) {
    let key = ApiKey::from_random(random);
    let hash = key.hash();
    (key, hash)
}

/// A field's line within a scroll, and the value within it.
#[derive(Debug, Clone)]
struct Found {
    line: Range<usize>,
    value: Range<usize>,
}

fn find(scroll: &str, wanted: impl Fn(&str) -> bool) -> Vec<Found> {
    let field = |(range, text): (Range<usize>, &str)| match line::split(text) {
        Line::Field { name, value } if wanted(&text[name.clone()]) => {
            let value = range.start + value.start..range.start + value.end;
            Some(Found { line: range, value })
        }
        _ => None,
    };
    lines(scroll).filter_map(field).collect()
}

fn replace_value(scroll: &mut String, found: &Found, value: &str) {
    // `name:` without a space after it reads badly once it has a value.
    let bare = scroll[..found.value.start].ends_with(':') && found.value.is_empty();
    scroll.replace_range(found.value.clone(), &format!("{}{value}", if bare { " " } else { "" }));
}

/// Puts a line after `anchor` with its indentation and line end, or at the scroll's end.
fn insert_after(scroll: &mut String, anchor: Option<Found>, name: &str, value: &str) {
    let at = anchor.as_ref().map_or(scroll.len(), |f| f.line.end);
    let model = anchor.map(|f| scroll[f.line].to_owned()).unwrap_or_default();
    let indent: String = model.chars().take_while(|c| *c == ' ' || *c == '\t').collect();
    let end = if model.ends_with("\r\n") { "\r\n" } else { "\n" };
    // The last line of a scroll may have no end.
    let before = if at > 0 && !scroll[..at].ends_with('\n') { "\n" } else { "" };
    scroll.insert_str(at, &format!("{before}{indent}{name}: {value}{end}"));
}

/// `value` with its end set, whatever end it had.
fn ending(value: &str, end_s: u64) -> String {
    let key = value.split(';').next().unwrap_or_default().trim_end();
    format!("{key}; expires={}", calendar::rfc3339(end_s))
}

fn settable(name: &str, value: &str) -> Result<(), EditError> {
    if ["tenant", "key", "key-sha256"].contains(&name) {
        return Err(EditError::Fixed(name.to_owned()));
    }
    let written = format!("{name}: {value}");
    let whole = Line::Field { name: 0..name.len(), value: name.len() + 2..written.len() };
    let one_line = !written.contains(['\n', '\r']) && !written.bytes().any(phext::is_phext_break);
    let good = one_line && (value.is_empty() || line::split(&written) == whole);
    if good { Ok(()) } else { Err(EditError::Unwritable(name.chars().take(40).collect())) }
}

/// One of a coordinate's nine numbers, and the break that raises it.
type Step = (fn(&Coordinate) -> usize, fn(&mut Coordinate));

/// The coordinate after the last scroll that holds anything.
fn free_coordinate(text: &str) -> Result<Coordinate, EditError> {
    let scrolls = phext::phokenize(text);
    let last = scrolls.iter().rev().find(|s| !s.scroll.is_empty());
    let mut next = last.map_or_else(phext::default_coordinate, |s| s.coord);
    let steps: [Step; 9] = [
        (|c| c.x.scroll, Coordinate::scroll_break),
        (|c| c.x.section, Coordinate::section_break),
        (|c| c.x.chapter, Coordinate::chapter_break),
        (|c| c.y.book, Coordinate::book_break),
        (|c| c.y.volume, Coordinate::volume_break),
        (|c| c.y.collection, Coordinate::collection_break),
        (|c| c.z.series, Coordinate::series_break),
        (|c| c.z.shelf, Coordinate::shelf_break),
        (|c| c.z.library, Coordinate::library_break),
    ];
    let step = steps.iter().find(|(number, _)| number(&next) < COORDINATE_MAX);
    let (_, advance) = step.ok_or(EditError::Full)?;
    advance(&mut next);
    Ok(next)
}

#[cfg(test)]
mod tests;
