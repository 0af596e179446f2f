//! Ports: free ports of loopback.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::atomic::{AtomicU16, Ordering::Relaxed},
};

/// Returns the first of `n` consecutive free ports, which no other call in this program gets.
///
/// The ports are below the range from which the system assigns free ports.
pub fn free_ports(n: u16) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let begin = 10_000 + (std::process::id() % 1000) as u16 * 20;
    loop {
        let first = begin + NEXT.fetch_add(n, Relaxed) % 2_000;
        if (first..first + n).all(is_free) {
            return first;
        }
    }
}

/// Returns whether no process listens on the port.
pub fn is_free(port: u16) -> bool {
    TcpListener::bind(local(port)).is_ok()
}

/// Returns the IPv4 loopback address with the port.
pub fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}
