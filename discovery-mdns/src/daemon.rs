//! The daemon of the library: a thread that speaks multicast DNS, ended when this is dropped.

use std::time::Duration;

use mdns_sd::{DaemonEvent, IfKind, IfPredicate, Receiver, ServiceDaemon, ServiceEvent, ServiceInfo};
use tokio::time::{sleep, timeout};

use crate::{interfaces::Seen, options::Mdns};

/// How often the daemon looks at the interfaces, in seconds.
const LOOK: u32 = 1;
/// How long a peer has to confirm a record. Shorter, and one that is there is given up: it answers once a second.
pub(crate) const VERIFY: Duration = Duration::from_secs(2);
/// How long the daemon may take to do what it is told.
const OBEYS: Duration = Duration::from_millis(200);
/// The library says each goodbye again after 120 ms.
const GOODBYE_AGAIN: Duration = Duration::from_millis(150);

pub(crate) struct Daemon {
    inner: ServiceDaemon,
    domain: String,
}

/// Why the daemon did not take a command.
#[derive(Debug)]
pub(crate) enum Refused {
    /// It has too many others to do.
    Busy,
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
    /// Begins on the interfaces that the options allow, and notes which those are.
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
        // The last word on an interface wins.
        this.inner.disable_interface(IfKind::All)?;
        this.inner.enable_interface(IfKind::Predicate(is_used))?;
        let monitor = this.inner.monitor()?;
        Ok((this, monitor))
    }

    /// Lists all that is known again, and asks the network again. Ends the subscription before it.
    pub(crate) fn browse(&self) -> Result<Receiver<ServiceEvent>, Refused> {
        Ok(self.inner.browse(&self.domain)?)
    }

    /// As [`browse`](Self::browse), with nothing remembered: everybody answers.
    pub(crate) fn forget_and_browse(&self) -> Result<Receiver<ServiceEvent>, Refused> {
        self.inner.stop_browse(&self.domain)?;
        self.browse()
    }

    pub(crate) fn register(&self, info: ServiceInfo) -> Result<(), Refused> {
        Ok(self.inner.register(info)?)
    }

    /// Asks the network whether the record is still true; it is removed if nobody says so.
    pub(crate) fn verify(&self, instance: &str) -> Result<(), Refused> {
        Ok(self.inner.verify(instance.to_owned(), VERIFY)?)
    }

    /// Withdraws the record, and waits until the goodbye has been said.
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
        // What is announced still is withdrawn with it.
        let _ = self.inner.shutdown();
    }
}
