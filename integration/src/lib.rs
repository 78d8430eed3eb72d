//! The dev stack of `make run` and the command line of the experiments.
//!
//! The builders are in the crate `harness`, the benchmarks, drills and proofs in `experiments`. The
//! end-to-end suite is `tests/end_to_end/`.

pub mod cli;
pub mod dev;
