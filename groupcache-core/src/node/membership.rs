//! The task that does what the stabilizer says: dials, pings, asks the provider, and installs views.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval},
};

use crate::node::replay::replay;
use crate::{
    context::NodeContext,
    identity::{Address, NodeState, PeerId},
    membership::{
        provider::{Health, Me, PeerSet, ProviderFeed, Report},
        stabilizer::{Action, DialId, HelloFacts, Input, MemberSet, Refusal, Stabilizer, Warning},
        view::View,
    },
    peer::client::{
        keep,
        link::{Link, LinkEvent, LinkEvents, Target},
    },
    protocol::message::Hello,
};

/// How often the stabilizer is told that time passes.
const STEP: Duration = Duration::from_millis(50);

/// Events of links that wait for the membership task, where a link waits when they are full; and arrivals, which are
/// forgotten then.
pub(super) const EVENT_QUEUE: usize = 1024;

/// What the node tells its membership task.
#[derive(Debug)]
pub(super) enum Command {
    Drain,
}

/// What the membership task tells the node.
#[derive(Clone, Debug, Default)]
pub(super) struct Status {
    pub(super) is_ready: bool,
    pub(super) is_draining: bool,
    pub(super) ready_members: usize,
    /// Another live node has our id, and answers there.
    pub(super) rival: Option<Vec<Address>>,
}

/// Everything that the task reads.
pub(super) struct Feeds {
    pub(super) provider: ProviderFeed,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) events: mpsc::Receiver<(DialId, LinkEvent)>,
    /// Who has connected to this node, or speaks again after a silence.
    pub(super) arrivals: mpsc::Receiver<PeerId>,
}

pub(super) struct Membership {
    context: Arc<NodeContext>,
    stabilizer: Stabilizer,
    links: LinkEvents,
    pings: mpsc::Sender<(PeerId, bool)>,
    pinged: mpsc::Receiver<(PeerId, bool)>,
    /// Who answered at each target.
    who: BTreeMap<DialId, PeerId>,
    asks: watch::Receiver<Option<mpsc::Sender<Vec<PeerId>>>>,
    me: watch::Sender<Me>,
    reached: watch::Sender<BTreeSet<PeerId>>,
    status: watch::Sender<Status>,
    health: Option<Health>,
    epoch: u64,
}

impl Membership {
    pub(super) fn new(
        context: Arc<NodeContext>,
        stabilizer: Stabilizer,
        links: LinkEvents,
        asks: watch::Receiver<Option<mpsc::Sender<Vec<PeerId>>>>,
        me: watch::Sender<Me>,
        reached: watch::Sender<BTreeSet<PeerId>>,
        status: watch::Sender<Status>,
    ) -> Self {
        let (pings, pinged) = mpsc::channel(EVENT_QUEUE);
        let (who, health, epoch) = (BTreeMap::new(), None, 1);
        Self { context, stabilizer, links, pings, pinged, who, asks, me, reached, status, health, epoch }
    }

    /// Runs until the node ends.
    pub(super) async fn run(mut self, mut feeds: Feeds) {
        let mut steps = interval(STEP);
        steps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut provider_is_there = true;
        loop {
            // Events come last: a peer that says a great deal must not keep time and discovery from being heard.
            let input = tokio::select! {
                biased;
                Some(command) = feeds.commands.recv() => match command {
                    Command::Drain => self.drain(),
                },
                _ = steps.tick() => {
                    self.tell_whom_we_reach();
                    Some(Input::Tick)
                }
                Some((id, is_alive)) = self.pinged.recv() => Some(Input::Pinged { id, is_alive }),
                changed = feeds.provider.sets.changed(), if provider_is_there => {
                    provider_is_there = changed.is_ok();
                    let published = feeds.provider.sets.borrow_and_update().clone();
                    if let Some(set) = published.take_complete() {
                        self.context.local.counters.provider_sets.up();
                        self.step(Input::Set(set));
                    }
                    (!published.hints.is_empty()).then(|| Input::Set(PeerSet::partial(published.hints)))
                }
                Some(report) = feeds.provider.reports.recv() => match report {
                    Report::Left { id, incarnation } => Some(Input::Left { id, incarnation }),
                    Report::Health(health) => {
                        self.take_health(health);
                        None
                    }
                },
                Some((dial, event)) = feeds.events.recv() => self.heard(dial, event),
                Some(id) = feeds.arrivals.recv() => {
                    self.arrived(&id);
                    None
                }
            };
            if let Some(input) = input {
                self.step(input);
            }
        }
    }

    fn tell_whom_we_reach(&self) {
        let now = self.stabilizer.reached();
        self.reached.send_if_modified(|reached| {
            let has_changed = *reached != now;
            if has_changed {
                *reached = now;
            }
            has_changed
        });
    }

    fn now_ms(&self) -> u64 {
        self.context.local.clock.read_ms()
    }

    fn step(&mut self, input: Input) {
        let now = self.context.local.clock.elapsed();
        let mut actions: VecDeque<_> = self.stabilizer.step(now, input).into();
        while let Some(action) = actions.pop_front() {
            if let Some(follow_up) = self.act(action) {
                actions.extend(self.stabilizer.step(now, follow_up));
            }
        }
        *self.context.membership.lock() = self.stabilizer.counters();
    }

    fn act(&mut self, action: Action) -> Option<Input> {
        match action {
            Action::Dial { dial, expected, addresses } => self.dial(dial, Target { expected, addresses }),
            Action::Redial { dial } => {
                if let Some(link) = self.context.link_of(dial) {
                    link.reconnect();
                }
            }
            Action::Hangup { dial } => {
                self.who.remove(&dial);
                if let Some(link) = self.context.remove_link(dial) {
                    self.context.no_longer_at(&link);
                    self.context.missed_writes.target_dropped(dial, link.target().expected.as_ref(), self.now_ms());
                    link.close();
                }
            }
            Action::Ping { id } => self.ping(id),
            Action::Resolve { ids } => {
                if let Some(ask) = &*self.asks.borrow() {
                    let _ = ask.try_send(ids); // full = it is asked already
                }
            }
            Action::Install(members) => return Some(Input::Installed { fingerprint: self.install(members) }),
            Action::Ready => {
                tracing::info!(id = %self.me.borrow().id, "ready: this node owns its share of the keys");
                self.announce(|hello| hello.state = NodeState::Ready);
                self.status.send_modify(|status| status.is_ready = true);
            }
            Action::RaiseIncarnation(incarnation) => self.announce(|hello| hello.incarnation = incarnation),
            Action::DuplicateId { at, incarnation } => {
                tracing::error!(id = %self.me.borrow().id, ?at, ?incarnation, "another live node has this id; give each node its own NODE_NAME");
                self.status.send_modify(|status| status.rival = Some(at));
            }
            Action::Warn(warning) => warn(&warning),
        }
        None
    }

    fn dial(&self, dial: DialId, target: Target) {
        if let Some(link) = self.context.link_of(dial) {
            return link.set_addresses(target);
        }
        let link = Link::new(dial, target, Arc::clone(&self.context.local));
        self.context.add_link(dial, Arc::clone(&link));
        self.context.missed_writes.dialled(dial);
        self.context.tasks.run(keep(link, self.links.clone(), self.context.random()));
    }

    fn ping(&self, id: PeerId) {
        let links = self.who.iter().filter(|(_, who)| **who == id).filter_map(|(dial, _)| self.context.link_of(*dial));
        let link = links.max_by_key(|link| link.admits());
        let pings = self.pings.clone();
        self.context.tasks.run(async move {
            let is_alive = match link {
                Some(link) => link.is_alive().await,
                None => false,
            };
            let _ = pings.send((id, is_alive)).await;
        });
    }

    fn install(&mut self, members: MemberSet) -> u64 {
        self.epoch += 1;
        let ready_members = members.members.iter().filter(|m| m.state == NodeState::Ready).count();
        let is_draining = members.members.iter().any(|m| m.dial.is_none() && m.state == NodeState::Draining);
        let view = View::new(self.epoch, members);
        let fingerprint = view.fingerprint();
        let ids: Vec<_> = view.members().iter().map(|m| format!("{} ({})", m.id, m.state)).collect();
        tracing::info!(epoch = view.epoch, fingerprint = format_args!("{fingerprint:016x}"), members = ?ids, "view");
        self.context.install(view);
        self.context.local.change(|hello| hello.fingerprint = fingerprint);
        self.status.send_modify(|status| {
            status.ready_members = ready_members;
            status.is_draining = is_draining;
        });
        fingerprint
    }

    fn drain(&mut self) -> Option<Input> {
        self.announce(|hello| hello.state = NodeState::Draining);
        Some(Input::Drain)
    }

    /// Changes what we say of ourselves, to peers and to the provider.
    fn announce(&self, change: impl FnOnce(&mut Hello)) {
        self.context.local.change(change);
        let hello = self.context.local.hello();
        self.me.send_modify(|me| {
            me.state = hello.state;
            me.incarnation = hello.incarnation;
        });
    }

    fn heard(&mut self, dial: DialId, event: LinkEvent) -> Option<Input> {
        // Hung up meanwhile: what it still says is of no interest, and must not be remembered.
        let link = self.context.link_of(dial)?;
        let who = self.who.get(&dial).cloned();
        Some(match event {
            LinkEvent::Hello(hello) => {
                self.who.insert(dial, hello.id.clone());
                self.context.now_at(&hello.id, &link);
                self.context.missed_writes.peer_identified(dial, &hello.id, self.now_ms());
                self.context.tasks.run(replay(Arc::clone(&self.context), hello.id.clone(), link));
                Input::Hello { dial, hello: facts(&hello) }
            }
            LinkEvent::Refused(why, text) => {
                tracing::debug!(error = %text, "refused");
                if matches!(why, Refusal::OtherCluster | Refusal::WrongId { .. }) {
                    // Nobody there has anything of ours.
                    self.context.missed_writes.target_dropped(dial, link.target().expected.as_ref(), self.now_ms());
                }
                Input::Refused { dial, why }
            }
            LinkEvent::Failed(why) => {
                tracing::debug!(error = %why, "a peer cannot be connected to");
                Input::Failed { dial }
            }
            LinkEvent::Lost => {
                if let Some(peer) = who {
                    tracing::info!(%peer, "the connection to a peer was lost");
                }
                Input::Lost { dial }
            }
            LinkEvent::Goodbye(incarnation) => Input::Goodbye { id: who?, incarnation },
            LinkEvent::Fingerprint(fingerprint) => {
                if fingerprint != self.context.local.fingerprint() {
                    self.context.local.counters.fingerprint_differences.up();
                }
                Input::Fingerprint { id: who?, fingerprint }
            }
        })
    }

    /// Who comes is there: whom we have dialled in vain is dialled again soon. Whose a hint is is not known before somebody
    /// answers there.
    fn arrived(&self, id: &PeerId) {
        if self.context.reaches(id) {
            return; // most of the time: an idle peer says something now and then
        }
        for link in self.context.links().iter().filter(|link| !link.admits()) {
            if link.target().expected.as_ref().is_none_or(|expected| expected == id) {
                link.retry_soon();
            }
        }
    }

    fn take_health(&mut self, health: Health) {
        if self.health.as_ref() == Some(&health) {
            return;
        }
        match &health {
            Health::Connected => tracing::info!("discovery is connected"),
            Health::Stale(why) => tracing::warn!(error = %why, "discovery is stale; the last set of peers stays"),
        }
        self.health = Some(health);
    }
}

/// What a Hello says, as far as membership needs it.
pub(super) fn facts(hello: &Hello) -> HelloFacts {
    HelloFacts {
        id: hello.id.clone(),
        incarnation: hello.incarnation,
        state: hello.state,
        weight: hello.weight,
        zone: Arc::clone(&hello.zone),
        addresses: hello.addresses.clone(),
        fingerprint: hello.fingerprint,
    }
}

fn warn(warning: &Warning) {
    match warning {
        Warning::Held { missing, of } => tracing::warn!(
            missing,
            of,
            "discovery has lost most peers at once; they stay until they fail two pings or it says so again"
        ),
        Warning::SelfNotListed => tracing::warn!(
            "discovery does not list this node: others may not find it; compare its id and address with what is announced"
        ),
        Warning::TooManyPeers { left_out } => tracing::warn!(left_out, "discovery lists more peers than are allowed"),
        Warning::Refused { addresses, expected, why } => {
            tracing::warn!(?addresses, ?expected, ?why, "a listed peer is refused; it is tried again");
        }
        Warning::IgnoredGoodbye { id } => {
            tracing::warn!(%id, "said to have left, while it still answers");
        }
        Warning::OldLife { id, incarnation, known } => {
            tracing::warn!(%id, ?incarnation, ?known, "an older life of a peer answers while the newer one is connected");
        }
    }
}
