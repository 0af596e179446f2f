//! Daemon: owns the thread of the mdns-sd library that speaks multicast DNS, and ends the thread when dropped.

use std::time::Duration;

use mdns_sd::{DaemonEvent, IfKind, IfPredicate, Receiver, ServiceDaemon, ServiceEvent, ServiceInfo};
use tokio::time::{sleep, timeout};

use crate::{interfaces::Seen, options::Mdns};

/// Seconds between two looks of the daemon at the network interfaces.
const LOOK: u32 = 1;
/// Time that a peer has to confirm a record. A peer answers at most once per second (RFC 6762), so a shorter time would
/// give up live peers.
pub(crate) const VERIFY: Duration = Duration::from_secs(2);
/// Maximum time that the daemon may take to confirm a command.
const OBEYS: Duration = Duration::from_millis(200);
/// Wait after a goodbye, because the library sends each goodbye a second time after 120 ms.
const GOODBYE_AGAIN: Duration = Duration::from_millis(150);

pub(crate) struct Daemon {
    inner: ServiceDaemon,
    domain: String,
}

/// Reason why the daemon did not accept a command.
#[derive(Debug)]
pub(crate) enum Refused {
    /// Full command queue of the daemon; a later attempt may succeed.
    Busy,
    /// End of the daemon, with the text for the log.
    Ended(String),
}

impl From<mdns_sd::Error> for Refused {
    fn from(error: mdns_sd::Error) -> Self {
        match error {
            mdns_sd::Error::Again => Self::Busy,
            other => Self::Ended(format!("multicast DNS ended: {other}")),
        }
    }
}

impl Daemon {
    /// Starts the daemon on the interfaces that the options allow, and records in `seen` which interfaces are used.
    pub(crate) fn begin(options: &Mdns, seen: &Seen) -> Result<(Self, Receiver<DaemonEvent>), Refused> {
        let inner = ServiceDaemon::new_with_port(options.port)?;
        let this = Self { inner, domain: options.domain() };
        this.inner.set_ip_check_interval(LOOK)?;
        let (rules, seen) = (options.rules.clone(), seen.clone());
        let is_used = IfPredicate::new(move |interface| {
            let is_used = rules.uses(&interface.name, interface.ip());
            seen.note(&interface.name, is_used);
            is_used
        });
        // The last rule that matches an interface wins.
        this.inner.disable_interface(IfKind::All)?;
        this.inner.enable_interface(IfKind::Predicate(is_used))?;
        let monitor = this.inner.monitor()?;
        Ok((this, monitor))
    }

    /// Subscribes to the service: the daemon lists all known instances again and queries the network again. Ends the
    /// previous subscription.
    pub(crate) fn browse(&self) -> Result<Receiver<ServiceEvent>, Refused> {
        Ok(self.inner.browse(&self.domain)?)
    }

    /// Forgets all known instances and subscribes as [`browse`](Self::browse) does, so that every node answers.
    pub(crate) fn forget_and_browse(&self) -> Result<Receiver<ServiceEvent>, Refused> {
        self.inner.stop_browse(&self.domain)?;
        self.browse()
    }

    pub(crate) fn register(&self, info: ServiceInfo) -> Result<(), Refused> {
        Ok(self.inner.register(info)?)
    }

    /// Queries the network for the record, which the daemon removes unless an answer confirms it within [`VERIFY`].
    pub(crate) fn verify(&self, instance: &str) -> Result<(), Refused> {
        Ok(self.inner.verify(instance.to_owned(), VERIFY)?)
    }

    /// Withdraws the record, waits until both goodbyes are sent, and ends the daemon.
    pub(crate) async fn withdraw(&self, instance: &str) {
        let Ok(done) = self.inner.unregister(instance) else { return };
        if timeout(OBEYS, done.recv_async()).await.is_ok() {
            sleep(GOODBYE_AGAIN).await;
        }
        if let Ok(done) = self.inner.shutdown() {
            let _ = timeout(OBEYS, done.recv_async()).await;
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The shutdown withdraws records that are still announced.
        let _ = self.inner.shutdown();
    }
}
