//! The machine that tests run on: tools, ports, processes, Docker, certificates.

pub mod certs;
pub mod docker;
pub mod ports;
pub mod processes;
pub mod signals;
pub mod tools;
