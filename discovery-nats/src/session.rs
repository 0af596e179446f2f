//! Session of a node on one connection: announcements, questions, answers, expiry and the goodbye.

mod questions;

use std::time::Duration;

#[cfg(feature = "kv")]
use groupcache_core::discovery::Incarnation;
use groupcache_core::discovery::{Health, Me, Peer, PeerSet, ProviderContext, Signal};
use tokio::time::{Instant, sleep_until, timeout};

use self::questions::{Asked, MAX_ANSWERS};
use crate::{
    announcement::Announcement,
    bus::{Bus, Word},
    connect::{Connection, Noted},
    options::Nats,
    path::Path,
    subjects::Subjects,
    table::{Heard, Table},
};

/// Time in which changes are collected to be published together.
const SETTLE: Duration = Duration::from_millis(20);
/// Maximum random delay of an answer, because all nodes receive a question at once.
const ANSWER_SPREAD: Duration = Duration::from_millis(50);
/// Interval of the checks of the connection and of the expiry of peers.
const LOOK: Duration = Duration::from_millis(100);
/// Maximum time for the goodbye to come back, which proves that the server has it.
const GOODBYE: Duration = Duration::from_millis(400);

/// Reason for the end of a session.
pub(crate) enum End {
    Leaving,
    /// The connection must be replaced, for the given reason.
    Renew(String),
    /// The client belongs to the application, and is closed.
    Closed,
}

/// State of the provider that outlives a connection.
pub(crate) struct Node<'a> {
    options: &'a Nats,
    pub(crate) subjects: Subjects,
    /// Random name by which this run tells its own messages from others, even those of another node with the same id.
    nonce: String,
    pub(crate) rng: fastrand::Rng,
    table: Table,
    path: Path,
    /// Whether a complete set has been published. Every later set is complete too, because no peer expires while
    /// messages may be missing.
    is_complete: bool,
    /// Collection of answers to the last question.
    asked: Option<Asked>,
    /// Time at which pending changes are published.
    news_at: Option<Instant>,
    heartbeat_at: Instant,
    announced_at: Option<Instant>,
    /// Subjects for the answers to questions of other nodes, which are sent at `answer_at`.
    questions: Vec<String>,
    answer_at: Option<Instant>,
    look_at: Instant,
}

impl<'a> Node<'a> {
    pub(crate) fn new(options: &'a Nats, me: &Me) -> Self {
        let mut rng = fastrand::Rng::new();
        let nonce: String = std::iter::repeat_with(|| rng.alphanumeric()).take(12).collect();
        let now = Instant::now();
        // A heartbeat comes back within a fraction of the time between two heartbeats.
        let patience = options.pace.heartbeat.mul_f64(1.5) + Duration::from_millis(50);
        Self {
            options,
            subjects: Subjects::new(&options.subject, &options.application, &me.cluster, &nonce),
            nonce,
            rng,
            table: Table::default(),
            path: Path::new(patience, now),
            is_complete: false,
            asked: None,
            news_at: None,
            heartbeat_at: now,
            announced_at: None,
            questions: Vec::new(),
            answer_at: None,
            look_at: now,
        }
    }

    /// Runs on a connection until the connection is lost or the node leaves.
    pub(crate) async fn live(&mut self, cx: &mut ProviderContext, connection: Connection) -> End {
        let Connection { client, mut noted } = connection;
        let me = cx.me();
        let opened = tokio::select! {
            biased;
            opened = Bus::open(self.options, client, &self.subjects, &me) => opened,
            () = cx.leaving() => return End::Leaving,
        };
        let mut bus = match opened {
            Ok(bus) => bus,
            Err(why) => return End::Renew(why),
        };
        let mut dropped = 0;
        self.path.lose(Instant::now());
        self.ask(cx, &mut bus).await;
        loop {
            let wake = self.wake_at();
            tokio::select! {
                biased;
                signal = cx.next() => match signal {
                    Signal::Leaving => {
                        self.say_goodbye(cx, &mut bus).await;
                        return End::Leaving;
                    }
                    Signal::MeChanged => {
                        self.announce(cx, &mut bus).await;
                        self.news(); // the published set includes this node's own record
                    }
                    Signal::Resolve(_) => self.look_again(cx, &mut bus).await,
                },
                word = bus.next() => match word {
                    Word::Lost => return self.lost(),
                    word => self.take(cx, word),
                },
                Ok(()) = noted.changed() => {
                    let noted = noted.borrow_and_update().clone();
                    let has_dropped = noted.dropped > std::mem::replace(&mut dropped, noted.dropped);
                    if let Some(end) = self.take_note(cx, noted, has_dropped) {
                        return end;
                    }
                }
                () = sleep_until(wake) => {}
            }
            if let Some(end) = self.act(cx, &mut bus).await {
                return end;
            }
        }
    }

    fn lost(&mut self) -> End {
        self.options.counters.lost();
        self.path.lose(Instant::now());
        #[cfg(feature = "kv")]
        let has_bucket = self.options.bucket.is_some();
        #[cfg(not(feature = "kv"))]
        let has_bucket = false;
        if self.options.client.is_some() && !has_bucket {
            return End::Closed;
        }
        End::Renew("the connection to the NATS server is lost; the last set of peers stays".to_owned())
    }

    /// Returns the next time at which there is work although no event arrives.
    fn wake_at(&self) -> Instant {
        let asked = self.asked.filter(|asked| !asked.is_overdue).map(|asked| asked.due_at(&self.path));
        let all = [asked, self.news_at, self.answer_at, Some(self.heartbeat_at)];
        all.into_iter().flatten().fold(self.look_at, Instant::min)
    }

    async fn announce(&mut self, cx: &ProviderContext, bus: &mut Bus) {
        let now = Instant::now();
        self.announced_at = Some(now);
        self.next_heartbeat(now);
        self.path.said();
        bus.announce(&self.announcement(cx)).await;
        self.options.counters.published();
    }

    fn announcement(&self, cx: &ProviderContext) -> Announcement {
        Announcement::of(&cx.me(), self.options.pace.ttl, &self.nonce)
    }

    fn next_heartbeat(&mut self, now: Instant) {
        self.heartbeat_at = now + self.options.pace.heartbeat.mul_f64(0.8 + 0.4 * self.rng.f64());
    }

    fn news(&mut self) {
        self.news_at.get_or_insert(Instant::now() + SETTLE);
    }

    fn take(&mut self, cx: &ProviderContext, word: Word) {
        let now = Instant::now();
        let counters = &self.options.counters;
        let (said, is_goodbye) = match word {
            Word::Alive(said) => (said, false),
            Word::Goodbye(said) => (said, true),
            Word::Question(said, answer_to) => {
                if said.from != self.nonce && answer_to.as_ref().is_some_and(|to| self.subjects.is_answer(to)) {
                    self.questions.extend(answer_to.filter(|_| self.questions.len() <= MAX_ANSWERS));
                    let spread = ANSWER_SPREAD.mul_f64(self.rng.f64());
                    self.answer_at.get_or_insert(now + spread);
                }
                (said, false)
            }
            #[cfg(feature = "kv")]
            Word::Gone(id) => {
                if self.table.goodbye(&id, Incarnation(u64::MAX), None) {
                    cx.left(id, None);
                    self.news();
                }
                return;
            }
            Word::Garbage(why) => return counters.garbage(why),
            Word::Nothing | Word::Lost => return,
        };
        if said.from == self.nonce {
            self.hear_myself(now);
            return;
        }
        counters.heard();
        if let Some(asked) = &mut self.asked {
            asked.heard(now);
        }
        if is_goodbye {
            if self.table.goodbye(&said.id, said.incarnation, Some(&said.from)) {
                cx.left(said.id, Some(said.incarnation));
                self.news();
            }
            return;
        }
        match self.table.hear(said, now, |id| cx.reaches(id)) {
            Heard::News => self.news(),
            Heard::Same => {}
            Heard::Ignored => counters.ignored(),
        }
    }

    fn take_note(&mut self, cx: &ProviderContext, noted: Noted, has_dropped: bool) -> Option<End> {
        if has_dropped && self.path.lose(Instant::now()) {
            self.options.counters.lost();
            tracing::warn!(
                "messages of peers were dropped because this node reads too slowly; no peer expires until all have been asked"
            );
        }
        if noted.is_lame_duck && self.options.servers.len() > 1 {
            return Some(End::Renew(
                "the NATS server is about to shut down; this node connects to another one".to_owned(),
            ));
        }
        if let Some(problem) = noted.problem {
            cx.report(Health::Stale(self.refused(&problem)));
        }
        None
    }

    fn refused(&self, problem: &str) -> String {
        if !problem.to_lowercase().contains("permission") {
            return format!("the NATS server reports {problem:?}; check its log");
        }
        let permission = self.options.permission();
        format!(
            "the NATS server reports {problem:?}; the account of the nodes must be allowed to publish and to subscribe {permission:?}"
        )
    }

    /// Does the work that is due.
    async fn act(&mut self, cx: &ProviderContext, bus: &mut Bus) -> Option<End> {
        let now = Instant::now();
        if now >= self.look_at {
            self.look_at = now + LOOK;
            if let Some(end) = self.look(cx, bus, now).await {
                return Some(end);
            }
        }
        if now >= self.heartbeat_at {
            self.announce(cx, bus).await;
        }
        if self.answer_at.is_some_and(|at| now >= at) {
            self.answer(cx, bus).await;
        }
        self.collect(cx, now);
        if self.news_at.is_some_and(|at| now >= at) {
            self.publish(cx);
        }
        None
    }

    /// Checks the connection and expires peers.
    async fn look(&mut self, cx: &ProviderContext, bus: &mut Bus, now: Instant) -> Option<End> {
        let (is_connected, is_new) = bus.look();
        if !is_connected && self.path.lose(now) {
            self.options.counters.lost();
            cx.report(Health::Stale(
                "the connection to the NATS server is lost; the last set of peers stays".to_owned(),
            ));
        }
        if is_new {
            self.path.lose(now);
            self.ask(cx, bus).await;
        }
        if self.path.turned_bad(now) {
            self.options.counters.lost();
            cx.report(Health::Stale(self.silence()));
        }
        if is_connected && self.path.good_since().is_none() && self.path.is_very_late(now) {
            return Some(End::Renew(self.silence()));
        }
        let expired = self.path.heard(now).map_or(0, |(since, until)| self.table.expire(until, since));
        if expired > 0 {
            self.options.counters.expired(expired);
            self.news();
        }
        // The echo of an announcement shows whether silent peers are gone or no messages arrive at all.
        let is_any_silent = self.path.good_since().is_some_and(|since| self.table.is_any_silent(now, since));
        if is_any_silent && !self.path.is_pending() {
            self.announce(cx, bus).await;
        }
        // The path is good again, and messages of the time before are missing.
        if self.path.good_since().is_some() && self.asked.is_some_and(|asked| asked.is_overdue) {
            self.ask(cx, bus).await;
        }
        None
    }

    fn silence(&self) -> String {
        format!(
            "messages of this node do not come back from the NATS server; check that it answers and that the account may publish and subscribe {:?}",
            self.options.permission()
        )
    }

    fn publish(&mut self, cx: &ProviderContext) {
        self.news_at = None;
        let is_overdue = self.asked.is_some_and(|asked| asked.is_overdue);
        if self.is_complete {
            let me = cx.me();
            let this = Peer::member(me.id, me.addresses).with_incarnation(me.incarnation).with_state(me.state);
            cx.publish(PeerSet::complete(std::iter::once(this).chain(self.table.peers()).collect()));
        } else if is_overdue {
            // Messages of these peers arrive although no echo does, so these peers are present. More may exist.
            cx.publish(PeerSet::partial(self.table.peers().collect()));
        }
    }

    async fn say_goodbye(&mut self, cx: &ProviderContext, bus: &mut Bus) {
        let said = self.announcement(cx);
        let farewell = async {
            if bus.say_goodbye(&said).await {
                return;
            }
            // The echo of the goodbye proves that the server has it. The connection may be closed only then.
            loop {
                match bus.next().await {
                    Word::Lost => return,
                    Word::Goodbye(heard) if heard.from == self.nonce => return,
                    _ => {}
                }
            }
        };
        if self.path.good_since().is_some() {
            let _ = timeout(GOODBYE, farewell).await;
        } else {
            let _ = timeout(GOODBYE / 4, farewell).await;
        }
        self.options.counters.published();
    }
}
