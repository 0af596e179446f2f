//! Nodes that are announced by the library alone, as another implementation would: what is tested is not used.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use groupcache_core::Me;
use mdns_sd::{IfKind, ServiceDaemon, ServiceInfo};
use tokio::time::{Instant, sleep};

/// Long enough for anything that works, on a busy machine with two cores.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const SERVICE: &str = "_groupcache._tcp.local.";

/// Waits for a condition and tells how long it took; says which one when it does not come.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(5)).await;
    }
    begun.elapsed()
}

/// A UDP port that nobody has: a world of its own, even beside a daemon on 5353.
pub(crate) fn free_port() -> u16 {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.local_addr().unwrap().port()
}

/// Whether multicast on loopback comes back; else says that the test is left out.
pub(crate) fn has_multicast() -> bool {
    let comes_back = || {
        let group = Ipv4Addr::new(224, 0, 0, 251);
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.join_multicast_v4(&group, &Ipv4Addr::LOCALHOST)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        // The kernel chooses the interface by the address of the sender.
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        sender.send_to(b"echo", SocketAddr::from((group, socket.local_addr()?.port())))?;
        socket.recv(&mut [0; 4])
    };
    match comes_back() {
        Ok(_) => true,
        Err(e) => {
            segment::leave_out(&format!("needs multicast on loopback: {e}"));
            false
        }
    }
}

/// A daemon that announces nodes.
pub(crate) struct Announcer(ServiceDaemon);

impl Announcer {
    /// On all interfaces that it finds.
    pub(crate) fn new(port: u16) -> Self {
        let daemon = ServiceDaemon::new_with_port(port).unwrap();
        daemon.set_ip_check_interval(1).unwrap();
        Self(daemon)
    }

    /// Announces this, or announces it anew.
    pub(crate) fn announce(&self, member: &Me) {
        let txt = [
            ("txtvers", "1".to_owned()),
            ("id", member.id.to_string()),
            ("cluster", member.cluster.to_string()),
            ("inc", member.incarnation.0.to_string()),
            ("state", member.state.to_string()),
        ];
        let sockets: Vec<SocketAddr> = member.addresses.iter().map(|a| a.as_str().parse().unwrap()).collect();
        let ips: Vec<_> = sockets.iter().map(SocketAddr::ip).collect();
        let port = sockets.first().unwrap().port();
        // Each life has a host of its own, as those of nodes have.
        let host = format!("{}-{}.local.", member.id, member.incarnation.0);
        self.register(member.id.as_str(), &host, &ips, port, &txt);
    }

    pub(crate) fn register(&self, name: &str, host: &str, ips: &[std::net::IpAddr], port: u16, txt: &[(&str, String)]) {
        let mut info = ServiceInfo::new(SERVICE, name, host, ips, port, txt).unwrap();
        info.set_requires_probe(false);
        while self.0.register(info.clone()).is_err() {
            std::thread::yield_now(); // it takes a hundred commands at a time
        }
    }

    /// Says goodbye for this one.
    pub(crate) fn withdraw(&self, name: &str) {
        let done = self.0.unregister(&format!("{name}.{SERVICE}")).unwrap();
        done.recv().unwrap();
    }

    /// Ends without a word.
    pub(crate) fn crash(self) {
        self.0.disable_interface(IfKind::All).unwrap();
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        let _ = self.0.shutdown();
    }
}
