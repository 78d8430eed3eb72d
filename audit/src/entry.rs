//! Lines of the log.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Bound on each text of a line: request paths and messages are shorter.
const TEXT_MAX_BYTES: usize = 512;
/// The text before the hash at the end of a line.
const HASH_PREFIX: &str = ",\"hash\":\"";
/// The text after it.
const HASH_SUFFIX: &str = "\"}";
/// Hexadecimal digits of a hash.
const HASH_DIGITS: usize = 64;

/// A process and its user.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// User id of the process; `None` if the kernel did not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Process id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// User id of who became root by sudo. The caller states it, so it is a hint and no proof.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sudo_uid: Option<u32>,
}

/// An action that is about to begin. It contains no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    /// The actor.
    pub actor: Actor,
    /// Name of the action, such as `sleep`.
    pub name: String,
    /// The tenant that it is done to, if one.
    pub tenant: Option<String>,
    /// Further parameters.
    pub detail: String,
}

/// The end of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was refused, and nothing was done.
    Refused,
    /// It failed.
    Failed,
}

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Number of the line: 1, 2, 3 … over all files.
    pub n: u64,
    /// Time in UTC, as RFC 3339 has it.
    pub at: String,
    /// The actor, at the begin of an action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor>,
    /// Name of the action, at its begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// The tenant, at the begin of an action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Number of the action's first line, at its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begin: Option<u64>,
    /// The outcome, at the end of an action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Parameters at the begin, a message at the end.
    pub detail: String,
    /// Hash of the line before; zeros for the first line of a log.
    pub prev: String,
}

/// An action with its outcome, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ActionReport {
    /// Number of its first line.
    pub n: u64,
    /// Time of its begin.
    pub at: String,
    /// The actor.
    pub actor: Actor,
    /// Its name.
    pub action: String,
    /// The tenant, if one.
    pub tenant: Option<String>,
    /// Its parameters.
    pub detail: String,
    /// Its outcome; `None` if it was interrupted or is under way.
    pub outcome: Option<Outcome>,
    /// The message at its end.
    pub message: String,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.uid {
            Some(uid) => write!(f, "uid {uid}")?,
            None => f.write_str("unknown")?,
        }
        if let Some(sudo_uid) = self.sudo_uid {
            write!(f, " by sudo of uid {sudo_uid}")?;
        }
        match self.pid {
            Some(pid) => write!(f, ", pid {pid}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Failed => "failed",
        })
    }
}

impl Entry {
    /// Hash before the first line.
    pub(crate) fn first_prev() -> String {
        "0".repeat(HASH_DIGITS)
    }

    /// Writes the line, without a line break, and its hash.
    pub(crate) fn seal(&self) -> Result<(String, String), serde_json::Error> {
        let body = serde_json::to_string(self)?;
        let hash = hex::encode(Sha256::digest(&body));
        let open = body.strip_suffix('}').unwrap_or(&body);
        Ok((format!("{open}{HASH_PREFIX}{hash}{HASH_SUFFIX}"), hash))
    }

    /// Reads a line and checks its hash, of which it returns the digits.
    pub(crate) fn unseal(line: &str) -> Result<(Self, String), &'static str> {
        let sealed = line.strip_suffix(HASH_SUFFIX).ok_or("it has no hash")?;
        let (open, hash) = sealed.rsplit_once(HASH_PREFIX).ok_or("it has no hash")?;
        let body = format!("{open}}}");
        if hex::encode(Sha256::digest(&body)) != hash {
            return Err("its hash is another: it was changed");
        }
        let entry = serde_json::from_str(&body).map_err(|_| "it is no entry")?;
        Ok((entry, hash.to_owned()))
    }
}

/// Shortens a text, and keeps it on one line.
pub(crate) fn bounded(text: &str) -> String {
    let end = text.floor_char_boundary(TEXT_MAX_BYTES);
    text[..end].trim_end().replace(['\n', '\r'], " ")
}

/// Joins begins and outcomes, in the order of the begins.
pub fn reports(entries: &[Entry]) -> Vec<ActionReport> {
    let mut reports: BTreeMap<u64, ActionReport> = BTreeMap::new();
    for entry in entries {
        if let (Some(actor), Some(action)) = (&entry.actor, &entry.action) {
            let report = ActionReport {
                n: entry.n,
                at: entry.at.clone(),
                actor: actor.clone(),
                action: action.clone(),
                tenant: entry.tenant.clone(),
                detail: entry.detail.clone(),
                outcome: None,
                message: String::new(),
            };
            reports.insert(entry.n, report);
        } else if let Some(report) = entry.begin.and_then(|begin| reports.get_mut(&begin)) {
            report.outcome = entry.outcome;
            report.message.clone_from(&entry.detail);
        }
    }
    reports.into_values().collect()
}
