//! Output of a command: data for programs on stdout, messages for people on stderr.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use protocol::TenantId;

use super::EXIT_FAULT;

/// The output of a command that succeeded.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Output {
    pub(super) stdout: String,
    pub(super) stderr: String,
    /// The tenant whose new key `stdout` contains. There is no other copy of that key.
    pub(super) new_key_of: Option<TenantId>,
}

impl Output {
    pub(super) fn message(text: &str) -> Self {
        Self { stderr: format!("{text}\n"), ..Self::default() }
    }

    /// Prints the output. A closed stdout, as after `| head`, is no fault unless a key is lost by it.
    pub fn print(&self) -> ExitCode {
        let mut stdout = std::io::stdout();
        let printed = stdout.write_all(self.stdout.as_bytes()).and_then(|()| stdout.flush());
        let message = match (printed, &self.new_key_of) {
            (Err(error), Some(tenant)) => format!(
                "the new key of tenant {tenant} could not be printed ({error}) and is lost; the \
                 registry has its digest. Generate another: relay registry rotate {tenant}\n"
            ),
            (Err(error), None) if error.kind() != ErrorKind::BrokenPipe => {
                format!("stdout: {error}\n")
            }
            _ => {
                print_message(&self.stderr);
                return ExitCode::SUCCESS;
            }
        };
        print_message(&message);
        ExitCode::from(EXIT_FAULT)
    }
}

/// Prints to stderr. If that fails, nothing is left to report it to.
fn print_message(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Formats a number with its noun, which takes an `s` unless the number is 1.
pub(super) fn counted(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}
