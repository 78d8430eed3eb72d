//! Tells whether a phext file is whole or truncated, and repairs a truncated one. Pure: bytes in,
//! finding out.
//!
//! SQ writes a phext by truncating its file and writing the whole text in one call, scrolls in the
//! order of their coordinates. If it is killed in the middle, or the disk is full, a *prefix* of the
//! text is left. A prefix of a phext is itself a valid phext that lacks its last scrolls. Only
//! knowledge of how files are written, and the last good copy, tell the two apart. The first rule
//! that applies decides:
//!
//! 1. Not UTF-8: **truncated**, because SQ writes nothing else. After a crash of the host, the same
//!    is true of a block of nothing but zeros (or of what follows the last whole block), unless the
//!    copy has as long a run of zeros. A file system may leave such a hole where the crash overtook a
//!    write. No other death leaves one, and otherwise a zero byte is text.
//! 2. Empty, and the copy is not: **truncated** between the two steps of a write.
//! 3. Ends in a delimiter: **truncated**, because SQ writes delimiters only before a scroll's text.
//! 4. Length not a multiple of 512: **whole**, whatever the copy holds. A kernel ends a partial write
//!    at a page or a block, never inside one.
//! 5. Does not end with the copy's last scroll: **truncated**. Without a copy, or with an empty one,
//!    that is true of any text: its last scroll may be half of one.
//! 6. Otherwise **whole**.
//!
//! After a crash of the host the file may also be older than its copy, because the copy was flushed to
//! disk and the file was not. The vault recognizes that by their times ([`Damage::Older`]) before it
//! calls [`examine`]. And the vault may have seen that the write of a file was finished; such a file
//! is whole, whatever its length ([`super::running`]).
//!
//! Two rules are wrong now and then, about a write of the last second before a death:
//!
//! - Rule 2, if a tenant removed its last scroll just before SQ was killed: the old text comes back.
//! - Rule 5, for one finished file in 512, if its *last* scroll was written since the copy: that
//!   scroll is replaced by the copy's, or lost.
//!
//! The repaired file has the scrolls before the point of truncation, which are newer than the copy,
//! and from there on those of the copy. The scroll at that point is the copy's or absent: a scroll is
//! whole or not there, also where there is no copy. The caller keeps the truncated file in
//! quarantine.
//!
//! All of this holds for local file systems of Linux (ext4, xfs, btrfs, tmpfs and the like). Others
//! (9p, FUSE, NFS) may end a partial write anywhere; there only rules 1 to 3 find it.

use std::collections::HashMap;

use libphext::phext::{self, Coordinate, PositionedScroll};

/// Smallest unit in which a kernel writes: the smallest block size. Pages have 4096 bytes.
const BLOCK_BYTES: usize = 512;

/// Result of an examination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Finding {
    /// The file was written to its end.
    Whole,
    /// The file is damaged and has to be replaced.
    Damaged {
        /// The rule that found it.
        damage: Damage,
        /// Content of the file that replaces it.
        repaired: Vec<u8>,
    },
}

/// The kind of crash that may have interrupted a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crash {
    /// SQ ended. The kernel still has everything that SQ wrote.
    Process,
    /// The host went down. Writes that were not flushed may be missing, or may be zeros.
    Host,
}

/// Evidence that a file is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// Rule 1: bytes that SQ can't have written.
    NotText,
    /// Rule 2: empty, and the copy is not.
    Emptied,
    /// Rule 3: the scroll after the last delimiter is not there.
    EndsInDelimiter,
    /// Rule 5: it does not end with the copy's last scroll.
    TailMissing,
    /// There is a copy and no file.
    Missing,
    /// A crash of the host threw the file back behind its copy.
    Older,
}

impl Damage {
    /// Every kind of evidence, in the order of the variants.
    pub const ALL: [Self; 6] = [
        Self::NotText,
        Self::Emptied,
        Self::EndsInDelimiter,
        Self::TailMissing,
        Self::Missing,
        Self::Older,
    ];

    /// Returns the text for logs, and the label of metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotText => "not text",
            Self::Emptied => "emptied",
            Self::EndsInDelimiter => "ends in a delimiter",
            Self::TailMissing => "tail missing",
            Self::Missing => "missing",
            Self::Older => "older than its copy",
        }
    }
}

/// Examines a file (`None` if there is none) beside its last good copy.
pub(super) fn examine(found: Option<&[u8]>, good: Option<&[u8]>, crash: Crash) -> Finding {
    let good = good.unwrap_or_default();
    let Some(found) = found else {
        return repair(Damage::Missing, "", good);
    };
    if found == good {
        return Finding::Whole;
    }
    // Rule 1: everything up to the first byte that SQ can't have written.
    let end = match crash {
        Crash::Process => found.len(),
        Crash::Host => hole(found, good).unwrap_or(found.len()),
    };
    let text = utf8_prefix(&found[..end]);
    if text.len() < found.len() {
        return repair(Damage::NotText, text, good);
    }
    // Rule 2.
    if text.is_empty() {
        return if good.is_empty() { Finding::Whole } else { repair(Damage::Emptied, text, good) };
    }
    // Rule 3.
    if ends_in_delimiter(text) {
        return repair(Damage::EndsInDelimiter, text, good);
    }
    // Rules 4 and 5.
    let may_be_partial = text.len().is_multiple_of(BLOCK_BYTES);
    if may_be_partial && last_scroll(text) != last_scroll(utf8_prefix(good)) {
        return repair(Damage::TailMissing, text, good);
    }
    Finding::Whole
}

/// Judges by its length whether a finished file could be taken for a truncated one (rules 2 and 5).
pub(super) fn is_suspicious_length(bytes: u64) -> bool {
    bytes.is_multiple_of(BLOCK_BYTES as u64)
}

/// Judges without the copy whether [`examine`] could find a file truncated, so that most copies are
/// made without reading the last one.
pub(super) fn may_be_truncated(found: &[u8]) -> bool {
    let text = utf8_prefix(found);
    text.len() < found.len() || text.len().is_multiple_of(BLOCK_BYTES) || ends_in_delimiter(text)
}

/// Returns the longest prefix that is UTF-8.
fn utf8_prefix(bytes: &[u8]) -> &str {
    match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
    }
}

/// Returns the start of the first block of nothing but zeros. If the copy has as many zeros in a row,
/// they are the tenant's text and there is no hole.
fn hole(bytes: &[u8], good: &[u8]) -> Option<usize> {
    let block = bytes.chunks(BLOCK_BYTES).position(|block| block.iter().all(|byte| *byte == 0))?;
    (longest_run_of_zeros(bytes) > longest_run_of_zeros(good)).then_some(block * BLOCK_BYTES)
}

fn longest_run_of_zeros(bytes: &[u8]) -> usize {
    bytes.split(|byte| *byte != 0).map(<[u8]>::len).max().unwrap_or(0)
}

fn ends_in_delimiter(text: &str) -> bool {
    // libphext counts a line break among the delimiters; in SQ it is text.
    let last = text.bytes().last();
    last.is_some_and(|byte| byte != phext::LINE_BREAK as u8 && phext::is_phext_break(byte))
}

fn scrolls(text: &str) -> Vec<PositionedScroll> {
    let mut scrolls = phext::phokenize(text);
    scrolls.retain(|scroll| !scroll.scroll.is_empty());
    scrolls
}

fn last_scroll(text: &str) -> Option<PositionedScroll> {
    scrolls(text).pop()
}

/// Joins the scrolls of `prefix`, which ends where the file was truncated, with the rest of the copy.
fn repair(damage: Damage, prefix: &str, good: &[u8]) -> Finding {
    let copy = scrolls(utf8_prefix(good));
    // 1. A copy that SQ did not write itself (of an upload, say) would not survive being taken apart
    //    and joined: it is used as it is.
    if join(&copy) != good {
        return Finding::Damaged { damage, repaired: good.to_vec() };
    }
    // 2. The last scroll of the prefix was truncated, unless the delimiter after it is there too.
    let mut scrolls = scrolls(prefix);
    if !ends_in_delimiter(prefix) {
        let truncated = scrolls.pop().map(|scroll| scroll.coord);
        scrolls.extend(copy.into_iter().filter(|copy| Some(copy.coord) >= truncated));
        return Finding::Damaged { damage, repaired: join(&scrolls) };
    }
    // 3. Everything after the last whole scroll comes from the copy.
    let last = scrolls.last().map(|scroll| scroll.coord);
    scrolls.extend(copy.into_iter().filter(|copy| Some(copy.coord) > last));
    Finding::Damaged { damage, repaired: join(&scrolls) }
}

fn join(scrolls: &[PositionedScroll]) -> Vec<u8> {
    let by_coordinate: HashMap<Coordinate, String> =
        scrolls.iter().map(|scroll| (scroll.coord, scroll.scroll.clone())).collect();
    phext::implode(by_coordinate).into_bytes()
}

#[cfg(test)]
mod tests;
