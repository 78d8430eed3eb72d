//! Sources of the registry's text, and the copy that the relay keeps of it.
//!
//! Sources are polled. A `stat` every 50 ms costs nothing, and unlike notifications it sees renames
//! over the file, files that come and go, and network folders, as late as the client's cache allows.
//!
//! | file | contents |
//! |---|---|
//! | `file.rs` | a file, read when it has stopped changing |
//! | `sq.rs` | a phext in an SQ server |
//! | `settling.rs` | the version of a file, and when it has stopped changing |
//! | `last_good.rs` | the last good copy, for the next start |
//! | `written.rs` | the text that a command wrote last |

use std::time::Duration;

use tokio::task::JoinError;

pub(crate) mod file;
pub(crate) mod last_good;
pub(crate) mod settling;
pub mod sq;
pub(crate) mod written;

use file::FileSource;
use sq::SqSource;

/// The place from which the relay reads the registry.
#[derive(Debug)]
pub(crate) enum Source {
    File(FileSource),
    Sq(SqSource),
}

/// The result of one poll.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// The text is the one that was read last.
    Unchanged,
    /// The text has changed and may still be changing.
    Changing,
    /// A new text.
    New(Text),
    /// The source can't be read, with the reason.
    Unreadable(String),
}

/// A text of the registry.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Text {
    pub(crate) bytes: Vec<u8>,
    /// True if a command wrote it, which makes it complete.
    pub(crate) by_command: bool,
}

/// Poll interval of a file. A change is seen within one interval and read after another one without
/// a change: it is served within about 100 ms of the save.
const FILE_POLL_INTERVAL: Duration = Duration::from_millis(50);

impl Source {
    /// Polls once. Fails only if the blocking read panicked.
    pub(crate) async fn poll(&mut self) -> Result<Reading, JoinError> {
        match self {
            Self::File(file) => file.poll().await,
            Self::Sq(sq) => Ok(sq.poll().await),
        }
    }

    /// Time to wait before the next poll.
    pub(crate) fn interval(&self) -> Duration {
        match self {
            Self::File(_) => FILE_POLL_INTERVAL,
            Self::Sq(sq) => sq.interval(),
        }
    }
}
