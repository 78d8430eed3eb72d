//! The dev stack of `make run` and the command line of the experiments.
//!
//! | module | contents |
//! |---|---|
//! | [`cli`] | arguments, examples, dispatch |
//! | [`dev`] | the stack on the documented ports with two demo tenants |
//!
//! The builders are in the crate `harness`, benchmarks, drills and proofs in `experiments`. The
//! end-to-end suite is in `tests/end_to_end/`.

pub mod cli;
pub mod dev;
