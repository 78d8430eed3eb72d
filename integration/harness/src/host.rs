//! The machine that tests run on: certificates, Docker, files, firewall, ports, processes, signals,
//! sockets, programs.

pub mod certs;
pub mod docker;
pub mod files;
pub mod firewall;
pub mod nftables;
pub mod ports;
pub mod processes;
pub mod signals;
pub mod sockets;
pub mod tools;
