//! The machine that tests run on: certificates, Docker, files, ports, processes, signals, sockets,
//! programs.

pub mod certs;
pub mod docker;
pub mod files;
pub mod ports;
pub mod processes;
pub mod signals;
pub mod sockets;
pub mod tools;
