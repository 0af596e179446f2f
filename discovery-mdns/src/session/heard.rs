//! What is heard from the daemon.

use groupcache_core::{Health, ProviderContext};
use mdns_sd::{DaemonEvent, RecvError, ResolvedService};
use tokio::time::Instant;

use super::{LOOK, Session, due::RETRY};
use crate::{
    record::{Record, Unusable},
    subscription::Word,
    table::Heard,
};

/// Most instances without TXT that are remembered.
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
                // What was said meanwhile is in the next listing.
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
                    // What was said while nothing could be heard.
                    self.browse_at = now;
                    cx.report(Health::Connected);
                }
            }
            // One of our id and of another life goes to the node: it may be another process.
            Ok(record) => {
                counters.heard();
                if self.table.hear(instance, record, self.events.listing()) == Heard::News {
                    self.news();
                }
            }
            Err(why) => {
                match why {
                    Unusable::Stranger => counters.stranger(),
                    Unusable::Garbage(why) => counters.garbage(instance, why),
                }
                // Whatever it is now, it is not the record that it was.
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
                "what this node announces does not come back to it any more: its network interfaces are down, or multicast \
                 is; the last set of peers stays"
                    .to_owned(),
            ));
        }
        if self.table.lose(instance, now) {
            self.options.counters.lost();
        }
    }

    pub(super) fn note(&mut self, event: Result<DaemonEvent, RecvError>) {
        match event {
            Ok(DaemonEvent::NameChange(change)) => tracing::warn!(
                name = ?change.original,
                instead = ?change.new_name,
                "another service on this network has the name of this node; give each node its own NODE_NAME"
            ),
            Ok(DaemonEvent::Error(e)) => tracing::warn!(error = %e, "multicast DNS"),
            Ok(_) => {}
            // The daemon has ended, which the next command will tell.
            Err(RecvError::Disconnected) => self.browse_at = Instant::now(),
        }
    }
}
