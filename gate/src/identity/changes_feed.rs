//! Follows the registry's changes by one long poll per VM.
//!
//! ```text
//!           tick                response: changed digests, or "reset"
//!  Resting ──────► Polling ──────────────────────────────► Polling (sent again at once)
//!     ▲               │ failure
//!     └───────────────┘ back-off
//! ```
//!
//! The position is kept in shared data, so that a reloaded VM continues where its predecessor
//! stopped. It guarantees that of all verdicts in shared data with this epoch, those that changed
//! after `floor` and up to `revision` are tombstones or newer.

use std::fmt::Write as _;

use protocol::verify::ChangesResponse;
use protocol::{Epoch, headers};
use serde::{Deserialize, Serialize};

use crate::shared::{Shared, update};

/// Key of the position in shared data.
const POSITION_KEY: &str = "v1/feed";
/// First back-off after a failure; doubles up to [`BACK_OFF_MAX_NS`].
const BACK_OFF_NS: u64 = 50_000_000;
/// Longest back-off: short enough that revocations still take effect within a second when the
/// relay returns.
const BACK_OFF_MAX_NS: u64 = 500_000_000;

/// The part of the registry's history that this Envoy has processed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    /// Run of the relay process.
    #[serde(rename = "e")]
    pub(crate) epoch: Epoch,
    /// Newest revision that is processed.
    #[serde(rename = "r")]
    pub(crate) revision: u64,
    /// Oldest revision since which no change was missed.
    #[serde(rename = "f")]
    pub(crate) floor: u64,
    /// Time of the relay's last response, nanoseconds since 1970.
    #[serde(rename = "c")]
    pub(crate) contact_ns: u64,
}

impl Position {
    /// Returns whether a verdict of this epoch and revision is still current.
    pub(crate) fn covers(&self, epoch: &Epoch, revision: u64) -> bool {
        self.epoch == *epoch && revision >= self.floor
    }

    /// Combines the positions of two VMs. If there is a gap between them, the later one counts
    /// alone; of two epochs, that of `self`.
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

/// The meaning of a poll's response for cached verdicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    /// The digests that the response names have changed.
    Changed,
    /// Any verdict may have changed.
    Reset,
}

/// The changes feed of one VM.
#[derive(Debug, Default)]
pub(crate) struct ChangesFeed {
    position: Option<Position>,
    /// This VM has had a response. A position left by a predecessor does not show that the relay
    /// can be reached now.
    answered: bool,
    polling: bool,
    failures: u32,
    rest_until_ns: u64,
    contact_ns: u64,
}

impl ChangesFeed {
    /// Resumes from the position that another VM, or this one's predecessor, has published.
    pub(crate) fn start(shared: &dyn Shared) -> Self {
        let position = read(shared);
        let contact_ns = position.as_ref().map_or(0, |p| p.contact_ns);
        Self { position, contact_ns, ..Self::default() }
    }

    /// The position, after the first response.
    pub(crate) fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    /// Returns whether cached verdicts may be used: the feed is open, or was open within
    /// `grace_ns`. Not before this VM's first poll has ended, because changes may have been missed
    /// until then.
    pub(crate) fn in_touch(&self, now_ns: u64, grace_ns: u64) -> bool {
        let is_open = self.answered && self.polling && self.failures == 0;
        let has_ended = self.answered || self.failures > 0;
        is_open || (has_ended && now_ns < self.contact_ns.saturating_add(grace_ns))
    }

    /// Returns the next poll if one is due, and marks it as sent: its path, and how long the relay
    /// may hold it.
    pub(crate) fn poll(&mut self, wait_ms: u32, now_ns: u64) -> Option<(String, u32)> {
        if self.polling || now_ns < self.rest_until_ns {
            return None;
        }
        self.polling = true;
        // The first response, and the first one after a failure, must come at once: until then
        // cached verdicts are in doubt.
        let wait_ms = if self.answered && self.failures == 0 { wait_ms } else { 0 };
        let path = headers::CHANGES_PATH;
        let path = match &self.position {
            None => format!("{path}?since=0&wait_ms={wait_ms}"),
            Some(p) => {
                let epoch = percent_encode(&p.epoch.0);
                format!("{path}?epoch={epoch}&since={}&wait_ms={wait_ms}", p.revision)
            }
        };
        Some((path, wait_ms))
    }

    /// Records that the poll failed, and backs off.
    pub(crate) fn failed(&mut self, now_ns: u64) {
        self.polling = false;
        self.failures = self.failures.saturating_add(1);
        let back_off_ns = BACK_OFF_NS.saturating_mul(1 << self.failures.min(10));
        self.rest_until_ns = now_ns + back_off_ns.min(BACK_OFF_MAX_NS);
    }

    /// Records a response. The caller applies the news before it calls [`ChangesFeed::publish`].
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

    /// Publishes to other VMs, present and future, up to where shared verdicts can be trusted.
    pub(crate) fn publish(&self, shared: &mut dyn Shared) {
        let Some(mine) = &self.position else { return };
        update(shared, POSITION_KEY, |bytes| {
            let theirs = bytes.and_then(|b| serde_json::from_slice::<Position>(b).ok());
            let merged = theirs.as_ref().map_or_else(|| mine.clone(), |t| mine.merge(t));
            if theirs.as_ref() == Some(&merged) { None } else { serde_json::to_vec(&merged).ok() }
        });
    }
}

/// Reads the position that all VMs share.
pub(crate) fn read(shared: &dyn Shared) -> Option<Position> {
    let (bytes, _) = shared.get(POSITION_KEY)?;
    serde_json::from_slice(&bytes).ok()
}

/// Percent-encodes everything but unreserved characters. An epoch is the relay's text and must not
/// change the query's structure.
fn percent_encode(text: &str) -> String {
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
    fn first_response_resets_and_later_ones_follow() {
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
    fn one_poll_is_open_and_failures_back_off() {
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
    fn reloaded_vm_continues_where_its_predecessor_stopped() {
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
        assert!(!reloaded.in_touch(3, 10), "in touch by a predecessor's contact");
        reloaded.failed(3);
        assert!(reloaded.in_touch(3, 10) && !reloaded.in_touch(12, 10));
        reloaded.answered(&answer("a", 8, false), 20);
        assert!(reloaded.in_touch(20, 10));
    }

    #[test]
    fn gap_between_two_vms_stays_a_gap() {
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
