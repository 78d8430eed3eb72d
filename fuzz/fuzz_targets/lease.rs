//! Any lease request: refused, or within bounds that a cluster can be made of.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| orchestrator::fuzzing::lease_request(json));
