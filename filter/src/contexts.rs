//! Envoy's callbacks: one root context per VM and plugin, one HTTP context per request.

use std::rc::Rc;

use gate::Gate;
use gate::effect::{Effect, StreamId};
use protocol::{FilterConfig, GatewayId};
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType};
use settings::Tree;

use crate::host::{self, SharedData};
use crate::shell::{Shell, TICK};

/// The root context: configuration, ticks, and the calls that were made by no request.
pub(crate) struct Root {
    id: u32,
    shell: Option<Rc<Shell>>,
}

impl Root {
    pub(crate) fn new(id: u32) -> Self {
        Self { id, shell: None }
    }

    /// Starts the gate; otherwise returns all faults of the configuration, one per line.
    fn configure(&mut self, size: usize) -> Result<(), String> {
        let bytes = host::plugin_configuration(size);
        let bytes = if bytes.is_empty() { b"{}".as_slice() } else { &bytes };
        let tree: Tree = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let config = FilterConfig::read(&tree).map_err(|faults| faults.to_string())?;
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
        Some(Box::new(Http { id: StreamId(id), shell: self.shell.clone(), reply_is_plain: false }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

/// A name that is unique to this VM instance in this Envoy: the time at which it began, and a number
/// that all VMs of the process count up together.
fn source() -> String {
    let mut instances = 0;
    gate::shared::update(&mut SharedData, "v1/lives", |bytes| {
        let before = bytes.and_then(|b| std::str::from_utf8(b).ok()?.parse::<u64>().ok());
        instances = before.unwrap_or(0) + 1;
        Some(instances.to_string().into_bytes())
    });
    protocol::usage::source_id(host::now_ns(), instances)
}

/// The context of a request. `shell` is `None` only if the configuration was refused, and then
/// nothing passes.
struct Http {
    id: StreamId,
    shell: Option<Rc<Shell>>,
    /// The head has come, and is not gRPC's: Envoy leaves the status of a reply as it is.
    reply_is_plain: bool,
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
        let callback = shell.begin();
        let headers = host::request_headers();
        self.reply_is_plain = !host::is_grpc(&headers);
        let now = Shell::coarse_now();
        shell.with(|gate, shared| {
            gate.on_request_head(self.id, &headers, end, host::client_address, now, shared);
        });
        let effect = shell.next_own_effect(callback, self.id);
        if !matches!(effect, Some(Effect::Forward(..))) {
            // A forwarded head is replaced as a whole. Any other is paused or answered as it is, and
            // must not carry our header names, which a later filter or route would trust.
            host::remove_reserved(&headers);
        }
        let action = effect.map(|effect| shell.apply(effect));
        // A head that could not be written brings a reply.
        shell.perform_own(callback, self.id).or(action).unwrap_or(Action::Pause)
    }

    fn on_http_request_body(&mut self, size: usize, end: bool) -> Action {
        let Some(shell) = &self.shell else { return Action::Pause };
        let callback = shell.begin();
        let now = Shell::coarse_now();
        let read = || if size > 0 { host::request_body(size) } else { Vec::new() };
        let reply = shell.take_postponed_reply(self.id);
        shell.with(|gate, shared| gate.on_request_body(self.id, end, read, now, shared));
        let reply = reply.map(|reply| shell.apply(reply));
        reply.or(shell.perform_own(callback, self.id)).unwrap_or(Action::Pause)
    }

    /// Trailers end a body as well. Envoy drops them.
    fn on_http_request_trailers(&mut self, _: usize) -> Action {
        self.on_http_request_body(0, true)
    }

    fn on_http_response_headers(&mut self, _: usize, end: bool) -> Action {
        if !self.reply_is_plain {
            // A filter before this one or a refusal of ours has answered a gRPC request.
            host::restore_status();
        }
        let Some(shell) = &self.shell else { return Action::Continue };
        let callback = shell.begin();
        shell.with(|gate, _| gate.on_response_head(self.id, end, &host::CurrentResponse));
        shell.perform_own(callback, self.id).unwrap_or(Action::Continue)
    }

    fn on_http_response_body(&mut self, size: usize, end: bool) -> Action {
        let Some(shell) = &self.shell else { return Action::Continue };
        let read = || if size > 0 { host::response_body(size) } else { Vec::new() };
        if let Some(body) = shell.with(|gate, _| gate.on_response_body(self.id, size, end, read)) {
            host::set_response_body(size, &body);
        }
        Action::Continue
    }
}

/// The end of a stream, for any reason: the host deletes its context. `on_done` and `on_log` tell no
/// more than this, and each would cost one more entry into the VM (docs/decisions/2026-11-23-what-the-warm-path-costs.md).
impl Drop for Http {
    fn drop(&mut self) {
        if let Some(shell) = &self.shell {
            shell.end_stream(self.id);
        }
    }
}
