//! Unix sockets of the orchestrator's servers, which know who connects.
//!
//! ```text
//!  folder: not writable for others ─► socket: 0660 or 0600 ─► accept: the peer's user is allowed
//! ```
//!
//! The modes keep other users from connecting; the check at each accept does not rely on them. The
//! kernel reports the peer's user and process, which no client can forge (`SO_PEERCRED`).
//!
//! | file | content |
//! |---|---|
//! | `folder.rs` | the folder that contains the sockets |
//! | `listener.rs` | a socket that accepts allowed peers only, for axum and tonic |
//! | `peer.rs` | users and processes at the other end |

mod folder;
mod listener;
mod peer;

pub use listener::{Access, PeerListener};
pub use peer::{AllowedUsers, Peer};

/// Longest path of a Unix socket, in bytes: `sun_path` has 108 with the final NUL.
pub const PATH_MAX_BYTES: usize = 107;
