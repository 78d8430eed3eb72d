//! Detection of a registry that has lost its end. Pure.
//!
//! A registry that is truncated where a line or a scroll ends is still valid, and every tenant after
//! that point would be refused at every gateway. A text is truncated while a writer stalls in the
//! middle of the file, and permanently when an SQ is killed during an update. Renaming a complete file
//! over the old one never truncates.
//!
//! ```text
//! text ──► looks truncated? ── no ──► accepted
//!               └── yes ──► pending ── unchanged for the hold time ──► accepted
//!                            │   ▲
//!                            └───┘ the source is being changed: the time starts again
//! another text, or none: the pending one is discarded
//! ```
//!
//! One key less, as after the removal of a tenant, is accepted at once. The same holds for any number
//! of keys that are suspended or given an end, since they are still in the text.

use std::collections::HashSet;
use std::fmt;
use std::time::{Duration, Instant};

use protocol::KeyHash;

use super::{Key, Registry};

/// Keys that may disappear at once from a registry of any size.
const MISSING_MAX: usize = 3;
/// Reciprocal of the share of keys that may disappear at once from a large registry: a tenth.
const MISSING_MAX_DIVISOR: usize = 10;

/// A sign that a registry is truncated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspicion {
    /// More live keys have disappeared at once than is usual.
    MissingKeys {
        /// Live keys of the previous registry that are absent from the new one.
        missing: usize,
        /// All live keys of the previous registry.
        live: usize,
    },
    /// The last line has no line end, while that of the previous registry had one.
    UnterminatedLine,
}

/// A valid registry with the bytes that it was parsed from.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) bytes: Vec<u8>,
    pub(crate) registry: Registry,
}

/// Delays the acceptance of a registry that looks truncated.
#[derive(Debug)]
pub(crate) struct TruncationGuard {
    /// Time for which a suspicious text must stay unchanged; zero accepts every text at once.
    hold: Duration,
    pending: Option<Pending>,
}

#[derive(Debug)]
struct Pending {
    candidate: Candidate,
    unchanged_since: Instant,
}

impl Suspicion {
    /// Compares a registry with its predecessor. Keys that have ended at `now_s` are not missed.
    pub(crate) fn between(before: &Registry, after: &Registry, now_s: u64) -> Option<Self> {
        let remaining: HashSet<KeyHash> = after.keys().map(|key| key.hash).collect();
        let live: Vec<&Key> = before.keys().filter(|key| key.is_live(now_s)).collect();
        let missing = live.iter().filter(|key| !remaining.contains(&key.hash)).count();
        let live = live.len();

        let too_many = missing > MISSING_MAX.max(live / MISSING_MAX_DIVISOR);
        let emptied = remaining.is_empty() && live > 1;
        if too_many || emptied {
            return Some(Self::MissingKeys { missing, live });
        }
        // A registry without tenants has nothing to lose: its successor may be new.
        let lost_line_end = !before.unterminated && after.unterminated;
        if lost_line_end && !before.tenants.is_empty() {
            return Some(Self::UnterminatedLine);
        }
        None
    }
}

impl fmt::Display for Suspicion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingKeys { missing, live } => {
                write!(f, "{missing} of {live} live keys are missing")
            }
            Self::UnterminatedLine => f.write_str("the last line has no line end"),
        }
    }
}

impl TruncationGuard {
    pub(crate) fn new(hold: Duration) -> Self {
        Self { hold, pending: None }
    }

    /// Checks a new text against the registry in use: returns it if it is accepted, or makes it
    /// pending.
    pub(crate) fn check(
        &mut self,
        current: &Registry,
        candidate: Candidate,
        now_s: u64,
        now: Instant,
    ) -> Result<Candidate, Suspicion> {
        self.pending = None;
        match Suspicion::between(current, &candidate.registry, now_s) {
            Some(suspicion) if !self.hold.is_zero() => {
                self.pending = Some(Pending { candidate, unchanged_since: now });
                Err(suspicion)
            }
            _ => Ok(candidate),
        }
    }

    /// Notes that the source is being changed, which starts the hold time again.
    pub(crate) fn on_changing(&mut self, now: Instant) {
        if let Some(pending) = &mut self.pending {
            pending.unchanged_since = now;
        }
    }

    /// Notes that the source is unchanged. Returns the pending text once its hold time has passed.
    pub(crate) fn on_unchanged(&mut self, now: Instant) -> Option<Candidate> {
        let hold = self.hold;
        let is_due = |pending: &mut Pending| now.duration_since(pending.unchanged_since) >= hold;
        self.pending.take_if(is_due).map(|pending| pending.candidate)
    }

    /// Discards the pending text: the source is gone or has an invalid text.
    pub(crate) fn discard(&mut self) {
        self.pending = None;
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

    fn parse(text: &str) -> Registry {
        Registry::parse(text.as_bytes()).unwrap()
    }

    fn candidate(text: &str) -> Candidate {
        Candidate { bytes: Vec::new(), registry: parse(text) }
    }

    fn suspicion(before: &str, after: &str) -> Option<Suspicion> {
        Suspicion::between(&parse(before), &parse(after), 1_000)
    }

    #[test]
    fn only_many_missing_keys_are_suspicious() {
        for (before, after, is_suspicious) in [
            (1, 0, false),
            (2, 1, false),
            (2, 0, true),
            (4, 1, false),
            (5, 1, true),
            (100, 90, false),
            (100, 89, true),
        ] {
            let found = suspicion(&text(0..before), &text(0..after));
            assert_eq!(found.is_some(), is_suspicious, "{before} to {after}");
        }
    }

    #[test]
    fn ended_and_suspended_keys_are_not_missed() {
        let before = text(0..50);
        let few = text(48..50);
        let ended = before.replace("\ntier: free\n", "; expires=1970-01-01\ntier: free\n");
        let ended = ended.replace("tiers; expires=1970-01-01", "tiers");
        let suspended = before.replace("\n\u{17}", "\nstatus: suspended\n\u{17}");
        let suspended = suspended.replacen("status: suspended\n", "", 1);
        assert_eq!(suspicion(&ended, &few), None);
        assert_eq!(suspicion(&before, &ended), None, "the keys were given an end");
        assert_eq!(suspicion(&before, &suspended), None);
        assert!(suspicion(&suspended, &few).is_some());
    }

    #[test]
    fn losing_the_last_line_end_is_suspicious() {
        let terminated = text(0..9);
        let unterminated = text(0..9) + "burst: 10";
        let other_unterminated = text(0..9) + "burst: 100";
        assert_eq!(suspicion(&terminated, &unterminated), Some(Suspicion::UnterminatedLine));
        assert_eq!(suspicion(&unterminated, &other_unterminated), None);
        assert_eq!(suspicion(&unterminated, &terminated), None);
        assert_eq!(suspicion(&text([]), &unterminated), None, "there was no tenant before");
    }

    #[test]
    fn a_pending_text_is_accepted_after_the_hold_time() {
        let start = Instant::now();
        let s = Duration::from_secs;
        let mut guard = TruncationGuard::new(s(5));
        let current = parse(&text(0..9));
        let truncated = text(0..2);
        assert!(guard.check(&current, candidate(&truncated), 0, start).is_err());
        assert!(guard.on_unchanged(start + s(4)).is_none());
        guard.on_changing(start + s(4));
        assert!(guard.on_unchanged(start + s(8)).is_none(), "the source was being changed");
        assert_eq!(guard.on_unchanged(start + s(9)).unwrap().registry, parse(&truncated));
        assert!(guard.on_unchanged(start + s(99)).is_none(), "it is accepted once");
    }

    #[test]
    fn a_newer_text_replaces_the_pending_one() {
        let start = Instant::now();
        let s = Duration::from_secs;
        let mut guard = TruncationGuard::new(s(5));
        let current = parse(&text(0..9));
        assert!(guard.check(&current, candidate(&text(0..2)), 0, start).is_err());
        assert!(guard.check(&current, candidate(&text(0..8)), 0, start + s(1)).is_ok());
        assert!(guard.on_unchanged(start + s(99)).is_none());
    }

    #[test]
    fn without_a_hold_time_every_text_is_accepted() {
        let mut guard = TruncationGuard::new(Duration::ZERO);
        let current = parse(&text(0..9));
        assert!(guard.check(&current, candidate(&text(0..2)), 0, Instant::now()).is_ok());
    }

    proptest! {
        /// Every truncation is refused, held back, or loses no more than a few keys.
        #[test]
        fn truncation_loses_few_keys(tenants in 0..40_u16, cut: prop::sample::Index) {
            let complete = text(0..tenants);
            let truncated = &complete[..cut.index(complete.len() + 1)];
            let before = parse(&complete);
            if let Ok(after) = Registry::parse(truncated.as_bytes())
                && Suspicion::between(&before, &after, 0).is_none()
            {
                let missing = before.keys().count() - after.keys().count();
                prop_assert!(missing <= MISSING_MAX.max(usize::from(tenants) / MISSING_MAX_DIVISOR));
                for (id, tenant) in &after.tenants {
                    prop_assert_eq!(&tenant.limits, &before.tenants[id].limits);
                }
            }
        }
    }
}
