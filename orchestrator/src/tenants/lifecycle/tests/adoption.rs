//! What becomes of tenants that were there before the orchestrator.

use super::*;
use crate::runtime::{Found, FoundState};

#[test]
fn adopted_tenants_are_published_and_count_as_leased() {
    let endpoint = crate::runtime::Endpoint {
        instance: InstanceId("old".to_owned()),
        address: ([127, 0, 0, 1], 1).into(),
        key: crate::runtime::instance_key::InstanceKey::generate().unwrap(),
    };
    let found = |state| Found {
        tenant: id("a"),
        tier: TierName::parse("free").unwrap(),
        limits: Limits { doze_after_s: Some(0), ..Limits::default() },
        sq_version: protocol::SqVersion::V0_6_0,
        state,
        endpoint: Some(endpoint.clone()),
    };
    let adopt = |state, leases_ms| {
        let (machine, effects) = Lifecycle::adopt(settings(), vec![found(state)], leases_ms, 0);
        (machine.next_deadline(), machine.state(&id("a")).unwrap(), effects)
    };
    let (deadline, _, effects) = adopt(FoundState::Running, 40_000);
    assert!(effects.contains(&Effect::Publish(id("a"))));
    assert_eq!(deadline, Some(75_000), "the leases that were given, and the grace");
    assert_eq!(adopt(FoundState::Running, 0).1, State::Retiring(Goal::Doze), "no lease survived");
    assert_eq!(adopt(FoundState::Paused, 40_000).1, State::Dozing);
}

#[test]
fn one_that_died_while_nobody_watched_is_started_for_those_who_may_hold_leases() {
    let found = |state| Found {
        tenant: id("a"),
        tier: TierName::parse("free").unwrap(),
        limits: Limits::default(),
        sq_version: protocol::SqVersion::V0_6_0,
        state,
        endpoint: None,
    };
    let adopt = |state, leases_ms| Lifecycle::adopt(settings(), vec![found(state)], leases_ms, 0);
    let died = FoundState::Stopped(ExitKind::Gone);
    let (machine, effects) = adopt(died, 30_000);
    assert_eq!(machine.state(&id("a")), Some(State::Starting));
    assert!(effects.contains(&Effect::PointNowhere(id("a"))));
    for (state, leases_ms) in [(died, 0), (FoundState::FromEarlierBoot, 30_000)] {
        let (machine, effects) = adopt(state, leases_ms);
        assert_eq!((machine.state(&id("a")), effects), (Some(State::Asleep), Vec::new()));
    }
}
