//! Announcer: announces nodes with the mdns-sd library alone, as another implementation would, without the code under
//! test.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use groupcache_core::discovery::Me;
use mdns_sd::{IfKind, ServiceDaemon, ServiceInfo};
use tokio::time::{Instant, sleep};

/// Maximum wait for a condition, long enough for a busy machine with two cores.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const SERVICE: &str = "_groupcache._tcp.local.";

/// Waits until the condition holds and returns the time that took.
///
/// # Panics
/// With `what`, if the condition does not hold within [`PATIENCE`].
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(5)).await;
    }
    begun.elapsed()
}

/// Returns an unused UDP port, which separates a test from other tests and from a daemon on 5353.
pub(crate) fn free_port() -> u16 {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.local_addr().unwrap().port()
}

/// Returns whether multicast on loopback is received. Otherwise prints that the test is left out.
pub(crate) fn has_multicast() -> bool {
    let send_and_receive = || {
        let group = Ipv4Addr::new(224, 0, 0, 251);
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.join_multicast_v4(&group, &Ipv4Addr::LOCALHOST)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        // The kernel chooses the interface by the sender's address.
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        sender.send_to(b"echo", SocketAddr::from((group, socket.local_addr()?.port())))?;
        socket.recv(&mut [0; 4])
    };
    match send_and_receive() {
        Ok(_) => true,
        Err(e) => {
            segment::leave_out(&format!("needs multicast on loopback: {e}"));
            false
        }
    }
}

/// Daemon that announces nodes.
pub(crate) struct Announcer(ServiceDaemon);

impl Announcer {
    /// Starts a daemon on all interfaces.
    pub(crate) fn new(port: u16) -> Self {
        let daemon = ServiceDaemon::new_with_port(port).unwrap();
        daemon.set_ip_check_interval(1).unwrap();
        Self(daemon)
    }

    /// Announces a node, or replaces its announcement.
    pub(crate) fn announce(&self, member: &Me) {
        self.announce_as(member.id.as_str(), member);
    }

    /// Announces a member under another name of the instance.
    pub(crate) fn announce_as(&self, name: &str, member: &Me) {
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
        // Each incarnation has a host name of its own, as in the records of nodes.
        let host = format!("{name}-{}.local.", member.incarnation.0);
        self.register(name, &host, &ips, port, &txt);
    }

    pub(crate) fn register(&self, name: &str, host: &str, ips: &[std::net::IpAddr], port: u16, txt: &[(&str, String)]) {
        let mut info = ServiceInfo::new(SERVICE, name, host, ips, port, txt).unwrap();
        info.set_requires_probe(false);
        while self.0.register(info.clone()).is_err() {
            std::thread::yield_now(); // the daemon queues at most 100 commands
        }
    }

    /// Withdraws the record of a node with a goodbye.
    pub(crate) fn withdraw(&self, name: &str) {
        let done = self.0.unregister(&format!("{name}.{SERVICE}")).unwrap();
        done.recv().unwrap();
    }

    /// Stops answering without a goodbye.
    pub(crate) fn crash(self) {
        self.0.disable_interface(IfKind::All).unwrap();
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        let _ = self.0.shutdown();
    }
}
