//! Who is there? This node asks it, and answers it.

use std::time::Duration;

use groupcache_core::{Health, ProviderContext};
use tokio::time::Instant;

use super::Node;
use crate::{bus::Bus, path::Path};

/// A question is answered when nothing has been heard for this long, or after `ANSWERS_END`.
const ANSWERS_QUIET: Duration = Duration::from_millis(150);
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
    /// Nobody is asked: the heartbeats until the end are the answers, however long the pauses between them.
    is_of_heartbeats: bool,
}

impl Asked {
    fn at(now: Instant) -> Self {
        let (quiet_at, end_at) = (now + ANSWERS_QUIET, now + ANSWERS_END);
        Self { asked_at: now, quiet_at, end_at, is_overdue: false, is_of_heartbeats: false }
    }

    /// See [`is_of_heartbeats`](Self::is_of_heartbeats).
    fn of_heartbeats(now: Instant, end_at: Instant) -> Self {
        Self { asked_at: now, quiet_at: end_at, end_at, is_overdue: false, is_of_heartbeats: true }
    }

    /// One that is to be put as soon as what this node says is heard.
    fn overdue(now: Instant) -> Self {
        Self { is_overdue: true, ..Self::at(now) }
    }

    /// Others have been asked, and their answers may still come.
    fn is_under_way(&self) -> bool {
        !self.is_overdue && !self.is_of_heartbeats
    }

    /// Somebody was heard: others may be about to answer.
    pub(super) fn heard(&mut self, now: Instant) {
        // Never earlier than it was: heartbeats come seconds apart, and silence between two of them says nothing.
        self.quiet_at = self.quiet_at.max(now + ANSWERS_QUIET);
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
        if !self.waits_for_heartbeats(Instant::now()) {
            self.ask(cx, bus).await;
        }
    }

    /// Whether a doubt is answered by what the peers say anyway.
    fn waits_for_heartbeats(&mut self, now: Instant) -> bool {
        let has_heard_all =
            self.path.good_since().is_some_and(|since| now.duration_since(since) > self.options.pace.ttl);
        if self.table.len() <= MANY || !has_heard_all {
            return false;
        }
        // One that is under way goes on: doubts may come more often than such a question takes, and begun anew each time
        // it would have no end.
        if self.asked.is_none_or(|asked| asked.is_overdue) {
            let heartbeat = self.options.pace.heartbeat;
            self.heartbeat_at = self.heartbeat_at.min(now + heartbeat); // it comes back before the end
            self.asked = Some(Asked::of_heartbeats(now, now + heartbeat.mul_f64(1.2)));
        }
        true
    }

    /// What this node said has come back.
    pub(super) fn hear_myself(&mut self, now: Instant) {
        let is_news = self.path.echo(now);
        let is_asked = self.asked.is_some_and(|asked| asked.is_under_way());
        if is_news && !is_asked {
            // What was missed meanwhile is asked for, as soon as it can be heard.
            self.asked = Some(Asked::overdue(now));
        }
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
    use crate::{announcement::Announcement, options::Nats};

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

    const LONG: Duration = Duration::from_secs(60);

    /// A node that announces itself rarely, as do its many peers, and that has heard all of them.
    async fn one_of_many(options: &Nats) -> Node<'_> {
        let mut node = Node::new(options, &me());
        node.path.echo(Instant::now());
        for n in 0..=MANY {
            let me = Me { id: PeerId::new(format!("peer-{n}")).unwrap(), ..me() };
            node.table.hear(Announcement::of(&me, options.pace.ttl, "other"), Instant::now());
        }
        tokio::time::advance(options.pace.ttl + Duration::from_secs(1)).await;
        node
    }

    #[tokio::test(start_paused = true)]
    async fn with_many_peers_a_question_lasts_until_all_have_had_their_heartbeat_and_no_longer() {
        let options = Nats::new("10.0.0.5", "users").unwrap().heartbeat(LONG);
        let mut node = one_of_many(&options).await;
        let end = Instant::now() + LONG.mul_f64(1.2);
        for second in 0..72 {
            // The doubt is said again, sooner than the question ends.
            if second % 50 == 0 {
                assert!(node.waits_for_heartbeats(Instant::now()), "nobody is asked");
            }
            // Two peers are heard, less than a second apart, and our own heartbeat has come back.
            node.hear_myself(Instant::now());
            for apart in [300, 700] {
                node.asked.as_mut().unwrap().heard(Instant::now());
                tokio::time::advance(Duration::from_millis(apart)).await;
                assert_eq!(node.asked.unwrap().due_at(&node.path), end, "after {second} s");
            }
        }
        assert_eq!(Instant::now(), end);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_missed_while_heartbeats_were_waited_for_is_asked_for() {
        let options = Nats::new("10.0.0.5", "users").unwrap().heartbeat(LONG);
        let mut node = one_of_many(&options).await;
        assert!(node.waits_for_heartbeats(Instant::now()));
        assert!(node.path.lose(Instant::now()));
        node.hear_myself(Instant::now());
        assert!(node.asked.unwrap().is_overdue, "all are asked at the next look");
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
