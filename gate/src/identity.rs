//! Identity: from the key in a request's head to the tenant's verdict.
//!
//! | module | purpose |
//! |---|---|
//! | [`credentials`] | finds the API key in the headers and keeps only its digest |
//! | [`verdicts`] | caches verdicts; decides when the relay has to be asked |
//! | [`changes_feed`] | follows the relay's changes feed, so that cached verdicts stay current |
//! | [`unknown_keys`] | rate-limits verification of unknown keys |
//! | [`cache`] | a bounded map that evicts the least recently used entries |

pub(crate) mod cache;
pub(crate) mod changes_feed;
pub mod credentials;
pub(crate) mod unknown_keys;
pub(crate) mod verdicts;
