//! The proxy-wasm filter that Envoy loads: translates callbacks to the gate's events and performs
//! its effects. It decides nothing and has no tests: see `gate`.
//!
//! One VM per worker. All contexts of a VM share one [`Shell`]; `host.rs` alone names hostcalls.

mod contexts;
mod host;
mod shell;

use proxy_wasm::types::LogLevel;

#[allow(missing_docs, reason = "the macro's own function")]
mod entry {
    use super::{LogLevel, contexts};

    proxy_wasm::main! {{
        proxy_wasm::set_log_level(LogLevel::Info);
        proxy_wasm::set_root_context(|id| Box::new(contexts::Root::new(id)));
    }}
}
