//! The seccomp profile of containers: the system calls that SQ makes, and no others.
//!
//! `seccomp.json` has Docker's format, with a reason for each group of calls.
//! docs/decisions/2026-12-01-system-calls-of-sq.md says how the list was measured.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::config::SeccompProfile;
use crate::runtime::RuntimeError;

const BUILT_IN: &str = include_str!("seccomp.json");

/// Docker's security option for a profile; `None` leaves the daemon's own in force. `has_seccomp`
/// tells whether the daemon can apply any.
pub(super) fn security_option(
    profile: &SeccompProfile,
    has_seccomp: bool,
) -> Result<Option<String>, RuntimeError> {
    let json = match profile {
        SeccompProfile::Docker => return Ok(None),
        SeccompProfile::BuiltIn => parse(BUILT_IN),
        SeccompProfile::File(path) => read(path),
    };
    let json = json.map_err(|error| RuntimeError::Failed(format!("docker.seccomp: {error}")))?;
    if !has_seccomp {
        return Err(RuntimeError::Failed(
            "docker.seccomp: this Docker daemon or its kernel has no seccomp, so no system call of \
             tenants can be refused; `seccomp = \"docker\"` runs them without"
                .to_owned(),
        ));
    }
    // The daemon takes the profile itself and not its path.
    Ok(Some(format!("seccomp={json}")))
}

fn read(path: &Path) -> Result<Value, String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string());
    text.and_then(|text| parse(&text)).map_err(|error| format!("{}: {error}", path.display()))
}

/// Parses a profile. The daemon checks more; but one without a default action would allow all.
fn parse(text: &str) -> Result<Value, String> {
    let profile: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if profile["defaultAction"].is_string() && profile["syscalls"].is_array() {
        return Ok(profile);
    }
    Err("not a seccomp profile of Docker: `defaultAction` or `syscalls` is missing".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(profile: &SeccompProfile) -> Result<Option<String>, String> {
        security_option(profile, true).map_err(|error| error.to_string())
    }

    #[test]
    fn built_in_profile_refuses_what_it_does_not_name() {
        let option = option(&SeccompProfile::BuiltIn).unwrap().unwrap();
        let profile: Value =
            serde_json::from_str(option.strip_prefix("seccomp=").unwrap()).unwrap();
        assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
        let rules = profile["syscalls"].as_array().unwrap();
        let allowed = |call: &str| {
            let is_named = |rule: &&Value| rule["names"].as_array().unwrap().contains(&call.into());
            rules.iter().filter(is_named).any(|rule| rule["action"] == "SCMP_ACT_ALLOW")
        };
        for call in ["openat", "accept4", "futex", "execve"] {
            assert!(allowed(call), "{call}");
        }
        for call in ["connect", "ptrace", "unshare", "mount", "bpf", "io_uring_setup", "clone3"] {
            assert!(!allowed(call), "{call}");
        }
    }

    #[test]
    fn profile_of_docker_is_no_option() {
        assert_eq!(option(&SeccompProfile::Docker), Ok(None));
        assert_eq!(security_option(&SeccompProfile::Docker, false), Ok(None));
    }

    #[test]
    fn daemon_without_seccomp_is_refused() {
        let error = security_option(&SeccompProfile::BuiltIn, false).unwrap_err().to_string();
        assert!(error.contains("`seccomp = \"docker\"`"), "{error}");
    }

    #[test]
    fn faulty_file_is_named_in_the_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("profile.json");
        for (text, expected) in [("{", "EOF"), ("{\"syscalls\": []}", "`defaultAction`")] {
            fs::write(&path, text).unwrap();
            let error = option(&SeccompProfile::File(path.clone())).unwrap_err();
            assert!(error.starts_with("docker.seccomp: /") && error.contains(expected), "{error}");
        }
        assert!(option(&SeccompProfile::File("/nowhere".into())).is_err());
    }
}
