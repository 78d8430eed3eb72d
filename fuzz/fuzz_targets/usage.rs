//! Any usage report: recorded, each row once, in the sums or in the quarantine.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| orchestrator::fuzzing::usage_report(json));
