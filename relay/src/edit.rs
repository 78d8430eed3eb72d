//! Edits of a registry's text. Pure: text in, text out.
//!
//! An edit changes the lines that it concerns and leaves every other byte as it was: comments,
//! spacing, order, line ends and other scrolls belong to the operator. An edit starts from a valid
//! registry, and its result is parsed again before it is returned, so that no edit can make a registry
//! invalid.
//!
//! | file | contents |
//! |---|---|
//! | `lines.rs` | finding, replacing and inserting lines of one scroll |
//! | `registry_file.rs` | applying an edit to the file, atomically |

use std::fmt::Write as _;

use libphext::phext::{self, Coordinate};
use protocol::{KeyHash, TenantId, TenantStatus, TierName, calendar};

use crate::registry::scroll::COORDINATE_MAX;
use crate::registry::{Faults, Registry, status_text};
use lines::{check_writable, find_lines, insert_after, replace_value};

mod lines;
pub mod registry_file;

/// The text of a valid registry.
#[derive(Debug, Clone)]
pub struct Document {
    text: String,
    registry: Registry,
}

/// Reasons why an edit is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EditError {
    /// The text is not a valid registry to begin with.
    #[error("the registry is invalid:\n{0}")]
    Invalid(Faults),
    /// The edited text would not be a valid registry.
    #[error("the change would make the registry invalid:\n{0}")]
    WouldBreak(Faults),
    /// No tenant of this name.
    #[error("there is no tenant {0}; see `relay registry list`")]
    NoTenant(TenantId),
    /// A tenant of this name at the given coordinate.
    #[error("tenant {0} already exists, at {1}")]
    TenantExists(TenantId, String),
    /// No tier of this name; with the names of all tiers.
    #[error("there is no tier {0}; the registry defines {1}")]
    NoTier(TierName, String),
    /// A name or value that can't be written as a line.
    #[error("{0} can't be written: a name has no `:` or `#`, a value has no line end or ` #`")]
    Unwritable(String),
    /// `tenant`, `key` or `key-sha256`, which other commands change.
    #[error(
        "{0} can't be set: keys are changed by `relay registry rotate`, names by `remove` and `add`"
    )]
    Fixed(String),
    /// The last of the 999 to the ninth coordinates is in use.
    #[error("no coordinate is free after the last scroll")]
    Full,
}

/// A tenant to add.
#[derive(Debug, Clone)]
pub struct NewTenant {
    /// Name of the tenant, unique in the registry.
    pub id: TenantId,
    /// The tier that it pays for.
    pub tier: TierName,
    /// Digest of its first key.
    pub key: KeyHash,
    /// Further lines as name and value: limits and `x-…`.
    pub lines: Vec<(String, String)>,
}

impl Document {
    /// Parses a text, which must be a valid registry.
    pub fn parse(text: &[u8]) -> Result<Self, EditError> {
        let registry = Registry::parse(text).map_err(EditError::Invalid)?;
        Ok(Self { text: String::from_utf8_lossy(text).into_owned(), registry })
    }

    /// The text with the operator's comments and spacing.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The registry that the text describes.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Adds a tenant in a new scroll after the last one.
    pub fn add(&self, new: &NewTenant) -> Result<Self, EditError> {
        if let Some(tenant) = self.registry.tenants.get(&new.id) {
            return Err(EditError::TenantExists(new.id.clone(), tenant.coordinate.to_string()));
        }
        if !self.registry.tiers.contains_key(&new.tier) {
            let names: Vec<_> = self.registry.tiers.keys().map(TierName::as_str).collect();
            return Err(EditError::NoTier(new.tier.clone(), names.join(", ")));
        }
        // The scroll begins with a line end, because editors display the break before it on its line.
        let mut scroll =
            format!("\ntenant: {}\nkey-sha256: {}\ntier: {}\n", new.id, new.key, new.tier);
        if new.lines.iter().all(|(name, _)| name != "status") {
            scroll.push_str("status: active\n");
        }
        for (name, value) in &new.lines {
            check_writable(name, value)?;
            let _ = writeln!(scroll, "{name}: {value}");
        }
        self.replace_scroll(free_coordinate(&self.text)?, &scroll)
    }

    /// Sets the tenant's status. A tenant without a `status` line keeps none if it has this status.
    pub fn set_status(&self, id: &TenantId, status: TenantStatus) -> Result<Self, EditError> {
        if self.registry.tenants.get(id).is_some_and(|tenant| tenant.status == status) {
            return Ok(self.clone());
        }
        self.set(id, &[("status".to_owned(), status_text(status).to_owned())])
    }

    /// Sets lines of a tenant: tier, status, a limit or `x-…`. An empty value removes the line.
    pub fn set(&self, id: &TenantId, values: &[(String, String)]) -> Result<Self, EditError> {
        let (coordinate, mut scroll) = self.scroll(id)?;
        for (name, value) in values {
            check_writable(name, value)?;
            match (find_lines(&scroll, |n| n == name).pop(), value.as_str()) {
                (Some(found), "") => scroll.replace_range(found.line, ""),
                (None, "") => {}
                (Some(found), value) => replace_value(&mut scroll, &found, value),
                (None, value) => {
                    // A new line joins the tenant's settings, before the operator's notes.
                    let last_setting = find_lines(&scroll, |n| !n.starts_with("x-")).pop();
                    insert_after(&mut scroll, last_setting, name, value);
                }
            }
        }
        self.replace_scroll(coordinate, &scroll)
    }

    /// Adds a key and lets the present ones end at `old_end_s`, unless they end earlier. Removes keys
    /// that have ended at `now_s`.
    pub fn rotate(
        &self,
        id: &TenantId,
        key: KeyHash,
        now_s: u64,
        old_end_s: u64,
    ) -> Result<Self, EditError> {
        let (coordinate, mut scroll) = self.scroll(id)?;
        let tenant = self.registry.tenants.get(id);
        let old_keys = tenant.map(|tenant| tenant.keys.as_slice()).unwrap_or_default();
        let key_lines = find_lines(&scroll, |name| name == "key" || name == "key-sha256");

        // The new key follows the last old one, or the tenant's name if there is none.
        let last_key = key_lines.last().cloned();
        let anchor = last_key.or_else(|| find_lines(&scroll, |name| name == "tenant").pop());
        insert_after(&mut scroll, anchor, "key-sha256", &key.to_string());

        // Backwards, so that the ranges of the lines before stay valid. The registry lists the keys
        // in the order of their lines.
        for (line, old_key) in key_lines.iter().zip(old_keys).rev() {
            if !old_key.is_live(now_s) {
                scroll.replace_range(line.line.clone(), "");
            } else if old_key.expires_s.is_none_or(|end_s| end_s > old_end_s) {
                let value = with_end(&scroll[line.value.clone()], old_end_s);
                replace_value(&mut scroll, line, &value);
            }
        }
        self.replace_scroll(coordinate, &scroll)
    }

    /// Empties the tenant's scroll. No other scroll moves.
    pub fn remove(&self, id: &TenantId) -> Result<Self, EditError> {
        let (coordinate, _) = self.scroll(id)?;
        self.replace_scroll(coordinate, "")
    }

    fn scroll(&self, id: &TenantId) -> Result<(Coordinate, String), EditError> {
        let tenant = self.registry.tenants.get(id);
        let tenant = tenant.ok_or_else(|| EditError::NoTenant(id.clone()))?;
        Ok((tenant.coordinate, phext::fetch(&self.text, tenant.coordinate)))
    }

    fn replace_scroll(&self, coordinate: Coordinate, scroll: &str) -> Result<Self, EditError> {
        let text = phext::replace(&self.text, coordinate, scroll);
        let registry = Registry::parse(text.as_bytes()).map_err(EditError::WouldBreak)?;
        Ok(Self { text, registry })
    }
}

/// The value of a key's line with its end replaced or added.
fn with_end(value: &str, end_s: u64) -> String {
    let key = value.split(';').next().unwrap_or_default().trim_end();
    format!("{key}; expires={}", calendar::rfc3339(end_s))
}

/// One of a coordinate's nine numbers, and the break that advances it.
type Dimension = (fn(&Coordinate) -> usize, fn(&mut Coordinate));

/// The dimensions from the scroll, which is used up first, to the library.
const DIMENSIONS: [Dimension; 9] = [
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

/// The coordinate after the last scroll that is not empty.
fn free_coordinate(text: &str) -> Result<Coordinate, EditError> {
    let scrolls = phext::phokenize(text);
    let last = scrolls.iter().rev().find(|scroll| !scroll.scroll.is_empty());
    let mut next = last.map_or_else(phext::default_coordinate, |scroll| scroll.coord);
    let has_room = |dimension: &&Dimension| dimension.0(&next) < COORDINATE_MAX;
    let (_, advance) = DIMENSIONS.iter().find(has_room).ok_or(EditError::Full)?;
    advance(&mut next);
    Ok(next)
}

#[cfg(test)]
mod tests;
