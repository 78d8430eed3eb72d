//! What the rules of a bridge need from this host.

use std::fs;
use std::path::Path;

/// Network interfaces of this host.
const INTERFACES: &str = "/sys/class/net";

/// The kernel's switch that passes frames between two ports of one bridge to the firewall. Docker
/// turns it on and needs it to keep containers from each other.
const BRIDGE_FILTER: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// Checks that rules about this bridge have an effect.
pub(super) fn check(interface: &str) -> Result<(), String> {
    check_interface(Path::new(INTERFACES), interface)?;
    check_filter(Path::new(BRIDGE_FILTER))
}

fn check_interface(interfaces: &Path, interface: &str) -> Result<(), String> {
    if interfaces.join(interface).exists() {
        return Ok(());
    }
    Err(format!(
        "the bridge {interface} is not among this host's network interfaces: Docker's daemon runs \
         elsewhere, or in a network namespace of its own"
    ))
}

fn check_filter(switch: &Path) -> Result<(), String> {
    match fs::read_to_string(switch) {
        Ok(value) if value.trim() == "1" => Ok(()),
        Ok(value) => Err(format!(
            "{} is {}, so tenants reach each other: set it to 1",
            switch.display(),
            value.trim()
        )),
        Err(error) => Err(format!(
            "{}: {error}: load the kernel module br_netfilter, without which tenants reach each \
             other",
            switch.display()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bridge_of_another_host_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check_interface(dir.path(), "br-1").unwrap_err().contains("br-1"));
        fs::create_dir(dir.path().join("br-1")).unwrap();
        assert_eq!(check_interface(dir.path(), "br-1"), Ok(()));
    }

    #[test]
    fn unfiltered_bridge_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let switch = dir.path().join("bridge-nf-call-iptables");
        assert!(check_filter(&switch).unwrap_err().contains("br_netfilter"));
        fs::write(&switch, "0\n").unwrap();
        assert!(check_filter(&switch).unwrap_err().contains("set it to 1"));
        fs::write(&switch, "1\n").unwrap();
        assert_eq!(check_filter(&switch), Ok(()));
    }
}
