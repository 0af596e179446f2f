//! Ports of loopback.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::atomic::{AtomicU16, Ordering::Relaxed},
};

/// The first of so many consecutive ports that nobody listens on and no other test of this program takes.
///
/// They are below those that the system gives to whoever asks for a free one.
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

/// Whether nobody listens on it.
pub fn is_free(port: u16) -> bool {
    TcpListener::bind(local(port)).is_ok()
}

/// That port of loopback.
pub fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}
