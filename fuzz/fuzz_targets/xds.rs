//! An Envoy that acknowledges and rejects in any order has the whole set in the end.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|steps: &[u8]| orchestrator::fuzzing::xds_session(steps));
