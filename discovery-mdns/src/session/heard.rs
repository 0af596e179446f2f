//! Received events: what a session does with the events of the daemon.

use groupcache_core::discovery::{Health, ProviderContext};
use mdns_sd::{DaemonEvent, RecvError, ResolvedService};
use tokio::time::Instant;

use super::{LOOK, Session, due::RETRY};
use crate::{
    record::{Record, Unusable},
    subscription::Word,
    table::Heard,
};

/// Maximum number of instances without TXT to remember.
const MAX_BARE: usize = 100;

impl Session<'_> {
    pub(super) fn take(&mut self, cx: &ProviderContext, word: Word) {
        let now = Instant::now();
        match word {
            Word::Resolved(service) => self.resolved(cx, &service, now),
            Word::Removed(instance) => self.removed(cx, &instance, now),
            Word::Listed(_) if now < self.listings_count_from => {}
            Word::Listed(listing) => {
                for _ in 0..self.table.listed(listing, now) {
                    self.options.counters.lost();
                }
            }
            Word::Closed => {
                self.options.counters.reopened();
                // The next listing contains the events that were lost.
                self.browse_at = now + LOOK;
            }
            Word::Nothing => {}
        }
    }

    fn resolved(&mut self, cx: &ProviderContext, service: &ResolvedService, now: Instant) {
        let (instance, counters) = (&service.fullname, &self.options.counters);
        if service.txt_properties.is_empty() {
            counters.bare();
            if self.bare.len() < MAX_BARE {
                self.bare.entry(instance.clone()).or_insert(now);
            }
            return;
        }
        self.bare.remove(instance);
        match Record::read(service, &self.cluster, &self.options.rules) {
            Ok(record) if record.id == cx.me().id && self.lives.contains(&record.incarnation) => {
                if self.path.echo(instance, now) {
                    // Records may have been announced while this node received none.
                    self.browse_at = now;
                    cx.report(Health::Connected);
                }
            }
            // A record of this node's id and another incarnation goes to the node, because another process may run.
            Ok(record) => {
                counters.heard();
                if self.table.hear(instance, record, self.events.listing(), |id| cx.reaches(id)) == Heard::News {
                    self.news();
                }
            }
            Err(why) => {
                match why {
                    Unusable::Stranger => counters.stranger(),
                    Unusable::Garbage(why) => counters.garbage(instance, why),
                }
                // The usable record of this instance, if any, has been replaced.
                if self.table.lose(instance, now) {
                    self.options.counters.lost();
                }
            }
        }
    }

    fn removed(&mut self, cx: &ProviderContext, instance: &str, now: Instant) {
        self.bare.remove(instance);
        if self.path.lose(instance) {
            self.options.counters.outage();
            self.browse_at = self.browse_at.min(now + RETRY);
            cx.report(Health::Stale(
                "this node no longer receives its own announcement; check its network interfaces and multicast; the \
                 last set of peers stays"
                    .to_owned(),
            ));
        }
        if self.table.lose(instance, now) {
            self.options.counters.lost();
        }
    }

    pub(super) fn note(&mut self, event: Result<DaemonEvent, RecvError>) {
        match event {
            // Anybody on the segment can cause these events any number of times.
            Ok(DaemonEvent::NameChange(change)) => self.options.counters.renamed(|count| {
                tracing::warn!(
                    count,
                    name = ?change.original,
                    instead = ?change.new_name,
                    "another service on this network has the name of this node; set a different NODE_NAME for each node"
                );
            }),
            Ok(DaemonEvent::Error(e)) => self.options.counters.error(|count| {
                tracing::warn!(count, error = %e, "multicast DNS reported an error; check the network interfaces");
            }),
            Ok(_) => {}
            // The daemon has ended; the next command to it fails and ends the run.
            Err(RecvError::Disconnected) => self.browse_at = Instant::now(),
        }
    }
}
