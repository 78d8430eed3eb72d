//! The hard limit per tenant that the file system of the data root offers.
//!
//! The gateway sets none. It refuses writes before a tenant's cap; a hard limit behind that is for the
//! operator to set, as docs/copies.md describes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// File systems that end a partial write at a block, as `vault::examine` presumes.
const LOCAL: [&str; 8] = ["ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "overlay", "f2fs"];

/// The mount that holds a folder: a line of `/proc/self/mountinfo` (proc(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// Type of the file system, such as `ext4`.
    pub(super) kind: String,
    /// Device, such as `/dev/sda1`.
    source: String,
    /// Options of the mount and of the file system.
    options: Vec<String>,
}

impl Mount {
    /// Looks up the mount that holds `folder`.
    pub(super) fn of(folder: &Path) -> io::Result<Self> {
        let folder = folder.canonicalize()?;
        let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
        let unknown = || io::Error::other(format!("{} is on no known mount", folder.display()));
        mount_of(&mountinfo, &folder).ok_or_else(unknown)
    }

    /// Describes for the operator the hard limit that it offers.
    pub(super) fn offer(&self) -> String {
        self.offer_with(|source| btrfs_quotas(Path::new("/sys/fs/btrfs"), source))
    }

    fn offer_with(&self, quotas: impl Fn(&str) -> bool) -> String {
        let project_quotas = self.options.iter().any(|o| o == "prjquota" || o == "pquota");
        match self.kind.as_str() {
            "ext4" | "xfs" | "f2fs" if project_quotas => {
                format!("{} with project quotas", self.kind)
            }
            "ext4" | "xfs" | "f2fs" => format!("none: {} without prjquota", self.kind),
            "btrfs" if quotas(&self.source) => {
                "btrfs with qgroups (btrfs qgroup show -re lists their limits)".to_owned()
            }
            "btrfs" => "none: btrfs without quotas".to_owned(),
            other => format!("none: {other} offers none"),
        }
    }

    /// Returns a warning if truncated files may go unnoticed on it.
    pub(super) fn warning(&self) -> Option<String> {
        if LOCAL.contains(&self.kind.as_str()) {
            return None;
        }
        let kind = &self.kind;
        Some(format!("tenants' files are on {kind}: not every truncated file can be recognized"))
    }
}

/// Returns the last mount among those with the longest mount point above `folder`, because later
/// mounts cover earlier ones.
fn mount_of(mountinfo: &str, folder: &Path) -> Option<Mount> {
    let mounts = mountinfo.lines().filter_map(parse);
    let above = mounts.filter(|(point, _)| folder.starts_with(point));
    above.max_by_key(|(point, _)| point.components().count()).map(|(_, mount)| mount)
}

/// Parses a line such as
/// `36 35 98:0 /root /point rw,noatime shared:1 - ext4 /dev/sda1 rw,prjquota`.
fn parse(line: &str) -> Option<(PathBuf, Mount)> {
    let (mount, system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(4);
    let point = mount.next()?;
    let mount_options = mount.next()?;
    let mut system = system.split(' ');
    let kind = system.next()?.to_owned();
    let source = system.next()?.to_owned();
    let system_options = system.next()?;
    let options = mount_options.split(',').chain(system_options.split(','));
    let options = options.map(str::to_owned).collect();
    Some((unescape(point), Mount { kind, source, options }))
}

/// Decodes a path, in which spaces, tabs, line breaks and backslashes stand as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let codes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    codes.iter().fold(text.to_owned(), |text, (code, char)| text.replace(code, char)).into()
}

/// True if quotas are enabled in the btrfs that has this device: then its `qgroups` are in sysfs
/// (since Linux 5.9).
fn btrfs_quotas(sysfs: &Path, source: &str) -> bool {
    let Some(device) = Path::new(source).file_name() else { return false };
    let Ok(systems) = fs::read_dir(sysfs) else { return false };
    let mut systems = systems.filter_map(Result::ok).map(|entry| entry.path());
    systems.any(|fs| fs.join("devices").join(device).exists() && fs.join("qgroups").exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 1 0:21 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
30 22 8:1 / /srv/data rw,noatime - xfs /dev/sdb1 rw,attr2,prjquota
31 22 8:2 / /srv/a\\040b rw - btrfs /dev/sdc rw,subvol=/
32 22 0:40 / /srv/net rw - 9p host rw
33 22 8:3 / /srv/data rw - ext4 /dev/sdd rw
garbage
";

    fn on(folder: &str, quotas: bool) -> String {
        mount_of(MOUNTS, Path::new(folder)).unwrap().offer_with(|_| quotas)
    }

    #[test]
    fn nearest_and_last_mount_is_found() {
        assert_eq!(on("/srv/data/tenants", true), "none: ext4 without prjquota");
        assert_eq!(on("/srv/database", true), "none: ext4 without prjquota");
        let earlier = MOUNTS.replace("33 22", "# 33 22").replace(" - ext4 /dev/sdd rw", "");
        let mount = mount_of(&earlier, Path::new("/srv/data/tenants")).unwrap();
        assert_eq!(mount.offer_with(|_| false), "xfs with project quotas");
    }

    #[test]
    fn qgroups_are_offered_only_where_they_are_on() {
        assert_eq!(on("/srv/a b", false), "none: btrfs without quotas");
        assert!(on("/srv/a b/tenants", true).starts_with("btrfs with qgroups"));
        let sysfs = tempfile::tempdir().unwrap();
        fs::create_dir_all(sysfs.path().join("uuid/devices/sdc")).unwrap();
        assert!(!btrfs_quotas(sysfs.path(), "/dev/sdc"));
        fs::create_dir(sysfs.path().join("uuid/qgroups")).unwrap();
        assert!(btrfs_quotas(sysfs.path(), "/dev/sdc"));
        assert!(!btrfs_quotas(sysfs.path(), "/dev/sdd"));
    }

    #[test]
    fn unknown_file_system_causes_a_warning() {
        let warning = |folder| mount_of(MOUNTS, Path::new(folder)).unwrap().warning();
        assert_eq!(warning("/srv/data"), None);
        assert!(warning("/srv/net").unwrap().contains("9p"));
    }

    #[test]
    fn mount_of_this_host_is_found() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!Mount::of(dir.path()).unwrap().kind.is_empty());
    }
}
