//! Where the registry's text comes from. Polled: a `stat` every 50 ms costs nothing, and unlike
//! notifications it sees renames over the file, files that come and go, and, as late as the client's
//! cache allows, network folders.

use std::time::Duration;

use tokio::task::JoinError;

pub mod file;
pub mod last_good;
pub mod sq;

pub use file::FileSource;
pub use sq::SqSource;

/// One of the sources.
#[derive(Debug)]
pub enum Source {
    /// A file.
    File(FileSource),
    /// A phext in an SQ server.
    Sq(SqSource),
}

/// What a look at the source brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Reading {
    /// The text is the one that was brought before.
    Same,
    /// It has changed and may still be changing.
    Unsettled,
    /// A text, whole.
    New(Vec<u8>),
    /// The source can't be read, and why.
    Gone(String),
}

/// How often a file is looked at: a change is seen within one interval, is taken as whole after
/// another one without a change, and so is answered within about 100 ms of the save.
pub const FILE_INTERVAL: Duration = Duration::from_millis(50);

impl Source {
    /// Looks once. An error: the look panicked.
    pub async fn poll(&mut self) -> Result<Reading, JoinError> {
        match self {
            Self::File(file) => file.poll().await,
            Self::Sq(sq) => Ok(sq.poll().await),
        }
    }

    /// How long until the next look.
    pub fn interval(&self) -> Duration {
        match self {
            Self::File(_) => FILE_INTERVAL,
            Self::Sq(sq) => sq.interval(),
        }
    }
}
