//! What is done when its time has come.

use std::time::Duration;

use groupcache_core::{Health, PeerId, ProviderContext, ProviderError};
use tokio::time::Instant;

use super::{LOOK, Session};
use crate::{
    daemon::{Refused, VERIFY},
    record::can_be_asked_for,
};

/// After this the first set is complete: all have been asked twice, and have had time to answer.
const FIRST_SET: Duration = Duration::from_millis(1_200);
/// How often all is listed and asked for again, give or take a third; and while nothing is heard.
const BROWSE: Duration = Duration::from_secs(15);
pub(super) const RETRY: Duration = Duration::from_secs(3);
/// How long a question to the network takes to be answered by those who are there.
const ANSWERS: Duration = Duration::from_millis(300);
/// How long a record may be without TXT before it is asked for anew, and how often that is done at most: it costs an
/// answer of everybody.
const BARE: Duration = Duration::from_secs(4);
const FORGET_AGAIN: Duration = Duration::from_secs(60);
/// When what was forgotten is known again: the network has been asked four times by then.
const RELISTED: Duration = Duration::from_secs(10);
/// Most records that are verified at one look: the daemon takes a hundred commands at a time.
const VERIFY_AT_ONCE: usize = 16;
/// When to say that nobody else has been heard.
const ALONE: Duration = Duration::from_secs(10);

impl Session<'_> {
    /// Does what is due.
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
            // Nothing could be looked at, so there is no answer.
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
        // An announcement that was never heard may never have been sent.
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

    /// The node asks for some peers, or for all: what is known is verified where the node cannot do that itself.
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
            // It may have answered since the node asked.
            if cx.reaches(&id) {
                continue;
            }
            for instance in self.table.instances_of(&id) {
                if !can_be_asked_for(&instance, &self.domain) {
                    continue;
                }
                match self.daemon.verify(&instance) {
                    Ok(()) => self.options.counters.verified(),
                    Err(Refused::Busy) => return Ok(()), // the node asks again
                    Err(Refused::Ended(why)) => return Err(why.into()),
                }
            }
            // One at a time: the answers to two that overlap are too few for both.
            self.verified.insert(id, now + VERIFY + ANSWERS);
        }
        Ok(())
    }

    /// The library never asks for a TXT record alone that an answer was without. What it has forgotten it asks for.
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
                "nobody else is heard by multicast DNS, and this node serves alone; where there is no multicast (clouds, \
                 Kubernetes, Docker's default bridge) use nats, kubernetes, dns or a list of peers"
            );
        }
    }

    fn silence(&self) -> String {
        let (used, skipped) = self.seen.names();
        let found = match used.is_empty() {
            true => "there is no interface for it".to_owned(),
            false => format!("what this node announces does not come back to it on {}", used.join(", ")),
        };
        format!(
            "no multicast: {found} (not used: {}), so it serves alone; name other interfaces, or use nats, kubernetes, dns or a list of peers where there is none (clouds, Kubernetes, \
             Docker's default bridge)",
            skipped.join(", ")
        )
    }
}
