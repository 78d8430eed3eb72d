//! A tenant's weight as the kernel's shares of processor time and disk time.
//!
//! Weights matter only while tenants compete: an idle host gives each of them what it asks for. The
//! numbers are chosen so that the default weight is 1024 shares of a processor, as Docker gives by
//! itself, and 100 of a disk in cgroup v2, as the kernel gives to every service of the host.

use std::fs;
use std::path::Path;

use protocol::limits::{WEIGHT_MAX, WEIGHT_MIN};

/// Mount point of cgroups.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Docker's default shares.
const CPU_SHARES: u32 = 1_024;

/// The weight of the free tier.
const WEIGHT_DEFAULT: u32 = 100;

/// Least weight of a disk that Docker takes.
const BLKIO_MIN: u32 = 10;

/// `CpuShares` of a container.
pub(super) fn cpu_shares(weight: u32) -> i64 {
    (clamp(weight) * CPU_SHARES / WEIGHT_DEFAULT).into()
}

/// `BlkioWeight` of a container. The container runtimes convert it to `io.weight` of cgroup v2 by
/// `1 + (weight - 10) * 9999 / 990`, so that a tenth more is ten times ten there.
pub(super) fn blkio_weight(weight: u32) -> u16 {
    u16::try_from(BLKIO_MIN + clamp(weight) / 10).unwrap_or(u16::MAX)
}

/// A lease request carries the weight, and the bounds of the registry do not hold there.
fn clamp(weight: u32) -> u32 {
    weight.clamp(WEIGHT_MIN, WEIGHT_MAX)
}

/// True if the kernel has weights for disks. Docker ignores them without (cgroup v1), or fails to
/// start the container (cgroup v2), so they are not requested then.
pub(super) fn kernel_weighs_disks() -> bool {
    weighs_disks(Path::new(CGROUPS))
}

fn weighs_disks(cgroups: &Path) -> bool {
    if !cgroups.join("cgroup.controllers").exists() {
        return cgroups.join("blkio/blkio.weight").exists();
    }
    // `io.weight` is in every group but the root one, which has the settings of its cost model.
    // The scheduler BFQ has a separate file, which container runtimes prefer.
    cgroups.join("io.cost.qos").exists()
        || fs::read_dir(cgroups).is_ok_and(|groups| {
            groups.flatten().any(|group| group.path().join("io.bfq.weight").exists())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_weight_is_dockers_share() {
        assert_eq!(cpu_shares(100), 1_024);
        assert_eq!(cpu_shares(10), 102);
        assert_eq!(cpu_shares(1_000), 10_240);
    }

    #[test]
    fn disk_weights_are_proportional_in_cgroup_v2() {
        let io_weight = |weight| 1 + (u64::from(blkio_weight(weight)) - 10) * 9_999 / 990;
        for weight in [10, 100, 200, 400, 800, 1_000] {
            let expected = u64::from(weight);
            assert!(io_weight(weight).abs_diff(expected) <= expected / 10, "{weight}");
        }
    }

    #[test]
    fn weight_of_any_lease_is_accepted_by_docker() {
        for weight in [0, u32::MAX] {
            assert!((2..=262_144).contains(&cpu_shares(weight)));
            assert!((10..=1_000).contains(&blkio_weight(weight)));
        }
    }

    #[test]
    fn disks_are_weighed_where_the_kernel_can() {
        for (files, expected) in [
            (&["blkio/blkio.throttle.read_bps_device"][..], false),
            (&["blkio/blkio.weight"], true),
            (&["cgroup.controllers", "system.slice/io.max"], false),
            (&["cgroup.controllers", "io.cost.qos"], true),
            (&["cgroup.controllers", "system.slice/io.bfq.weight"], true),
        ] {
            let cgroups = tempfile::tempdir().unwrap();
            for file in files {
                let path = cgroups.path().join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "").unwrap();
            }
            assert_eq!(weighs_disks(cgroups.path()), expected, "{files:?}");
        }
    }
}
