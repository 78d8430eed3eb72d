//! The beginning: what the runtime has found, and what an earlier life may have promised.

use std::collections::{BTreeMap, BTreeSet};

use super::queue::Queue;
use super::state::{Cluster, Ms, State, Tenant, UNNUMBERED};
use super::{Effect, Lifecycle, Settings, Shared, describe};
use crate::runtime::{ExitKind, Found, FoundState};

impl Lifecycle {
    /// Takes over what the runtime has found. Leases given by the orchestrator's last life are not
    /// known, but they hold for `leases_ms` at most: so long whoever runs counts as leased, and who
    /// died while nobody watched as well: it is started again. Who is paused has none, for it was
    /// paused when its leases and their grace were over. The effects publish what runs.
    pub fn adopt(
        settings: Settings,
        found: Vec<Found>,
        leases_ms: Ms,
        now: Ms,
    ) -> (Self, Vec<Effect>) {
        let queue = Queue::new(settings.start_ms);
        let shared = Shared {
            settings,
            broken: None,
            streams: BTreeMap::new(),
            queue,
            starting: 0,
            suspects: 0,
            waiting: 0,
            counts: [0; State::COUNT],
            due: BTreeSet::new(),
            acks: BTreeSet::new(),
            effects: Vec::new(),
            clock: None,
        };
        let mut machine = Self { tenants: BTreeMap::new(), shared };
        let leased = (leases_ms > 0).then(|| now + leases_ms);
        for found in found {
            machine.adopt_one(found, leased, now);
        }
        machine.fill_slots(now);
        let effects = std::mem::take(&mut machine.shared.effects);
        (machine, effects)
    }

    fn adopt_one(&mut self, found: Found, leased: Option<Ms>, now: Ms) {
        let mut t = Tenant::new(found.tier, found.limits, now);
        t.instance = found.endpoint.map(|endpoint| endpoint.instance);
        self.shared.counts[t.state.index()] += 1;
        match found.state {
            FoundState::Running => {
                t.lease_until = leased;
                t.started = now;
                self.shared.publish(&found.tenant, &mut t);
                self.shared.go(&found.tenant, &mut t, State::Awake, now);
            }
            FoundState::Paused => self.shared.go(&found.tenant, &mut t, State::Dozing, now),
            FoundState::FromEarlierBoot => t.history.last_death = Some(describe(ExitKind::Gone)),
            FoundState::Stopped(exit) => {
                t.history.last_death = Some(describe(exit));
                if leased.is_some() {
                    t.lease_until = leased;
                    t.restart = true;
                    // Envoys may have its cluster still, at an address that is another's by now.
                    t.cluster = Cluster::Published(UNNUMBERED);
                    self.shared.point_nowhere(&found.tenant, &mut t);
                }
            }
        }
        self.tenants.insert(found.tenant.clone(), t);
        self.touch(&found.tenant, now);
    }
}
