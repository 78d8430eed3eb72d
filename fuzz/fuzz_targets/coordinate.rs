//! Any text: not a coordinate, or one that round-trips.

#![no_main]

use gate::http::request::Coordinate;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Some(coordinate) = Coordinate::parse(text) else { return };
    assert!(coordinate.parts().iter().all(|part| (1..=999).contains(part)));
    assert_eq!(Coordinate::parse(&coordinate.to_string()), Some(coordinate));
});
