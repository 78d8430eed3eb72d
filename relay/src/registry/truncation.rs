//! Whether a text that is a valid registry may be believed at once. Pure.
//!
//! A registry that is cut where a scroll or a line ends is a valid one, and everybody after the cut
//! would be refused at every gateway. Texts are cut while a writer stalls in the middle of the file,
//! and for good when an SQ is killed in an update. Renaming a whole file over the old one cuts none.
//!
//! ```text
//! text ──► looks cut? ── no ──► believed
//!              └── yes ──► held ── unchanged for `patience` ──► believed
//!                           │  ▲
//!                           └──┘ still being written: from the beginning
//! another text, or none: what was held is forgotten
//! ```
//!
//! One key less, as when a tenant is removed, is believed at once; so is any number of keys that are
//! suspended or given an end: they are still there.

use std::collections::HashSet;
use std::fmt;
use std::time::{Duration, Instant};

use protocol::KeyHash;

use crate::registry::Registry;

/// Keys that may go at once in a registry of any size.
const LOSS: usize = 3;
/// In a large one, one in so many.
const LOSS_PART: usize = 10;

/// Why a text looks cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspicion {
    /// Many keys that are good are not in it.
    Lost {
        /// How many.
        lost: usize,
        /// Of how many.
        live: usize,
    },
    /// Its last line has no end, and the one before it had.
    OpenLine,
}

/// A text and what it says.
#[derive(Debug)]
pub struct Text {
    /// As it was read.
    pub bytes: Vec<u8>,
    /// What it says.
    pub registry: Registry,
}

/// Holds what looks cut.
#[derive(Debug)]
pub struct Guard {
    patience: Duration,
    held: Option<(Text, Instant)>,
}

impl Suspicion {
    /// Whether `after` looks cut to those who know `before`. Keys that have ended at `now_s` are no
    /// loss.
    pub fn of(before: &Registry, after: &Registry, now_s: u64) -> Option<Self> {
        let there: HashSet<KeyHash> = keys(after).map(|(hash, _)| hash).collect();
        let good = keys(before).filter(|(_, end)| end.is_none_or(|end| now_s < end));
        let (mut live, mut lost) = (0, 0);
        for (hash, _) in good {
            live += 1;
            lost += usize::from(!there.contains(&hash));
        }
        let emptied = there.is_empty() && live > 1;
        if lost > LOSS.max(live / LOSS_PART) || emptied {
            return Some(Self::Lost { lost, live });
        }
        (!before.tenants.is_empty() && !before.open_line && after.open_line)
            .then_some(Self::OpenLine)
    }
}

fn keys(registry: &Registry) -> impl Iterator<Item = (KeyHash, Option<u64>)> {
    registry.tenants.values().flat_map(|t| &t.keys).map(|k| (k.hash, k.expires_s))
}

impl fmt::Display for Suspicion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { lost, live } => write!(f, "{lost} of {live} good keys are not in it"),
            Self::OpenLine => f.write_str("it ends in the middle of a line"),
        }
    }
}

impl Guard {
    /// A guard that believes what looks cut when it has not changed for `patience`.
    pub fn new(patience: Duration) -> Self {
        Self { patience, held: None }
    }

    /// Judges a text against what is answered now: gives it back to be believed, or holds it.
    pub fn judge(
        &mut self,
        before: &Registry,
        text: Text,
        now_s: u64,
        now: Instant,
    ) -> Result<Text, Suspicion> {
        self.held = None;
        match Suspicion::of(before, &text.registry, now_s) {
            Some(suspicion) if !self.patience.is_zero() => {
                self.held = Some((text, now));
                Err(suspicion)
            }
            _ => Ok(text),
        }
    }

    /// The source is being changed: what is held has to wait anew.
    pub fn unsettled(&mut self, now: Instant) {
        if let Some((_, since)) = &mut self.held {
            *since = now;
        }
    }

    /// The source says what it said before: what has been held long enough is believed.
    pub fn unchanged(&mut self, now: Instant) -> Option<Text> {
        let patience = self.patience;
        self.held.take_if(|(_, since)| now.duration_since(*since) >= patience).map(|(text, _)| text)
    }

    /// The source says something else, or nothing.
    pub fn forget(&mut self) {
        self.held = None;
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn text(keys: impl IntoIterator<Item = u16>) -> String {
        let mut text = "tiers\ntier: free\n".to_owned();
        for n in keys {
            let hash = KeyHash::of(&n.to_be_bytes());
            let _ = write!(text, "\u{17}\ntenant: t{n}\nkey-sha256: {hash}\ntier: free\n");
        }
        text
    }

    fn read(text: &str) -> Registry {
        Registry::read(text.as_bytes()).unwrap()
    }

    fn suspicion(before: &str, after: &str) -> Option<Suspicion> {
        Suspicion::of(&read(before), &read(after), 1_000)
    }

    #[test]
    fn a_few_keys_may_go_at_once_and_many_may_not() {
        for (before, after, suspect) in [
            (1, 0, false),
            (2, 1, false),
            (2, 0, true),
            (4, 1, false),
            (5, 1, true),
            (100, 90, false),
            (100, 89, true),
        ] {
            let found = suspicion(&text(0..before), &text(0..after));
            assert_eq!(found.is_some(), suspect, "{before} to {after}");
        }
    }

    #[test]
    fn keys_that_have_ended_or_are_suspended_are_no_loss() {
        let (before, few) = (text(0..50), text(48..50));
        let ended = before.replace("\ntier: free\n", "; expires=1970-01-01\ntier: free\n");
        let ended = ended.replace("tiers; expires=1970-01-01", "tiers");
        let suspended = before.replace("\n\u{17}", "\nstatus: suspended\n\u{17}");
        let suspended = suspended.replacen("status: suspended\n", "", 1);
        assert_eq!(suspicion(&ended, &few), None);
        assert_eq!(suspicion(&before, &ended), None, "they were given an end");
        assert_eq!(suspicion(&before, &suspended), None);
        assert!(suspicion(&suspended, &few).is_some());
    }

    #[test]
    fn a_last_line_that_loses_its_end_is_suspicious_but_not_where_it_never_had_one() {
        let (whole, open) = (text(0..9), text(0..9) + "burst: 10");
        assert_eq!(suspicion(&whole, &open), Some(Suspicion::OpenLine));
        assert_eq!(suspicion(&open, &(text(0..9) + "burst: 100")), None);
        assert_eq!(suspicion(&open, &whole), None);
        assert_eq!(suspicion(&text([]), &open), None, "there was nobody before");
    }

    #[test]
    fn what_is_held_is_believed_when_it_has_not_changed_for_long_enough() {
        let (start, s) = (Instant::now(), Duration::from_secs);
        let mut guard = Guard::new(s(5));
        let before = read(&text(0..9));
        let cut = || Text { bytes: Vec::new(), registry: read(&text(0..2)) };
        assert!(guard.judge(&before, cut(), 0, start).is_err());
        assert!(guard.unchanged(start + s(4)).is_none());
        guard.unsettled(start + s(4));
        assert!(guard.unchanged(start + s(8)).is_none(), "it is still being written");
        assert_eq!(guard.unchanged(start + s(9)).unwrap().registry, cut().registry);
        assert!(guard.unchanged(start + s(99)).is_none(), "once");

        assert!(guard.judge(&before, cut(), 0, start).is_err());
        let whole = Text { bytes: Vec::new(), registry: read(&text(0..8)) };
        assert!(guard.judge(&before, whole, 0, start + s(1)).is_ok());
        assert!(guard.unchanged(start + s(99)).is_none(), "it has been replaced");
        assert!(Guard::new(s(0)).judge(&before, cut(), 0, start).is_ok(), "no patience");
    }

    proptest! {
        /// Whatever a cut leaves is refused, held, or costs no more than a few keys.
        #[test]
        fn a_cut_costs_a_few_keys_at_most(tenants in 0..40_u16, cut: prop::sample::Index) {
            let whole = text(0..tenants);
            let cut = &whole[..cut.index(whole.len() + 1)];
            let before = read(&whole);
            if let Ok(after) = Registry::read(cut.as_bytes())
                && Suspicion::of(&before, &after, 0).is_none()
            {
                let lost = before.keys() - after.keys();
                prop_assert!(lost <= LOSS.max(usize::from(tenants) / LOSS_PART));
                for (id, tenant) in &after.tenants {
                    prop_assert_eq!(&tenant.limits, &before.tenants[id].limits);
                }
            }
        }
    }
}
