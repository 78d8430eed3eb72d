//! A disk that has less room than the floor for a while: writes are refused, reads go on.

use harness::Stack;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::Scale;
use super::mixed::Mixed;
use super::tally::Tally;
use crate::proof::disk::LoopDisk;

/// The whole disk.
const MEGABYTES: u64 = 256;
/// Where the gateway stops writes.
const FLOOR_BYTES: u64 = 64 << 20;
/// What is left while it is full: the phexts of the load fit many times.
const LEFT_BYTES: u64 = 32 << 20;
/// At a time.
const PIECE_BYTES: usize = 1 << 20;

/// A small file system with a folder for tenants.
pub(super) struct Small(LoopDisk);

impl Small {
    pub(super) fn make() -> Result<Self> {
        let disk = LoopDisk::make(MEGABYTES);
        Ok(Self(disk.context("a full disk needs a small one: root and loop devices")?))
    }

    pub(super) fn data(&self) -> PathBuf {
        self.0.data()
    }

    /// For the orchestrator.
    pub(super) fn config() -> String {
        format!("\n[host]\ndisk_floor = {FLOOR_BYTES}\n")
    }

    fn filler(&self) -> PathBuf {
        self.data().with_file_name("filler")
    }

    fn fill(&self) -> Result<()> {
        let disk = rustix::fs::statvfs(self.data())?;
        let free = disk.f_bavail * disk.f_frsize;
        let mut file = File::create(self.filler())?;
        let piece = vec![b'x'; PIECE_BYTES];
        for _ in 0..free.saturating_sub(LEFT_BYTES) / PIECE_BYTES as u64 {
            file.write_all(&piece)?;
        }
        Ok(file.sync_all()?)
    }
}

/// Full and free again, once per blow.
pub(super) async fn under_load(disk: &Small, stack: &Stack, scale: Scale) -> Result<Tally> {
    let load = Mixed::start(stack).await?;
    for _ in 0..scale.blows {
        load.each_sends(scale.each(), stack).await?;
        disk.fill()?;
        load.each_sends(scale.each(), stack).await?;
        fs::remove_file(disk.filler())?;
        load.look().await?;
    }
    load.each_sends(scale.each(), stack).await?;
    load.finish().await
}
