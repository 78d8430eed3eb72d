//! Names of tenants, tiers and gateways, which are checked wherever they enter a process.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name in bytes: with a prefix it must fit into the names of containers and folders.
pub const NAME_MAX_BYTES: usize = 40;

/// The error for a text that is not a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MalformedName;

impl fmt::Display for MalformedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a name is 1 to {NAME_MAX_BYTES} of a-z, 0-9 and '-', first and last a letter or digit"
        )
    }
}

impl std::error::Error for MalformedName {}

fn check(text: &str) -> Result<(), MalformedName> {
    let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let has_length = (1..=NAME_MAX_BYTES).contains(&text.len());
    let has_hyphen_at_edge = text.starts_with('-') || text.ends_with('-');
    if has_length && !has_hyphen_at_edge && text.bytes().all(is_allowed) {
        Ok(())
    } else {
        Err(MalformedName)
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Box<str>);

        impl $type {
            /// Reads a name: 1 to 40 of `a-z`, `0-9`, `-`; first and last not `-`.
            pub fn parse(text: &str) -> Result<Self, MalformedName> {
                check(text)?;
                Ok(Self(text.into()))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = MalformedName;
            fn from_str(text: &str) -> Result<Self, MalformedName> {
                Self::parse(text)
            }
        }

        impl TryFrom<String> for $type {
            type Error = MalformedName;
            fn try_from(text: String) -> Result<Self, MalformedName> {
                Self::parse(&text)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0.into()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// Name of a tenant: a customer with a private SQ database and one or more keys.
    TenantId
}

name! {
    /// Name of a tier, such as `free` or `pro`; the registry has its limits.
    TierName
}

name! {
    /// Name of a gateway: the `node.id` of its Envoy. Envoys that share an orchestrator have different
    /// ones.
    GatewayId
}

impl Default for TierName {
    /// The tier whose limits are [`crate::Limits::default`].
    fn default() -> Self {
        Self("free".into())
    }
}

impl TenantId {
    /// Name of the Envoy cluster that routes to this tenant.
    pub fn cluster(&self) -> String {
        format!("{}{}", crate::headers::CLUSTER_PREFIX, self.0)
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn name_is_safe_as_folder_and_container() {
        for good in ["a", "alice", "team-7", "0", &"x".repeat(40)] {
            assert!(TenantId::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "..", "é", "a b", &"x".repeat(41)] {
            assert_eq!(TenantId::parse(bad), Err(MalformedName), "{bad}");
        }
    }

    #[test]
    fn cluster_is_named_after_its_tenant() {
        assert_eq!(TenantId::parse("alice").unwrap().cluster(), "sq/alice");
    }
}
