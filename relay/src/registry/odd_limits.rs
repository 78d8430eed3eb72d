//! Limits that are valid, and yet are hardly meant.

use protocol::Limits;
use protocol::limits::{DEBT_MAX_S, REQUEST_BYTES};
use protocol::time::DAY_S;

use super::unit::Unit;

/// Size up to which a response should take one token.
const ORDINARY_BYTES: u64 = 64 << 10;
/// Size of a response that every request of a day should be able to get.
const SMALL_BYTES: u64 = 1_000;

/// Returns one line for each odd combination.
pub(super) fn findings(limits: &Limits) -> Vec<String> {
    let mut findings = Vec::new();
    judge_hours(limits, &mut findings);
    if let Some(bytes_per_s) = limits.bytes_per_s_max() {
        judge_bytes_per_s(limits, bytes_per_s, &mut findings);
    }
    let Some(egress) = limits.egress_per_day_max() else {
        if limits.egress_bytes_per_day == protocol::ByteLimit::Auto {
            findings.push(
                "egress-per-day is unlimited because requests-per-day is; set a number, or write \
                 `unlimited`"
                    .to_owned(),
            );
        }
        return findings;
    };
    if egress == 0 {
        findings.push("egress-per-day is 0, so that every read is refused".to_owned());
        return findings;
    }
    let requests = limits.requests_per_day.max().filter(|requests| *requests > 0);
    if let Some(bytes) = requests.map(|requests| egress / requests)
        && bytes < SMALL_BYTES
    {
        findings
            .push(format!("egress-per-day leaves {bytes} bytes for each of the requests-per-day"));
    }
    let most = limits.bytes_per_s_max().map(|bytes_per_s| bytes_per_s.saturating_mul(DAY_S));
    if let Some(most) = most.filter(|most| *most < egress) {
        findings.push(format!(
            "egress-per-day has no effect: bytes-per-s allows {} bytes a day",
            Unit::Count.format(most)
        ));
    }
    findings
}

fn judge_hours(limits: &Limits, findings: &mut Vec<String>) {
    if let Some(hours) = limits.warm_hours
        && hours.from_h == hours.to_h % 24
    {
        findings
            .push("warm-hours are the whole day; write `keep: awake` if it is meant".to_owned());
    }
}

fn judge_bytes_per_s(limits: &Limits, bytes_per_s: u64, findings: &mut Vec<String>) {
    let token_bytes = limits.token_bytes().unwrap_or(REQUEST_BYTES);
    if token_bytes < ORDINARY_BYTES {
        findings.push(format!(
            "bytes-per-s leaves {token_bytes} bytes for each of the requests-per-s: a longer \
             response takes more than one token"
        ));
    }
    let whole_phext_s = limits.phext_max_bytes() / bytes_per_s.max(1);
    if whole_phext_s > DEBT_MAX_S {
        findings.push(format!(
            "bytes-per-s is too low for phext-max: reading the largest phext takes {whole_phext_s} \
             s of it, and a tenant owes {DEBT_MAX_S} s at most"
        ));
    }
}

#[cfg(test)]
mod tests {
    use protocol::ByteLimit::{Bytes, Unlimited};
    use protocol::limits::MB;
    use protocol::{CountLimit, WarmHours};

    use super::*;

    #[test]
    fn usual_limits_have_no_findings() {
        assert_eq!(findings(&Limits::default()), [""; 0]);
        let unlimited =
            Limits { bytes_per_s: Unlimited, egress_bytes_per_day: Unlimited, ..Limits::default() };
        assert_eq!(findings(&unlimited), [""; 0]);
    }

    #[test]
    fn odd_limits_are_found() {
        let free = Limits::default();
        for (limits, expected) in [
            (Limits { bytes_per_s: Bytes(500_000), ..free.clone() }, "50000 bytes for each"),
            (Limits { bytes_per_s: Bytes(1_000), ..free.clone() }, "4000 s of it"),
            (
                Limits { requests_per_day: CountLimit::Unlimited, ..free.clone() },
                "because requests-per-day is",
            ),
            (
                Limits { warm_hours: Some(WarmHours { from_h: 8, to_h: 8 }), ..free.clone() },
                "the whole day",
            ),
            (Limits { egress_bytes_per_day: Bytes(0), ..free.clone() }, "every read is refused"),
            (Limits { egress_bytes_per_day: Bytes(MB), ..free.clone() }, "100 bytes for each"),
            (
                Limits { egress_bytes_per_day: Bytes(90_000 * MB), ..free },
                "86400000000 bytes a day",
            ),
        ] {
            let found = findings(&limits);
            assert!(found.iter().any(|text| text.contains(expected)), "{expected}: {found:?}");
        }
    }
}
