//! A disk that temporarily has less room than its floor: writes are refused, reads continue.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::DrillSize;
use super::mixed_load::MixedLoad;
use super::outcomes::ClientOutcomes;
use crate::proof::disk::LoopDisk;
use harness::Stack;

/// Size of the file system.
const MEGABYTES: u64 = 256;
/// Free room below which the gateway refuses writes.
const FLOOR_BYTES: u64 = 64 << 20;
/// Free room while the disk counts as full: several times the phexts of the load.
const LEFT_BYTES: u64 = 32 << 20;
/// Size of one write to the file that fills the disk.
const PIECE_BYTES: usize = 1 << 20;

/// A small file system with a folder for tenants, which can be filled.
pub(super) struct FillableDisk(LoopDisk);

impl FillableDisk {
    pub(super) fn create() -> Result<Self> {
        let disk = LoopDisk::create(MEGABYTES);
        Ok(Self(disk.context("the full-disk drill needs root and loop devices")?))
    }

    pub(super) fn data(&self) -> PathBuf {
        self.0.data()
    }

    /// Returns the orchestrator's settings for this disk.
    pub(super) fn orchestrator_config() -> String {
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

    fn free(&self) -> Result<()> {
        Ok(fs::remove_file(self.filler())?)
    }
}

/// Fills and frees the disk under load, once per fault.
pub(super) async fn run_under_load(
    disk: &FillableDisk,
    stack: &Stack,
    size: DrillSize,
) -> Result<ClientOutcomes> {
    let load = MixedLoad::start(stack).await?;
    for _ in 0..size.faults {
        load.wait_for_requests(size.requests_per_client(), stack).await?;
        disk.fill()?;
        load.wait_for_requests(size.requests_per_client(), stack).await?;
        disk.free()?;
        load.check_all_scrolls().await?;
    }
    load.wait_for_requests(size.requests_per_client(), stack).await?;
    load.finish().await
}
