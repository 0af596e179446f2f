//! Questions to all nodes for their announcements, and answers to the questions of others.

use std::time::Duration;

use groupcache_core::discovery::{Health, ProviderContext};
use tokio::time::Instant;

use super::Node;
use crate::{bus::Bus, path::Path};

/// Silence after which a question counts as answered.
const ANSWERS_QUIET: Duration = Duration::from_millis(150);
/// Time after which a question ends in any case.
const ANSWERS_END: Duration = Duration::from_secs(1);
/// Number of waiting questions above which one heartbeat answers them all.
pub(super) const MAX_ANSWERS: usize = 8;
/// Minimum time between two such heartbeats, because all nodes ask at once when a server comes back.
const CROWD_PAUSE: Duration = Duration::from_millis(500);
/// Number of peers above which a node that doubts a set waits for heartbeats instead of asking all peers.
const MANY: usize = 100;

/// Collection of answers to a question.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) asked_at: Instant,
    pub(super) quiet_at: Instant,
    pub(super) end_at: Instant,
    /// Whether the end has passed without an echo, which has been reported.
    pub(super) is_overdue: bool,
    /// Whether no question was sent. The heartbeats until the end are the answers, however long the pauses between
    /// them.
    is_of_heartbeats: bool,
}

impl Asked {
    fn at(now: Instant) -> Self {
        let (quiet_at, end_at) = (now + ANSWERS_QUIET, now + ANSWERS_END);
        Self { asked_at: now, quiet_at, end_at, is_overdue: false, is_of_heartbeats: false }
    }

    /// Returns a collection of heartbeats; see [`is_of_heartbeats`](Self::is_of_heartbeats).
    fn of_heartbeats(now: Instant, end_at: Instant) -> Self {
        Self { asked_at: now, quiet_at: end_at, end_at, is_overdue: false, is_of_heartbeats: true }
    }

    /// Returns a question that is to be sent as soon as this node's messages come back.
    fn overdue(now: Instant) -> Self {
        Self { is_overdue: true, ..Self::at(now) }
    }

    /// Returns whether peers have been asked and their answers may still arrive.
    fn is_under_way(&self) -> bool {
        !self.is_overdue && !self.is_of_heartbeats
    }

    /// Waits longer after a message of a peer, because other peers may be about to answer.
    pub(super) fn heard(&mut self, now: Instant) {
        // The time never moves back, because heartbeats are seconds apart and silence between two of them proves
        // nothing.
        self.quiet_at = self.quiet_at.max(now + ANSWERS_QUIET);
    }

    /// Returns the time at which the collection is checked. Silence ends it only after an echo, which proves that this
    /// node receives messages.
    pub(super) fn due_at(&self, path: &Path) -> Instant {
        if self.is_heard(path) { self.quiet_at.min(self.end_at) } else { self.end_at }
    }

    /// Returns whether the question, or a later message of this node, has come back, so that answers would arrive too.
    fn is_heard(&self, path: &Path) -> bool {
        path.has_echo_since(self.asked_at)
    }
}

impl Node<'_> {
    /// Confirms or corrects the known peers, because the node doubts a set.
    pub(super) async fn look_again(&mut self, cx: &ProviderContext, bus: &mut Bus) {
        if !self.waits_for_heartbeats(Instant::now()) {
            self.ask(cx, bus).await;
        }
    }

    /// Returns whether heartbeats answer a doubt, and collects them if so. The table must have more than [`MANY`]
    /// peers, and messages must have been received for a whole time to live.
    fn waits_for_heartbeats(&mut self, now: Instant) -> bool {
        let has_heard_all =
            self.path.good_since().is_some_and(|since| now.duration_since(since) > self.options.pace.ttl);
        if self.table.len() <= MANY || !has_heard_all {
            return false;
        }
        // A running collection goes on. Doubts may arrive more often than a collection takes, so that one that began
        // again at each doubt would never end.
        if self.asked.is_none_or(|asked| asked.is_overdue) {
            let heartbeat = self.options.pace.heartbeat;
            self.heartbeat_at = self.heartbeat_at.min(now + heartbeat); // its echo arrives before the end
            self.asked = Some(Asked::of_heartbeats(now, now + heartbeat.mul_f64(1.2)));
        }
        true
    }

    /// Records that a message of this node has come back.
    pub(super) fn hear_myself(&mut self, now: Instant) {
        let is_news = self.path.echo(now);
        let is_asked = self.asked.is_some_and(|asked| asked.is_under_way());
        if is_news && !is_asked {
            // The messages that were missed are asked for as soon as answers can be received.
            self.asked = Some(Asked::overdue(now));
        }
    }

    /// Asks all nodes to answer, and collects the answers. The question is an announcement too.
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

    /// Ends the collection of answers when it is due. The known peers are then complete, if an echo proves that answers
    /// were received.
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
    use groupcache_core::{
        PeerId,
        discovery::{Address, Incarnation, Me, NodeState},
    };

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
            tls: false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn node_without_echo_sleeps_until_its_question_ends() {
        let options = Nats::new("10.0.0.5", "users").unwrap();
        let mut node = Node::new(&options, &me());
        let asked = Instant::now();
        node.asked = Some(Asked::at(asked));
        (node.look_at, node.heartbeat_at) = (asked + ANSWERS_END * 9, asked + ANSWERS_END * 9);
        tokio::time::advance(ANSWERS_QUIET + Duration::from_millis(50)).await;
        assert_eq!(node.wake_at(), asked + ANSWERS_END);
        node.path.echo(Instant::now());
        assert!(node.wake_at() <= Instant::now(), "after the echo, silence means that no peer answers");
    }

    const LONG: Duration = Duration::from_secs(60);

    /// Returns a node that announces itself rarely, as do its many peers, and that has received messages of all of
    /// them.
    async fn node_with_many_peers(options: &Nats) -> Node<'_> {
        let mut node = Node::new(options, &me());
        node.path.echo(Instant::now());
        for n in 0..=MANY {
            let me = Me { id: PeerId::new(format!("peer-{n}")).unwrap(), ..me() };
            node.table.hear(Announcement::of(&me, options.pace.ttl, "other"), Instant::now(), |_| false);
        }
        tokio::time::advance(options.pace.ttl + Duration::from_secs(1)).await;
        node
    }

    /// Checks that a node with many peers collects heartbeats until all peers have sent theirs, for 1.2 times the
    /// interval of heartbeats and no longer, even if the doubt is repeated meanwhile.
    #[tokio::test(start_paused = true)]
    async fn heartbeat_collection_lasts_one_heartbeat_interval() {
        let options = Nats::new("10.0.0.5", "users").unwrap().heartbeat(LONG);
        let mut node = node_with_many_peers(&options).await;
        let end = Instant::now() + LONG.mul_f64(1.2);
        for second in 0..72 {
            // The doubt is repeated before the collection ends.
            if second % 50 == 0 {
                assert!(node.waits_for_heartbeats(Instant::now()), "no question is sent");
            }
            // Messages of two peers arrive less than a second apart, and this node's own heartbeat comes back.
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
    async fn loss_while_collecting_heartbeats_leads_to_a_question() {
        let options = Nats::new("10.0.0.5", "users").unwrap().heartbeat(LONG);
        let mut node = node_with_many_peers(&options).await;
        assert!(node.waits_for_heartbeats(Instant::now()));
        assert!(node.path.lose(Instant::now()));
        node.hear_myself(Instant::now());
        assert!(node.asked.unwrap().is_overdue, "all peers are asked at the next check");
    }

    /// Checks that silence ends a question only after the echo of a message that was sent after the question.
    #[tokio::test(start_paused = true)]
    async fn silence_is_no_answer_before_an_echo_of_the_question() {
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
