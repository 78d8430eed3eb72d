//! Envoy's callbacks: one root context per VM and plugin, one HTTP context per request.

use std::rc::Rc;

use gate::Gate;
use gate::engine::{AnswerStep, BodyStep, Step};
use protocol::config::RawFilterConfig;
use protocol::{FilterConfig, GatewayId};
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType};

use crate::host::{self, SharedData};
use crate::shell::{Shell, TICK};

/// The root: configuration, ticks, and the calls that no request waits in.
pub(crate) struct Root {
    id: u32,
    shell: Option<Rc<Shell>>,
}

impl Root {
    pub(crate) fn new(id: u32) -> Self {
        Self { id, shell: None }
    }

    /// All faults, one line each.
    fn configure(&mut self, size: usize) -> Result<(), String> {
        let bytes = host::plugin_configuration(size);
        let bytes = if bytes.is_empty() { b"{}".as_slice() } else { &bytes };
        let raw: RawFilterConfig = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let config = FilterConfig::try_from(raw).map_err(|faults| faults.to_string())?;
        let node = host::node_id();
        let gateway = GatewayId::parse(&node)
            .map_err(|e| format!("node.id of this Envoy is {node:?}: {e}"))?;
        let gate = Gate::new(config, gateway, source(), &SharedData);
        self.shell = Some(Shell::new(self.id, gate));
        host::set_tick_period(TICK);
        Ok(())
    }
}

impl Context for Root {
    fn on_http_call_response(&mut self, token: u32, headers: usize, size: usize, _: usize) {
        if let Some(shell) = &self.shell {
            shell.call_done(None, token, headers, size);
        }
    }
}

impl RootContext for Root {
    fn on_configure(&mut self, size: usize) -> bool {
        let result = self.configure(size);
        if let Err(faults) = &result {
            for fault in faults.lines() {
                log::error!("sq-gateway configuration: {fault}");
            }
        }
        result.is_ok()
    }

    fn on_tick(&mut self) {
        if let Some(shell) = &self.shell {
            shell.tick();
        }
    }

    fn create_http_context(&self, id: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Http { id, shell: self.shell.clone() }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

/// Names this life of this VM like no other of this Envoy: the time it began at, and a number that
/// all VMs of the process count up together.
fn source() -> String {
    let mut lives = 0;
    gate::shared::update(&mut SharedData, "v1/lives", |bytes| {
        let before = bytes.and_then(|b| std::str::from_utf8(b).ok()?.parse::<u64>().ok());
        lives = before.unwrap_or(0) + 1;
        Some(lives.to_string().into_bytes())
    });
    protocol::usage::source(host::now_ns(), lives)
}

/// A request. `shell` is there unless the configuration was refused, and then nothing passes.
struct Http {
    id: u32,
    shell: Option<Rc<Shell>>,
}

impl Context for Http {
    fn on_http_call_response(&mut self, token: u32, headers: usize, size: usize, _: usize) {
        if let Some(shell) = &self.shell {
            shell.call_done(Some(self.id), token, headers, size);
        }
    }
}

impl HttpContext for Http {
    fn on_http_request_headers(&mut self, _: usize, end: bool) -> Action {
        let Some(shell) = &self.shell else { return Action::Pause };
        let headers = host::request_headers();
        let now = shell.coarse_now();
        let step = shell.with(|gate, shared| {
            gate.on_request_head(self.id, &headers, end, host::client_address, now, shared)
        });
        match step.or(shell.perform_within(self.id)) {
            Step::Forward(headers) if shell.forward(self.id, &headers) => Action::Continue,
            Step::Forward(_) => Action::Pause,
            Step::Answer(reply) => {
                host::drop_reserved(&headers);
                host::send_reply(&reply);
                Action::Pause
            }
            Step::Wait => {
                host::drop_reserved(&headers);
                Action::Pause
            }
        }
    }

    fn on_http_request_body(&mut self, size: usize, end: bool) -> Action {
        let Some(shell) = &self.shell else { return Action::Pause };
        let is_read = shell.with(|gate, _| gate.reads_body(self.id));
        if !is_read && !end {
            return Action::Continue;
        }
        let chunk = if is_read && size > 0 { host::request_body(size) } else { Vec::new() };
        let now = shell.coarse_now();
        let step =
            shell.with(|gate, shared| gate.on_request_body(self.id, &chunk, end, now, shared));
        match step.or(shell.perform_within(self.id)) {
            BodyStep::Pass => Action::Continue,
            BodyStep::Wait => Action::Pause,
            BodyStep::Refuse(reply) => {
                host::send_reply(&reply);
                Action::Pause
            }
        }
    }

    /// Trailers end a body as well; none are passed on.
    fn on_http_request_trailers(&mut self, _: usize) -> Action {
        self.on_http_request_body(0, true)
    }

    fn on_http_response_headers(&mut self, _: usize, end: bool) -> Action {
        let Some(shell) = &self.shell else { return Action::Continue };
        if !shell.with(|gate, _| gate.reads_answer(self.id)) {
            return Action::Continue;
        }
        let status = host::response_status();
        let head = &host::ResponseHead;
        match shell.with(|gate, _| gate.on_answer_head(self.id, status, end, head)) {
            AnswerStep::Pass => Action::Continue,
            AnswerStep::Put(headers) => {
                host::put_response_headers(&headers);
                Action::Continue
            }
            AnswerStep::Rewrite => {
                host::remove_response_header("content-length");
                Action::Continue
            }
            AnswerStep::Replace(reply) => {
                host::send_reply(&reply);
                Action::Pause
            }
        }
    }

    fn on_http_response_body(&mut self, size: usize, end: bool) -> Action {
        let Some(shell) = &self.shell else { return Action::Continue };
        if shell.with(|gate, _| gate.on_answer_bytes(self.id, size)) {
            let chunk = if size > 0 { host::response_body(size) } else { Vec::new() };
            let body = shell.with(|gate, _| gate.on_answer_body(self.id, &chunk, end));
            host::set_response_body(size, &body);
        }
        Action::Continue
    }
}

/// A stream's end, whatever ended it: the host deletes its context. `on_done` and `on_log` say no
/// more than this, and each would cost one more way into the VM (see `docs/decisions/`).
impl Drop for Http {
    fn drop(&mut self) {
        if let Some(shell) = &self.shell {
            shell.end_stream(self.id);
        }
    }
}
