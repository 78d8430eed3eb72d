//! Follows the registry: one long poll per VM, and how far it has come.
//!
//! ```text
//!           tick                answer: names what changed, or "reset"
//!  Resting ──────► Polling ──────────────────────────────► Polling (asked again at once)
//!     ▲               │ failure
//!     └───────────────┘ back-off
//! ```
//!
//! The position is kept in shared data, so that a VM which was reloaded goes on where its
//! predecessor stopped. It promises: of all verdicts in shared data with this epoch, those that
//! changed after `floor` and up to `revision` are marked as gone or are newer.

use std::fmt::Write as _;

use protocol::verify::ChangesResponse;
use protocol::{Epoch, headers};
use serde::{Deserialize, Serialize};

use crate::shared::{Shared, update};

/// Where the position stands in shared data.
const POSITION_KEY: &str = "v1/feed";
/// First pause after a failure; doubles up to [`BACK_OFF_MAX_NS`].
const BACK_OFF_NS: u64 = 50_000_000;
/// A relay that is back is heard of within this, so that revocations still bite within a second.
const BACK_OFF_MAX_NS: u64 = 500_000_000;

/// How far the registry has been followed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    /// The relay's life.
    #[serde(rename = "e")]
    pub(crate) epoch: Epoch,
    /// Everything up to here is dealt with.
    #[serde(rename = "r")]
    pub(crate) revision: u64,
    /// From here on nothing was missed.
    #[serde(rename = "f")]
    pub(crate) floor: u64,
    /// When the relay was last heard, nanoseconds since 1970.
    #[serde(rename = "c")]
    pub(crate) contact_ns: u64,
}

impl Position {
    /// Whether a verdict of this epoch and revision is still right as far as is known here.
    pub(crate) fn covers(&self, epoch: &Epoch, revision: u64) -> bool {
        self.epoch == *epoch && revision >= self.floor
    }

    /// What two VMs know together. A gap between them can't be bridged: then the later counts alone,
    /// and of two lives of the relay `self`.
    fn merge(&self, other: &Self) -> Self {
        let contact_ns = self.contact_ns.max(other.contact_ns);
        if self.epoch != other.epoch || self.floor > other.revision {
            return Self { contact_ns, ..self.clone() };
        }
        if other.floor > self.revision {
            return Self { contact_ns, ..other.clone() };
        }
        Self {
            epoch: self.epoch.clone(),
            revision: self.revision.max(other.revision),
            floor: self.floor.min(other.floor),
            contact_ns,
        }
    }
}

/// What an answer of the long poll means for the verdicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    /// What the answer names has changed.
    Changed,
    /// Anything may have changed.
    Reset,
}

/// The follower of one VM.
#[derive(Debug, Default)]
pub(crate) struct ChangesFeed {
    position: Option<Position>,
    /// A poll was answered in this life: what another life has left says nothing of now.
    answered: bool,
    polling: bool,
    failures: u32,
    rest_until_ns: u64,
    contact_ns: u64,
}

impl ChangesFeed {
    /// Takes up the position that another VM, or this one's predecessor, has left.
    pub(crate) fn start(shared: &dyn Shared) -> Self {
        let position = read(shared);
        let contact_ns = position.as_ref().map_or(0, |p| p.contact_ns);
        Self { position, contact_ns, ..Self::default() }
    }

    /// The position, once there is one.
    pub(crate) fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    /// Whether verdicts may be used: the feed is open, or was within `grace_ns`. Not before the first
    /// poll of this life has ended: until then nobody here knows what has changed.
    pub(crate) fn in_touch(&self, now_ns: u64, grace_ns: u64) -> bool {
        let is_open = self.answered && self.polling && self.failures == 0;
        let has_ended = self.answered || self.failures > 0;
        is_open || (has_ended && now_ns < self.contact_ns.saturating_add(grace_ns))
    }

    /// The next poll when it is time for one: its path, and for how long the relay may keep it. It
    /// counts as sent.
    pub(crate) fn poll(&mut self, wait_ms: u32, now_ns: u64) -> Option<(String, u32)> {
        if self.polling || now_ns < self.rest_until_ns {
            return None;
        }
        self.polling = true;
        // The first answer, and the first after a failure, shall come at once: it ends the doubt.
        let wait_ms = if self.answered && self.failures == 0 { wait_ms } else { 0 };
        let path = headers::CHANGES_PATH;
        let path = match &self.position {
            None => format!("{path}?since=0&wait_ms={wait_ms}"),
            Some(p) => {
                let (epoch, since) = (&p.epoch.0, p.revision);
                format!("{path}?epoch={}&since={since}&wait_ms={wait_ms}", percent(epoch))
            }
        };
        Some((path, wait_ms))
    }

    /// The poll failed.
    pub(crate) fn failed(&mut self, now_ns: u64) {
        self.polling = false;
        self.failures = self.failures.saturating_add(1);
        let pause = BACK_OFF_NS.saturating_mul(1 << self.failures.min(10));
        self.rest_until_ns = now_ns + pause.min(BACK_OFF_MAX_NS);
    }

    /// The poll was answered. The caller applies the news before it calls [`ChangesFeed::publish`].
    pub(crate) fn answered(&mut self, answer: &ChangesResponse, now_ns: u64) -> News {
        self.polling = false;
        self.failures = 0;
        self.answered = true;
        self.contact_ns = self.contact_ns.max(now_ns);
        let follows = self.position.as_ref().is_some_and(|p| p.epoch == answer.epoch);
        let news = if follows && !answer.reset { News::Changed } else { News::Reset };
        let floor = match (&self.position, news) {
            (Some(position), News::Changed) => position.floor,
            _ => answer.revision,
        };
        self.position = Some(Position {
            epoch: answer.epoch.clone(),
            revision: answer.revision,
            floor,
            contact_ns: self.contact_ns,
        });
        news
    }

    /// Tells the other VMs, and those to come, how far the shared verdicts can be trusted.
    pub(crate) fn publish(&self, shared: &mut dyn Shared) {
        let Some(mine) = &self.position else { return };
        update(shared, POSITION_KEY, |bytes| {
            let theirs = bytes.and_then(|b| serde_json::from_slice::<Position>(b).ok());
            let merged = theirs.as_ref().map_or_else(|| mine.clone(), |t| mine.merge(t));
            if theirs.as_ref() == Some(&merged) { None } else { serde_json::to_vec(&merged).ok() }
        });
    }
}

/// The position that VMs have in common.
pub(crate) fn read(shared: &dyn Shared) -> Option<Position> {
    let (bytes, _) = shared.get(POSITION_KEY)?;
    serde_json::from_slice(&bytes).ok()
}

/// An epoch is the relay's own text; in a query it must not become anything else.
fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(byte.into());
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::Local;
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn answer(epoch: &str, revision: u64, reset: bool) -> ChangesResponse {
        ChangesResponse { epoch: Epoch(epoch.to_owned()), revision, reset, changed: Vec::new() }
    }

    #[test]
    fn the_first_answer_resets_and_the_next_ones_follow() {
        let mut feed = ChangesFeed::default();
        assert_eq!(feed.poll(9, 0), Some(("/v1/changes?since=0&wait_ms=0".to_owned(), 0)));
        assert_eq!(feed.answered(&answer("a", 5, false), 1), News::Reset);
        let next = feed.poll(9, 1);
        assert_eq!(next, Some(("/v1/changes?epoch=a&since=5&wait_ms=9".to_owned(), 9)));
        assert_eq!(feed.answered(&answer("a", 7, false), 2), News::Changed);
        assert_eq!(feed.position().map(|p| (p.revision, p.floor)), Some((7, 5)));
        assert_eq!(feed.answered(&answer("b", 1, false), 3), News::Reset);
        assert_eq!(feed.answered(&answer("b", 9, true), 3), News::Reset);
    }

    #[test]
    fn one_poll_is_open_at_a_time_and_failures_back_off_within_a_bound() {
        let mut feed = ChangesFeed::default();
        let mut now = 0;
        for _ in 0..20 {
            assert!(feed.poll(9, now).is_some());
            assert_eq!(feed.poll(9, now), None);
            feed.failed(now);
            assert_eq!(feed.poll(9, now), None);
            now += BACK_OFF_MAX_NS;
        }
    }

    #[test]
    fn a_reloaded_vm_goes_on_where_the_last_one_stopped() {
        let mut shared = Local::default();
        let mut feed = ChangesFeed::start(&shared);
        feed.answered(&answer("a", 5, false), 1);
        feed.publish(&mut shared);
        feed.answered(&answer("a", 8, false), 2);
        feed.publish(&mut shared);
        let mut reloaded = ChangesFeed::start(&shared);
        assert_eq!(reloaded.position(), feed.position());
        let first = reloaded.poll(9, 2).map(|(path, _)| path);
        assert_eq!(first.as_deref(), Some("/v1/changes?epoch=a&since=8&wait_ms=0"));
        assert!(!reloaded.in_touch(3, 10), "in touch by what another life has heard");
        reloaded.failed(3);
        assert!(reloaded.in_touch(3, 10) && !reloaded.in_touch(12, 10));
        reloaded.answered(&answer("a", 8, false), 20);
        assert!(reloaded.in_touch(20, 10));
    }

    #[test]
    fn a_gap_between_two_vms_is_never_papered_over() {
        let at = |revision, floor| Position { revision, floor, ..Position::default() };
        let merged = at(20, 15).merge(&at(10, 1));
        assert_eq!((merged.revision, merged.floor), (20, 15));
        let merged = at(10, 1).merge(&at(20, 15));
        assert_eq!((merged.revision, merged.floor), (20, 15));
        for merged in [at(20, 10).merge(&at(10, 1)), at(10, 1).merge(&at(20, 10))] {
            assert_eq!((merged.revision, merged.floor), (20, 1));
        }
    }
}
