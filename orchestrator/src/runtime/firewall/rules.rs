//! The rules as text for `nft -f`, and what must be read back after they were loaded.
//!
//! Each installation has its table. Loading replaces it in one transaction, so there is
//! no moment without rules. A verdict of `drop` or `reject` is final whatever other tables accept;
//! `accept` ends this table's chain only, so rules of Docker and of the administrator still hold.

use std::ops::RangeInclusive;

/// Prefix of the tables' names; the installation's id follows.
const TABLE_PREFIX: &str = "sq-gateway-";

/// Priority of the chains: before those of Docker and of `iptables`, which have priority 0.
const PRIORITY: &str = "-10";

/// Verdict on a TCP packet whose sender shall notice.
const RESET: &str = "reject with tcp reset";

/// Name of an installation's table.
pub(super) fn table_name(installation: &str) -> String {
    format!("{TABLE_PREFIX}{installation}")
}

/// What the rules of an installation protect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::runtime) enum Rules {
    /// Containers on a bridge of this host.
    Bridge {
        /// The bridge's network interface.
        interface: String,
        /// Users of this host who may connect to containers.
        uids: Vec<u32>,
    },
    /// Processes of a range of users.
    Processes {
        /// The users that SQ runs as.
        ids: RangeInclusive<u32>,
    },
}

/// A chain and the hook of the kernel that it is called by.
struct Chain {
    name: &'static str,
    hook: &'static str,
    rules: Vec<Rule>,
}

/// A rule and the comment by which it is recognized when the table is read back.
struct Rule {
    expression: String,
    comment: &'static str,
}

impl Rules {
    /// Script that replaces the table. Deleting needs an existing table, hence the empty one first.
    pub(super) fn script(&self, table: &str) -> String {
        let chains: String = self.chains().iter().map(Chain::text).collect();
        format!(
            "add table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n{chains}}}\n"
        )
    }

    /// Checks that a listed table consists of these chains and rules, in their order. Expressions
    /// are not compared, because versions of nft print them differently; the kernel has accepted
    /// them as they were sent.
    pub(super) fn are_listed_in(&self, listing: &str) -> bool {
        let mut expected = Vec::new();
        for chain in self.chains() {
            expected.push(format!("hook {}", chain.hook));
            expected.extend(chain.rules.iter().map(|rule| format!("comment \"{}\"", rule.comment)));
        }
        let is_marked = |line: &&str| line.contains(" hook ") || line.contains(" comment ");
        let listed: Vec<&str> = listing.lines().filter(is_marked).collect();
        listed.len() == expected.len()
            && listed.iter().zip(&expected).all(|(line, mark)| line.contains(mark.as_str()))
            // A dormant table is listed with all of its rules and filters nothing.
            && !listing.contains("flags dormant")
    }

    fn chains(&self) -> Vec<Chain> {
        match self {
            Self::Bridge { interface, uids } => bridge_chains(interface, uids),
            Self::Processes { ids } => vec![process_chain(ids)],
        }
    }
}

impl Chain {
    fn text(&self) -> String {
        let rules: String = self.rules.iter().map(Rule::text).collect();
        format!(
            "  chain {} {{\n    type filter hook {} priority {PRIORITY}; policy accept;\n{rules}  }}\n",
            self.name, self.hook
        )
    }
}

impl Rule {
    fn new(expression: impl Into<String>, comment: &'static str) -> Self {
        Self { expression: expression.into(), comment }
    }

    fn text(&self) -> String {
        format!("    {} comment \"{}\"\n", self.expression, self.comment)
    }
}

fn bridge_chains(interface: &str, uids: &[u32]) -> Vec<Chain> {
    let uids: Vec<String> = uids.iter().map(u32::to_string).collect();
    let uids = uids.join(", ");
    let to_tenants = vec![
        Rule::new(format!("oifname != \"{interface}\" accept"), "not to a tenant"),
        Rule::new(format!("meta skuid {{ {uids} }} accept"), "Envoy and the orchestrator"),
        // Also packets of connections that were opened while there were no rules. A reset ends a
        // `connect` at once; an ICMP error may be noticed after a second only.
        Rule::new(
            format!("meta skuid != {{ {uids} }} meta l4proto tcp {RESET}"),
            "no other user by TCP",
        ),
        Rule::new(format!("meta skuid != {{ {uids} }} drop"), "no other user"),
        // What the kernel itself sends has no user, such as the last packet of a connection.
        Rule::new("ct state established,related accept", "the kernel, for such connections"),
        Rule::new("drop", "nothing else to a tenant"),
    ];
    let from_tenants = vec![
        Rule::new(format!("iifname != \"{interface}\" accept"), "not from a tenant"),
        Rule::new(
            "ct state established,related ct direction reply accept",
            "responses of a tenant",
        ),
        Rule::new("drop", "nothing else to the host"),
    ];
    let through_the_host = vec![
        Rule::new(format!("iifname \"{interface}\" drop"), "no tenant to another host or tenant"),
        Rule::new(format!("oifname \"{interface}\" drop"), "no other host to a tenant"),
    ];
    vec![
        Chain { name: "to_tenants", hook: "output", rules: to_tenants },
        Chain { name: "from_tenants", hook: "input", rules: from_tenants },
        Chain { name: "through_the_host", hook: "forward", rules: through_the_host },
    ]
}

/// SQ listens on all addresses. Its SYN-ACK carries the user of its listener, so dropping what
/// leaves by another interface than the loopback closes it to other hosts.
fn process_chain(ids: &RangeInclusive<u32>) -> Chain {
    let users = format!("meta skuid {}-{}", ids.start(), ids.end());
    let rules = vec![
        Rule::new(
            format!("{users} ct direction original meta l4proto tcp {RESET}"),
            "no tenant opens a connection",
        ),
        Rule::new(format!("{users} ct direction original drop"), "no tenant sends anything else"),
        Rule::new(format!("{users} oifname != \"lo\" drop"), "no other host connects to a tenant"),
    ];
    Chain { name: "of_processes", hook: "output", rules }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bridge() -> Rules {
        Rules::Bridge { interface: "br-0123456789ab".into(), uids: vec![0, 101] }
    }

    #[test]
    fn script_replaces_the_table_in_one_transaction() {
        let script = bridge().script("sq-gateway-x");
        let lines: Vec<&str> = script.lines().take(3).collect();
        let table = "table inet sq-gateway-x";
        assert_eq!(
            lines,
            [format!("add {table}"), format!("delete {table}"), format!("{table} {{")]
        );
        assert!(script.contains("meta skuid { 0, 101 } accept"), "{script}");
        assert!(script.contains("meta skuid != { 0, 101 } drop"), "{script}");
        assert_eq!(script.matches('{').count(), script.matches('}').count(), "{script}");
    }

    #[test]
    fn own_script_passes_as_a_listing() {
        for rules in [bridge(), Rules::Processes { ids: 10_001..=60_000 }] {
            assert!(rules.are_listed_in(&rules.script("sq-gateway-x")));
        }
    }

    #[test]
    fn changed_tables_do_not_pass_as_listings() {
        let rules = bridge();
        let whole = rules.script("sq-gateway-x");
        for line in whole.lines().filter(|line| line.contains(" comment ")) {
            assert!(!rules.are_listed_in(&whole.replace(line, "")), "without {line}");
            let twice = whole.replace(line, &format!("{line}\n{line}"));
            assert!(!rules.are_listed_in(&twice), "twice {line}");
        }
        assert!(!rules.are_listed_in(&whole.replace("hook input", "hook forward")));
        assert!(!rules.are_listed_in(&format!("{whole}flags dormant\n")));
        assert!(!rules.are_listed_in(""));
    }
}
