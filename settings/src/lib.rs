//! Reads the settings of the orchestrator and the relay (TOML) and of the filter (JSON).
//!
//! ```text
//! text ── toml, serde_json ──► Tree ── read ──► Raw… ── the part's own checks ──► Config
//!                                       └─────── Faults ─────────┘
//! ```
//!
//! A settings file is described by a type, `Raw…`, that derives `Deserialize` and has a default for
//! each key. [`read`] reports every fault of a file at once: unknown keys, keys that are written more
//! than once, values of a wrong type or out of bounds. Each [`Fault`] names the key, the value and
//! the cure. The part then checks what several keys together must fulfil, and adds its
//! faults to the same list.
//!
//! | module | contents |
//! |---|---|
//! | [`fault`] | [`Fault`], [`Faults`] |
//! | [`tree`] | [`Tree`]: a parsed file in which a key may still occur twice |
//! | [`reader`] | [`read`]: from a [`Tree`] to a `Raw…` type |
//! | [`value`] | types of single values: [`Duration`], [`Size`], [`Integer`], [`Text`] |
//! | [`units`] | numbers with units, such as `5min` and `256MiB` |
//! | [`toml_file`] | from a TOML file to a [`Tree`] (not in wasm) |
//! | [`schema`] | JSON Schemas, generated from the `Raw…` types (not in wasm) |
//!
//! Only the last two touch files; the filter uses the crate without them.

pub mod fault;
pub mod reader;
#[cfg(not(target_family = "wasm"))]
pub mod schema;
#[cfg(not(target_family = "wasm"))]
pub mod toml_file;
pub mod tree;
pub mod units;
pub mod value;

pub use fault::{Fault, Faults};
pub use reader::read;
pub use tree::Tree;
pub use value::{Duration, Integer, Size, Text};
