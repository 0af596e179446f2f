//! Due actions: what a session does at a given time, without an event.

use std::time::Duration;

use groupcache_core::{
    PeerId,
    discovery::{Health, ProviderContext, ProviderError},
};
use tokio::time::Instant;

use super::{LOOK, Session};
use crate::{
    daemon::{Refused, VERIFY},
    record::can_be_asked_for,
};

/// Minimum time from the start to the first complete set, because by then every node has been queried twice and has had
/// time to answer.
const FIRST_SET: Duration = Duration::from_millis(1_200);
/// Mean interval of listings and queries. Each interval varies at random by up to a third.
const BROWSE: Duration = Duration::from_secs(15);
/// Interval of listings and queries while the node does not receive its own announcement.
pub(super) const RETRY: Duration = Duration::from_secs(3);
/// Time in which the live peers answer a query to the network.
const ANSWERS: Duration = Duration::from_millis(300);
/// Time that a record may lack its TXT before all records are queried again.
const BARE: Duration = Duration::from_secs(4);
/// Minimum interval of such queries, because each one costs an answer of every node.
const FORGET_AGAIN: Duration = Duration::from_secs(60);
/// Time after which dropped records are known again, because the network has been queried four times.
const RELISTED: Duration = Duration::from_secs(10);
/// Maximum number of peers to verify per check, because the daemon queues at most 100 commands.
const VERIFY_AT_ONCE: usize = 16;
/// Time after the start at which a node without peers logs that it is alone.
const ALONE: Duration = Duration::from_secs(10);

impl Session<'_> {
    /// Does everything that is due.
    pub(super) fn act(&mut self, cx: &ProviderContext) -> Result<(), ProviderError> {
        let now = Instant::now();
        if self.register_at.is_some_and(|at| now >= at) {
            self.register_at = None;
            self.register(cx)?;
        }
        if self.again_at.is_some_and(|at| now >= at) {
            self.register(cx)?;
            self.again_at = None;
        }
        if now >= self.browse_at {
            self.browse(now)?;
        }
        if now >= self.look_at {
            self.look_at = now + LOOK;
            self.look(cx, now)?;
        }
        if self.answer_at.is_some_and(|at| now >= at) {
            self.answer_at = None;
            // No check was possible without multicast, so there is no answer.
            if self.path.is_good() {
                self.publish(cx, true);
            }
        }
        if self.news_at.is_some_and(|at| now >= at) {
            self.publish(cx, false);
        }
        Ok(())
    }

    fn browse(&mut self, now: Instant) -> Result<(), ProviderError> {
        let next = if self.path.is_good() { BROWSE.mul_f64(0.67 + 0.66 * self.rng.f64()) } else { RETRY };
        self.browse_at = now + next;
        match self.daemon.browse() {
            Ok(events) => self.events.renew(events),
            Err(Refused::Busy) => self.browse_at = now + LOOK,
            Err(Refused::Ended(why)) => return Err(why.into()),
        }
        // The announcement may never have been sent, so it is given to the daemon again.
        let is_old = now >= self.begun + RETRY;
        if is_old && !self.path.is_good() && self.registered.is_some() {
            self.register_at.get_or_insert(now);
        }
        Ok(())
    }

    fn look(&mut self, cx: &ProviderContext, now: Instant) -> Result<(), ProviderError> {
        if self.unpublished.is_none() && self.path.is_silent(now) {
            cx.report(Health::Stale(self.silence()));
        }
        if self.path.can_judge(now) {
            let gone = self.table.drop_gone(now, |id| cx.reaches(id));
            if gone > 0 {
                self.news();
            }
            if !self.is_complete && now >= self.begun + FIRST_SET {
                self.is_complete = true;
                self.publish(cx, true);
            }
            self.verify(cx, now)?;
            self.forget_if_bare(now)?;
            self.tell_if_alone(now);
        }
        Ok(())
    }

    /// Starts an answer to the node, which asks for some peers or for all. Known peers without a connection are
    /// verified.
    pub(super) fn look_again(&mut self, cx: &ProviderContext, ids: Vec<PeerId>) {
        let now = Instant::now();
        self.browse_at = now;
        let missed = ids.into_iter().filter(|id| !cx.reaches(id) && !self.verified.contains_key(id));
        self.to_verify.extend(missed.collect::<Vec<_>>());
        self.to_verify.retain(|id| !self.table.instances_of(id).is_empty());
        let is_waiting = !self.to_verify.is_empty() || !self.verified.is_empty();
        let wait = if is_waiting { VERIFY + ANSWERS } else { ANSWERS };
        self.answer_at = Some(self.answer_at.unwrap_or(now).max(now + wait));
    }

    fn verify(&mut self, cx: &ProviderContext, now: Instant) -> Result<(), ProviderError> {
        self.verified.retain(|_, until| now < *until);
        for _ in 0..VERIFY_AT_ONCE {
            let Some(id) = self.to_verify.pop_first() else { break };
            // The peer may have connected since the node asked.
            if cx.reaches(&id) {
                continue;
            }
            for instance in self.table.instances_of(&id) {
                if !can_be_asked_for(&instance, &self.domain) {
                    continue;
                }
                match self.daemon.verify(&instance) {
                    Ok(()) => self.options.counters.verified(),
                    Err(Refused::Busy) => return Ok(()), // the node will ask again
                    Err(Refused::Ended(why)) => return Err(why.into()),
                }
            }
            // A peer has one verification at a time, because two that overlap would share too few answers.
            self.verified.insert(id, now + VERIFY + ANSWERS);
        }
        Ok(())
    }

    /// Drops the library's cache if a TXT record stays missing. The library never queries for a missing TXT record
    /// alone, but it queries for everything that is not in its cache.
    fn forget_if_bare(&mut self, now: Instant) -> Result<(), ProviderError> {
        let is_due = self.bare.values().any(|since| now >= *since + BARE);
        if !is_due || now < self.forget_at {
            return Ok(());
        }
        self.bare.clear();
        self.forget_at = now + FORGET_AGAIN;
        match self.daemon.forget_and_browse() {
            Ok(events) => {
                self.listings_count_from = now + RELISTED;
                self.events.renew(events);
            }
            Err(Refused::Busy) => {}
            Err(Refused::Ended(why)) => return Err(why.into()),
        }
        Ok(())
    }

    fn tell_if_alone(&mut self, now: Instant) {
        if self.is_alone_told || now < self.begun + ALONE {
            return;
        }
        self.is_alone_told = true;
        if self.table.is_empty() {
            let (used, _) = self.seen.names();
            tracing::warn!(
                cluster = self.cluster,
                interfaces = ?used,
                "nobody else is heard by multicast DNS, so this node serves alone; in networks without multicast \
                 (clouds, Kubernetes, Docker's default bridge) use nats, kubernetes, dns or a list of peers"
            );
        }
    }

    fn silence(&self) -> String {
        let (used, skipped) = self.seen.names();
        let found = match used.is_empty() {
            true => "there is no usable interface".to_owned(),
            false => format!("this node does not receive its own announcement on {}", used.join(", ")),
        };
        format!(
            "no multicast: {found} (skipped: {}), so this node serves alone; choose other interfaces, or in networks \
             without multicast (clouds, Kubernetes, Docker's default bridge) use nats, kubernetes, dns or a list of \
             peers",
            skipped.join(", ")
        )
    }
}
