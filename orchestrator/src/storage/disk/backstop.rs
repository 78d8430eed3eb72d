//! Which hard limit per tenant the file system below the data root offers, and whether one is in
//! force. The gateway sets none: it stops writes before a tenant's cap, and a hard limit behind it
//! is the operator's (docs/sq.md says how). What is told here is looked up, never assumed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// File systems of which it is known how they cut a write (`vault::examine`).
const LOCAL: [&str; 8] = ["ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "overlay", "f2fs"];

/// The mount that a folder is on: a line of `/proc/self/mountinfo` (proc(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// Such as `ext4`.
    pub(super) kind: String,
    /// Such as `/dev/sda1`.
    source: String,
    /// Of the mount and of the file system.
    options: Vec<String>,
}

impl Mount {
    /// The mount of `folder`.
    pub(super) fn of(folder: &Path) -> io::Result<Self> {
        let folder = folder.canonicalize()?;
        let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
        let none = || io::Error::other(format!("{} is on no known mount", folder.display()));
        found(&mountinfo, &folder).ok_or_else(none)
    }

    /// What it offers, for the operator.
    pub(super) fn offer(&self) -> String {
        self.offer_with(|source| btrfs_quotas(Path::new("/sys/fs/btrfs"), source))
    }

    fn offer_with(&self, quotas: impl Fn(&str) -> bool) -> String {
        let has = |option: &str| self.options.iter().any(|o| o == option);
        match self.kind.as_str() {
            "ext4" | "xfs" | "f2fs" if has("prjquota") || has("pquota") => {
                format!("{} with project quotas", self.kind)
            }
            "ext4" | "xfs" | "f2fs" => format!("none: {} without prjquota", self.kind),
            "btrfs" if quotas(&self.source) => {
                "btrfs with qgroups (btrfs qgroup show -re tells their limits)".to_owned()
            }
            "btrfs" => "none: btrfs without quotas".to_owned(),
            other => format!("none: {other} offers none"),
        }
    }

    /// What the operator must know of it; `None`: nothing.
    pub(super) fn warning(&self) -> Option<String> {
        let unknown = !LOCAL.contains(&self.kind.as_str());
        unknown.then(|| {
            let kind = &self.kind;
            format!("tenants' files are on {kind}: not every write that it cuts can be told")
        })
    }
}

/// The last line whose mount point is the longest above `folder`: later mounts cover earlier ones.
fn found(mountinfo: &str, folder: &Path) -> Option<Mount> {
    let mounts = mountinfo.lines().filter_map(parsed);
    let above = mounts.filter(|(point, _)| folder.starts_with(point));
    above.max_by_key(|(point, _)| point.components().count()).map(|(_, mount)| mount)
}

/// `36 35 98:0 /root /point rw,noatime shared:1 - ext4 /dev/sda1 rw,prjquota`
fn parsed(line: &str) -> Option<(PathBuf, Mount)> {
    let (mount, system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(4);
    let (point, own) = (mount.next()?, mount.next()?);
    let mut system = system.split(' ');
    let (kind, source) = (system.next()?.to_owned(), system.next()?.to_owned());
    let options = own.split(',').chain(system.next()?.split(','));
    let options = options.map(str::to_owned).collect();
    Some((unescaped(point), Mount { kind, source, options }))
}

/// Spaces, tabs, line breaks and backslashes are written as three octal digits.
fn unescaped(text: &str) -> PathBuf {
    let codes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    codes.iter().fold(text.to_owned(), |text, (code, char)| text.replace(code, char)).into()
}

/// Whether quotas are on in the btrfs that has this device: its `qgroups` are in sysfs then (Linux
/// 5.9).
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
        found(MOUNTS, Path::new(folder)).unwrap().offer_with(|_| quotas)
    }

    #[test]
    fn the_mount_is_the_nearest_above_and_the_last_on_its_point() {
        assert_eq!(on("/srv/data/tenants", true), "none: ext4 without prjquota");
        assert_eq!(on("/srv/database", true), "none: ext4 without prjquota");
        let earlier = MOUNTS.replace("33 22", "# 33 22").replace(" - ext4 /dev/sdd rw", "");
        let mount = found(&earlier, Path::new("/srv/data/tenants")).unwrap();
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
    fn a_file_system_that_may_cut_anywhere_is_warned_of() {
        let warning = |folder| found(MOUNTS, Path::new(folder)).unwrap().warning();
        assert_eq!(warning("/srv/data"), None);
        assert!(warning("/srv/net").unwrap().contains("9p"));
    }

    #[test]
    fn this_host_s_own_mount_is_found() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!Mount::of(dir.path()).unwrap().kind.is_empty());
    }
}
