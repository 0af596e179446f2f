//! Who is there? This node asks it, and answers it.

use std::time::Duration;

use groupcache_core::{Health, ProviderContext};
use tokio::time::Instant;

use super::Node;
use crate::bus::Bus;

/// A question is answered when nothing has been heard for this long, or after `ANSWERS_END`.
pub(super) const ANSWERS_QUIET: Duration = Duration::from_millis(150);
const ANSWERS_END: Duration = Duration::from_secs(1);
/// When more questions than this wait, one heartbeat answers them all.
pub(super) const MAX_ANSWERS: usize = 8;
/// Such a heartbeat is not sent more often than this: when a server comes back, all nodes ask at once.
const CROWD_PAUSE: Duration = Duration::from_millis(500);
/// With more peers than this, a node that doubts a set waits for their heartbeats instead of asking them all.
const MANY: usize = 100;

#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) quiet_at: Instant,
    pub(super) end_at: Instant,
    /// The end has passed and nothing has come back; it has been reported.
    pub(super) is_overdue: bool,
}

impl Node<'_> {
    /// The node doubts a set: what is known is confirmed, or corrected.
    pub(super) async fn look_again(&mut self, cx: &ProviderContext, bus: &mut Bus) {
        let now = Instant::now();
        let has_heard_all =
            self.path.good_since().is_some_and(|since| now.duration_since(since) > self.options.pace.ttl);
        if self.table.len() <= MANY || !has_heard_all {
            return self.ask(cx, bus).await;
        }
        let end_at = now + self.options.pace.heartbeat.mul_f64(1.2);
        self.asked = Some(Asked { quiet_at: end_at, end_at, is_overdue: false });
    }

    /// Asks everyone to answer, which is an announcement too, and collects the answers.
    pub(super) async fn ask(&mut self, cx: &ProviderContext, bus: &mut Bus) {
        let now = Instant::now();
        self.asked = Some(Asked { quiet_at: now + ANSWERS_QUIET, end_at: now + ANSWERS_END, is_overdue: false });
        self.next_heartbeat(now);
        let said = self.announcement(cx);
        bus.ask(&said).await;
        self.options.counters.published();
    }

    pub(super) async fn answer(&mut self, cx: &ProviderContext, bus: &mut Bus) {
        self.answer_at = None;
        if self.questions.len() > MAX_ANSWERS {
            let at = self.announced_at.map(|at| at + CROWD_PAUSE).filter(|at| *at > Instant::now());
            if at.is_some() {
                self.answer_at = at;
                return;
            }
            self.questions.clear();
            return self.announce(cx, bus).await;
        }
        let questions = std::mem::take(&mut self.questions);
        let said = self.announcement(cx);
        for to in questions {
            bus.answer(to, &said).await;
            self.options.counters.published();
        }
    }

    /// Ends the collection of answers: what is known then is all there is, if we are sure to have heard it.
    pub(super) fn collect(&mut self, cx: &ProviderContext, now: Instant) {
        let Some(asked) = self.asked.filter(|asked| !asked.is_overdue) else { return };
        if self.path.good_since().is_some() && now >= asked.quiet_at.min(asked.end_at) {
            self.asked = None;
            self.is_complete = true;
            self.publish(cx);
            cx.report(Health::Connected);
        } else if now >= asked.end_at {
            self.asked = Some(Asked { is_overdue: true, ..asked });
            cx.report(Health::Stale(self.silence()));
            self.news();
        }
    }
}
