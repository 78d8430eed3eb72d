//! Back-off of Envoys whose stream was cut because they did not acknowledge changes. Pure.
//!
//! Each cut has delayed stops of tenants by `ack_timeout`. An Envoy that connected again at once would
//! delay the next ones just as long, for ever.

use std::collections::HashMap;
use std::time::Duration;

use protocol::GatewayId;
use tokio::time::Instant;

use crate::sockets::Peer;

/// Pause after the first cut: an Envoy that was suspended and goes on gets no longer one.
const FIRST: Duration = Duration::from_secs(1);
/// Longest pause. The pauses double with each cut.
const LONGEST: Duration = Duration::from_mins(1);
/// Time after which earlier cuts no longer count.
const MEMORY: Duration = Duration::from_mins(10);
/// Bound on remembered Envoys; beyond it, the one whose pause ends first is forgotten.
const ENVOYS_MAX: usize = 1_024;

/// The cuts of one Envoy.
#[derive(Debug, Clone, Copy)]
struct Cuts {
    last: Instant,
    pause: Duration,
}

/// Cuts by Envoy: its name and its process, so that no other process can have a gateway's Envoy
/// kept waiting under its name.
#[derive(Debug, Default)]
pub(super) struct BackOff(HashMap<(GatewayId, Peer), Cuts>);

impl BackOff {
    /// Records that the stream of an Envoy was cut.
    pub(super) fn on_cut(&mut self, gateway: GatewayId, peer: Peer, now: Instant) {
        self.0.retain(|_, cuts| now < cuts.last + MEMORY);
        let envoy = (gateway, peer);
        let pause = self.0.get(&envoy).map_or(FIRST, |cuts| (cuts.pause * 2).min(LONGEST));
        if self.0.len() >= ENVOYS_MAX && !self.0.contains_key(&envoy) {
            let first = self.0.iter().min_by_key(|(_, cuts)| cuts.last + cuts.pause);
            if let Some(first) = first.map(|(envoy, _)| envoy.clone()) {
                self.0.remove(&first);
            }
        }
        self.0.insert(envoy, Cuts { last: now, pause });
    }

    /// Returns when an Envoy may be served again; `None` if its stream was not cut.
    pub(super) fn ends_at(&self, gateway: &GatewayId, peer: Peer) -> Option<Instant> {
        let cuts = self.0.get(&(gateway.clone(), peer))?;
        Some(cuts.last + cuts.pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(name: &str) -> GatewayId {
        GatewayId::parse(name).unwrap()
    }

    fn peer(pid: i32) -> Peer {
        Peer { uid: 0, pid: Some(pid) }
    }

    #[test]
    fn pauses_double_up_to_a_minute_and_are_forgotten() {
        let mut back_off = BackOff::default();
        let mut now = Instant::now();
        for pause_s in [1, 2, 4, 8, 16, 32, 60, 60] {
            back_off.on_cut(gateway("g"), peer(1), now);
            let ends_at = back_off.ends_at(&gateway("g"), peer(1));
            assert_eq!(ends_at, Some(now + Duration::from_secs(pause_s)));
            now += Duration::from_secs(pause_s);
        }
        now += MEMORY;
        back_off.on_cut(gateway("g"), peer(1), now);
        assert_eq!(back_off.ends_at(&gateway("g"), peer(1)), Some(now + FIRST));
    }

    #[test]
    fn other_process_of_the_name_is_not_kept_waiting() {
        let mut back_off = BackOff::default();
        back_off.on_cut(gateway("g"), peer(1), Instant::now());
        assert_eq!(back_off.ends_at(&gateway("g"), peer(2)), None);
        assert_eq!(back_off.ends_at(&gateway("h"), peer(1)), None);
    }

    #[test]
    fn remembered_envoys_are_bounded() {
        let mut back_off = BackOff::default();
        let now = Instant::now();
        for pid in 1..=i32::try_from(ENVOYS_MAX).unwrap() + 10 {
            let later = now + Duration::from_millis(pid.unsigned_abs().into());
            back_off.on_cut(gateway("g"), peer(pid), later);
        }
        assert_eq!(back_off.0.len(), ENVOYS_MAX);
        assert_eq!(back_off.ends_at(&gateway("g"), peer(1)), None);
    }
}
