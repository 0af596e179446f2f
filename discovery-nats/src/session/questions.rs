//! Who is there? This node asks it, and answers it.

use std::time::Duration;

use groupcache_core::{Health, ProviderContext};
use tokio::time::Instant;

use super::Node;
use crate::{bus::Bus, path::Path};

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
    pub(super) asked_at: Instant,
    pub(super) quiet_at: Instant,
    pub(super) end_at: Instant,
    /// The end has passed and nothing has come back; it has been reported.
    pub(super) is_overdue: bool,
}

impl Asked {
    fn at(now: Instant) -> Self {
        Self { asked_at: now, quiet_at: now + ANSWERS_QUIET, end_at: now + ANSWERS_END, is_overdue: false }
    }

    /// When the collection of answers is to be looked at: silence means something to those alone who can hear.
    pub(super) fn due_at(&self, path: &Path) -> Instant {
        if self.is_heard(path) { self.quiet_at.min(self.end_at) } else { self.end_at }
    }

    /// The question has come back, or a later word: so would the answers.
    fn is_heard(&self, path: &Path) -> bool {
        path.has_echo_since(self.asked_at)
    }
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
        let heartbeat = self.options.pace.heartbeat;
        let end_at = now + heartbeat.mul_f64(1.2);
        self.heartbeat_at = self.heartbeat_at.min(now + heartbeat); // it comes back before then
        self.asked = Some(Asked { asked_at: now, quiet_at: end_at, end_at, is_overdue: false });
    }

    /// Asks everyone to answer, which is an announcement too, and collects the answers.
    pub(super) async fn ask(&mut self, cx: &ProviderContext, bus: &mut Bus) {
        let now = Instant::now();
        self.asked = Some(Asked::at(now));
        self.next_heartbeat(now);
        self.path.said();
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
        if now < asked.due_at(&self.path) {
            return;
        }
        if asked.is_heard(&self.path) {
            self.asked = None;
            self.is_complete = true;
            self.publish(cx);
            cx.report(Health::Connected);
        } else {
            if self.path.lose(now) {
                self.options.counters.lost();
            }
            self.asked = Some(Asked { is_overdue: true, ..asked });
            cx.report(Health::Stale(self.silence()));
            self.news();
        }
    }
}

#[cfg(test)]
mod tests {
    use groupcache_core::{Address, Incarnation, Me, NodeState, PeerId};

    use super::*;
    use crate::options::Nats;

    fn me() -> Me {
        Me {
            id: PeerId::new("me").unwrap(),
            cluster: "blue".into(),
            incarnation: Incarnation(1),
            state: NodeState::Ready,
            addresses: vec![Address::new("10.0.0.7:7946").unwrap()],
            weight: 1,
            zone: "".into(),
            is_tls: false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_does_not_hear_itself_sleeps_until_its_question_ends() {
        let options = Nats::new("10.0.0.5", "users").unwrap();
        let mut node = Node::new(&options, &me());
        let asked = Instant::now();
        node.asked = Some(Asked::at(asked));
        (node.look_at, node.heartbeat_at) = (asked + ANSWERS_END * 9, asked + ANSWERS_END * 9);
        tokio::time::advance(ANSWERS_QUIET + Duration::from_millis(50)).await;
        assert_eq!(node.wake_at(), asked + ANSWERS_END);
        node.path.echo(Instant::now());
        assert!(node.wake_at() <= Instant::now(), "now that it does, nobody has answered");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_no_answer_until_something_comes_back_that_was_said_after_the_question() {
        let mut path = Path::new(ANSWERS_END * 9, Instant::now());
        path.echo(Instant::now());
        tokio::time::advance(ANSWERS_QUIET).await;
        let asked = Asked::at(Instant::now());
        assert_eq!(asked.due_at(&path), asked.end_at);
        tokio::time::advance(ANSWERS_QUIET * 2).await;
        path.echo(Instant::now());
        assert_eq!(asked.due_at(&path), asked.quiet_at);
    }
}
