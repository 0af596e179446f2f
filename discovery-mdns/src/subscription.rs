//! What the daemon tells of the service, over one subscription after the other.

use mdns_sd::{Receiver, ResolvedService, ServiceEvent};

/// What was heard.
#[derive(Debug)]
pub(crate) enum Word {
    Resolved(Box<ResolvedService>),
    Removed(String),
    /// All that was known when this listing was asked for has been said.
    Listed(u64),
    /// The daemon has closed the subscription: its events came faster than they were read.
    Closed,
    Nothing,
}

/// The subscription that is read, and the one after it.
#[derive(Debug, Default)]
pub(crate) struct Subscription {
    current: Option<Receiver<ServiceEvent>>,
    next: Option<Receiver<ServiceEvent>>,
    listing: u64,
    /// How often the daemon has said that a search begins.
    starts: u32,
}

impl Subscription {
    /// The listing that is read now.
    pub(crate) fn listing(&self) -> u64 {
        self.listing
    }

    /// Goes on with this one, once all that came on the one before has been read.
    pub(crate) fn renew(&mut self, events: Receiver<ServiceEvent>) {
        self.next = Some(events);
    }

    /// Waits for the next event. Dropping the future loses none; it never ends while there is no subscription.
    pub(crate) async fn next(&mut self) -> Word {
        loop {
            if self.current.is_none()
                && let Some(next) = self.next.take()
            {
                self.current = Some(next);
                self.listing += 1;
                self.starts = 0;
            }
            let Some(current) = &self.current else { return std::future::pending().await };
            match current.recv_async().await {
                Ok(event) => return self.read(event),
                Err(_) => self.current = None,
            }
            if self.next.is_none() {
                return Word::Closed;
            }
        }
    }

    fn read(&mut self, event: ServiceEvent) -> Word {
        match event {
            ServiceEvent::ServiceResolved(service) => Word::Resolved(service),
            ServiceEvent::ServiceRemoved(_, instance) => Word::Removed(instance),
            // Said when a search begins, followed by all that is known, and again with each question to the network.
            ServiceEvent::SearchStarted(_) => {
                self.starts += 1;
                if self.starts == 2 { Word::Listed(self.listing) } else { Word::Nothing }
            }
            _ => Word::Nothing,
        }
    }
}
