//! Subscription: the daemon's events about the service, read from successive subscriptions.

use mdns_sd::{Receiver, ResolvedService, ServiceEvent};

/// Event of a subscription.
#[derive(Debug)]
pub(crate) enum Word {
    Resolved(Box<ResolvedService>),
    Removed(String),
    /// End of the listing with this number: all instances known at its start have been reported.
    Listed(u64),
    /// The daemon has closed the subscription because its events arrived faster than they were read.
    Closed,
    /// Event without meaning for discovery.
    Nothing,
}

/// Current subscription and its successor.
#[derive(Debug, Default)]
pub(crate) struct Subscription {
    current: Option<Receiver<ServiceEvent>>,
    next: Option<Receiver<ServiceEvent>>,
    listing: u64,
    /// Number of `SearchStarted` events of the daemon on the current subscription.
    starts: u32,
}

impl Subscription {
    /// Returns the number of the current listing.
    pub(crate) fn listing(&self) -> u64 {
        self.listing
    }

    /// Switches to `events` once all events of the current subscription have been read.
    pub(crate) fn renew(&mut self, events: Receiver<ServiceEvent>) {
        self.next = Some(events);
    }

    /// Waits for the next event. Dropping the future loses no event. The future never completes without a subscription.
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
            // Sent when a search begins, followed by all known instances, and again with each query to the network.
            ServiceEvent::SearchStarted(_) => {
                self.starts += 1;
                if self.starts == 2 { Word::Listed(self.listing) } else { Word::Nothing }
            }
            _ => Word::Nothing,
        }
    }
}
