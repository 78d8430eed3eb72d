//! The headers `RateLimit` and `RateLimit-Policy` of draft-ietf-httpapi-ratelimit-headers-10.

use super::{Pace, Rate};

/// Value of `RateLimit-Policy` for the only policy: `q` requests in `w` seconds, the time in which
/// an empty bucket fills.
pub(super) fn policy(pace: Pace) -> String {
    format!("\"burst\";q={};w={}", pace.burst, pace.burst.div_ceil(pace.rate))
}

impl Rate {
    /// Value of `RateLimit`: `r` tokens are left and the bucket is full in `t` seconds.
    pub fn header(&self) -> String {
        let mut text = String::with_capacity(32);
        text.push_str("\"burst\";r=");
        push(&mut text, self.remaining);
        text.push_str(";t=");
        push(&mut text, self.reset_s);
        text
    }
}

/// Appends a number. This runs for every response, where `format!` would be most of the cost.
fn push(text: &mut String, number: u32) {
    let mut digits = [0; 10];
    let mut rest = number;
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    text.extend(digits[at..].iter().copied().map(char::from));
}

#[cfg(test)]
mod tests {
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn numbers_are_written_in_decimal() {
        for number in [0, 7, 10, 4_294_967_295] {
            let mut text = String::new();
            push(&mut text, number);
            assert_eq!(text, number.to_string());
        }
    }
}
