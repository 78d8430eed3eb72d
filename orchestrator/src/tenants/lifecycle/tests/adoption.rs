//! Adoption of instances that an earlier orchestrator process left.

use super::*;
use crate::runtime::Endpoint;
use crate::runtime::instance_key::InstanceKey;

#[test]
fn adopted_tenants_are_published_and_count_as_leased() {
    let endpoint = Endpoint {
        instance: InstanceId("old".to_owned()),
        address: ([127, 0, 0, 1], 1).into(),
        key: InstanceKey::generate().unwrap(),
    };
    let adopt = |state, leases_ms| {
        let found = Found {
            limits: Limits { doze_after_s: Some(0), ..Limits::default() },
            endpoint: Some(endpoint.clone()),
            ..found(state, id("a"))
        };
        Lifecycle::adopt(settings(), vec![found], leases_ms, 0)
    };
    let state = |machine: &Lifecycle| machine.state(&id("a")).unwrap();
    let (machine, effects) = adopt(FoundState::Running, 40_000);
    assert!(effects.contains(&Effect::Publish(id("a"))));
    assert_eq!(machine.next_deadline(), Some(75_000), "the earlier leases and the grace");
    let (machine, _) = adopt(FoundState::Running, 0);
    assert_eq!(state(&machine), State::Retiring(Goal::Doze), "no lease survived");
    let (machine, _) = adopt(FoundState::Paused, 40_000);
    assert_eq!(state(&machine), State::Dozing);
}

#[test]
fn tenant_found_dead_restarts_for_live_leases() {
    let adopt = |state, leases_ms| {
        let (machine, effects) =
            Lifecycle::adopt(settings(), vec![found(state, id("a"))], leases_ms, 0);
        (machine.state(&id("a")), effects)
    };
    let dead = FoundState::Stopped(ExitKind::Gone);
    let (state, effects) = adopt(dead, 30_000);
    assert_eq!(state, Some(State::Starting));
    assert!(effects.contains(&Effect::PointNowhere(id("a"))));
    // No lease is live: none was granted, or the host has booted since.
    for (state, leases_ms) in [(dead, 0), (FoundState::FromEarlierBoot, 30_000)] {
        assert_eq!(adopt(state, leases_ms), (Some(State::Asleep), Vec::new()));
    }
}
