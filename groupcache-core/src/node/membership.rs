//! The membership task: feeds the stabilizer, and carries out its actions.
//!
//! Inputs are commands of the node, time, results of pings, reports of the provider, and events of links. Actions are
//! dials, pings, requests to the provider, views to install, and warnings. The rules are in the stabilizer
//! ([`crate::membership::stabilizer`]), which is a pure state machine. Only this task installs views.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval},
};

use crate::node::{
    channels::{Command, EVENT_QUEUE, Feeds, Outputs, Status},
    group_mismatch::GroupMismatches,
    names::Names,
    warnings::warn,
};
use crate::{
    cache::revalidation::Change,
    context::NodeContext,
    identity::{Address, NodeState, PeerId},
    membership::{
        provider::{Health, Me, PeerSet, Report},
        stabilizer::{Action, DialId, HelloFacts, Input, MemberSet, Stabilizer},
    },
    peer::{
        client::{
            dial_limits::Arrival,
            keep,
            link::{Link, LinkEvent, LinkEvents, Target},
        },
        server::inbound::InboundPeers,
    },
    protocol::message::Hello,
};

/// Interval at which the stabilizer receives a tick.
const STEP: Duration = Duration::from_millis(50);

/// The membership task.
pub(super) struct Membership {
    context: Arc<NodeContext>,
    stabilizer: Stabilizer,
    links: LinkEvents,
    pings: mpsc::Sender<(PeerId, bool)>,
    pinged: mpsc::Receiver<(PeerId, bool)>,
    /// Ids of the peers that have answered, by target.
    peer_ids: BTreeMap<DialId, PeerId>,
    /// Channel for resolve requests to the current run of the provider.
    requests: watch::Receiver<Option<mpsc::Sender<Vec<PeerId>>>>,
    me: watch::Sender<Me>,
    reached: watch::Sender<BTreeSet<PeerId>>,
    status: watch::Sender<Status>,
    health: Option<Health>,
    /// Peers that discovery lists, and whether it lists no other node, as the writes know them.
    listing: (BTreeSet<PeerId>, bool),
    epoch: u64,
    /// Port on which this node listens.
    port: u16,
    inbound: Arc<InboundPeers>,
    /// Version of the table of inbound peers that the stabilizer has.
    inbound_version: u64,
    names: Names,
    /// Channel for the addresses of names, and its receiver.
    resolved: mpsc::Sender<(Address, Vec<Address>)>,
    resolutions: mpsc::Receiver<(Address, Vec<Address>)>,
    group_mismatches: GroupMismatches,
}

impl Membership {
    pub(super) fn new(
        context: Arc<NodeContext>,
        stabilizer: Stabilizer,
        outputs: Outputs,
        port: u16,
        inbound: Arc<InboundPeers>,
    ) -> Self {
        let (pings, pinged) = mpsc::channel(EVENT_QUEUE);
        let (resolved, resolutions) = mpsc::channel(EVENT_QUEUE);
        let Outputs { links, requests, me, reached, status } = outputs;
        Self {
            context,
            stabilizer,
            links,
            pings,
            pinged,
            peer_ids: BTreeMap::new(),
            requests,
            me,
            reached,
            status,
            health: None,
            listing: (BTreeSet::new(), false),
            epoch: 1,
            port,
            inbound,
            inbound_version: 0,
            names: Names::default(),
            resolved,
            resolutions,
            group_mismatches: GroupMismatches::default(),
        }
    }

    /// Runs until the node ends.
    pub(super) async fn run(mut self, mut feeds: Feeds) {
        let mut steps = interval(STEP);
        steps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut has_provider = true;
        loop {
            // Link events come last, so that a peer with many messages does not delay time and discovery.
            let input = tokio::select! {
                biased;
                Some(command) = feeds.commands.recv() => match command {
                    Command::Drain => self.drain(),
                },
                _ = steps.tick() => {
                    self.publish_reached();
                    self.read_inbound().await;
                    self.group_mismatches.check(&self.context, &self.peer_ids);
                    Some(Input::Tick)
                }
                Some((name, addresses)) = self.resolutions.recv() => Some(Input::Resolved { name, addresses }),
                Some((id, is_alive)) = self.pinged.recv() => Some(Input::Pinged { id, is_alive }),
                changed = feeds.provider.sets.changed(), if has_provider => {
                    has_provider = changed.is_ok();
                    let published = feeds.provider.sets.borrow_and_update().clone();
                    if let Some(set) = published.take_complete() {
                        self.context.local.counters.provider_sets.up();
                        self.step(Input::Set(set)).await;
                    }
                    (!published.hints.is_empty()).then(|| Input::Set(PeerSet::partial(published.hints)))
                }
                Some(report) = feeds.provider.reports.recv() => match report {
                    Report::Left { id, incarnation } => Some(Input::Left { id, incarnation }),
                    Report::Health(health) => {
                        self.on_health(health);
                        None
                    }
                },
                Some((dial, event)) = feeds.events.recv() => self.on_link_event(dial, event),
                Some(id) = feeds.arrivals.recv() => {
                    self.on_arrival(&id);
                    None
                }
            };
            if let Some(input) = input {
                self.step(input).await;
            }
        }
    }

    /// Publishes the ids of the connected members to the provider, if they have changed.
    fn publish_reached(&self) {
        let now = self.stabilizer.reached();
        self.reached.send_if_modified(|reached| {
            let has_changed = *reached != now;
            if has_changed {
                *reached = now;
            }
            has_changed
        });
    }

    /// Gives the stabilizer the peers that are connected to this node, if they have changed.
    async fn read_inbound(&mut self) {
        let version = self.inbound.version();
        if std::mem::replace(&mut self.inbound_version, version) != version {
            self.step(Input::Inbound(self.inbound.all())).await;
        }
    }

    fn now_ms(&self) -> u64 {
        self.context.local.clock.read_ms()
    }

    /// Gives an input to the stabilizer, and carries out the actions until none is left.
    async fn step(&mut self, input: Input) {
        let now = self.context.local.clock.elapsed();
        let is_set = matches!(input, Input::Set(_));
        let mut actions: VecDeque<_> = self.stabilizer.step(now, input).into();
        while let Some(action) = actions.pop_front() {
            if let Some(follow_up) = self.act(action).await {
                actions.extend(self.stabilizer.step(now, follow_up));
            }
        }
        if is_set {
            self.names.watch(self.stabilizer.hinted_names(), &self.context, &self.resolved);
        }
        let listing = self.stabilizer.listing();
        if listing != self.listing {
            self.context.local.writes.listed(&listing.0, listing.1, self.now_ms());
            self.listing = listing;
        }
        let mut report = self.stabilizer.report();
        report.stale = match &self.health {
            Some(Health::Stale(why)) => Some(why.clone()),
            Some(Health::Connected) | None => None,
        };
        *self.context.membership.lock() = report;
    }

    /// Carries out an action, and returns the input that results from it.
    async fn act(&mut self, action: Action) -> Option<Input> {
        match action {
            Action::Dial { dial, expected, addresses } => self.dial(dial, Target { expected, addresses }),
            Action::Redial { dial } => {
                if let Some(link) = self.context.link_of(dial) {
                    link.reconnect();
                }
            }
            Action::Hangup { dial } => {
                self.peer_ids.remove(&dial);
                if let Some(link) = self.context.remove_link(dial) {
                    self.context.no_longer_at(&link);
                    link.close();
                }
            }
            Action::Ping { id } => self.ping(id),
            Action::Resolve { ids } => {
                if let Some(requests) = &*self.requests.borrow() {
                    let _ = requests.try_send(ids); // in a full queue a request waits already
                }
            }
            Action::Install(members) => {
                let fingerprint = self.install(members).await;
                return Some(Input::Installed { fingerprint });
            }
            Action::Ready => {
                tracing::info!(id = %self.me.borrow().id, "ready: this node owns its share of the keys");
                self.announce(|hello| hello.state = NodeState::Ready);
                self.status.send_modify(|status| status.is_ready = true);
            }
            Action::RaiseIncarnation(incarnation) => self.announce(|hello| hello.incarnation = incarnation),
            Action::DuplicateId { at, incarnation } => {
                tracing::error!(
                    id = %self.me.borrow().id,
                    ?at,
                    ?incarnation,
                    "another live node has this id; give each node its own NODE_NAME"
                );
                self.status.send_modify(|status| status.duplicate_at = Some(at));
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
        self.context.tasks.run(keep(link, self.links.clone(), self.context.random()));
    }

    fn ping(&self, id: PeerId) {
        let links =
            self.peer_ids.iter().filter(|(_, peer)| **peer == id).filter_map(|(dial, _)| self.context.link_of(*dial));
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

    async fn install(&mut self, members: MemberSet) -> u64 {
        self.epoch += 1;
        let ready_members = members.members.iter().filter(|m| m.state == NodeState::Ready).count();
        let is_draining = members.members.iter().any(|m| m.dial.is_none() && m.state == NodeState::Draining);
        let next = self.context.next_view(self.epoch, members).await;
        let view = &next.view;
        let fingerprint = view.fingerprint();
        let ids: Vec<_> = view.members().iter().map(|m| format!("{} ({})", m.id, m.state)).collect();
        tracing::info!(
            epoch = view.epoch,
            fingerprint = format_args!("{fingerprint:016x}"),
            members = ?ids,
            "installed a view"
        );
        self.context.install(next);
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

    /// Changes the Hello of this node, and announces the change to peers and to the provider.
    fn announce(&self, change: impl FnOnce(&mut Hello)) {
        self.context.local.change(change);
        let hello = self.context.local.hello();
        self.me.send_modify(|me| {
            me.state = hello.state;
            me.incarnation = hello.incarnation;
        });
    }

    fn on_link_event(&mut self, dial: DialId, event: LinkEvent) -> Option<Input> {
        // Events of a target that was dropped meanwhile are ignored, and must not be recorded.
        let link = self.context.link_of(dial)?;
        let peer = self.peer_ids.get(&dial).cloned();
        Some(match event {
            LinkEvent::Hello(hello) => {
                self.peer_ids.insert(dial, hello.id.clone());
                self.context.now_at(&hello.id, &link);
                if link.take_new_offers() {
                    // A peer may own keys now that this node kept for want of its group.
                    self.context.changes.record(Change::View, self.now_ms());
                }
                Input::Hello { dial, hello: facts(&hello) }
            }
            LinkEvent::Refused(why, text) => {
                tracing::debug!(error = %text, "a connection to a target was refused");
                Input::Refused { dial, why }
            }
            LinkEvent::Failed(why) => {
                tracing::debug!(error = %why, "a connection to a target failed");
                let target = link.target();
                let is_own = target.expected.is_none()
                    && target.addresses.iter().all(|address| is_own_address(address, self.port));
                if is_own { Input::OwnAddress { dial } } else { Input::Failed { dial } }
            }
            LinkEvent::Lost => {
                if let Some(peer) = peer {
                    tracing::info!(%peer, "the connection to a peer was lost");
                }
                Input::Lost { dial }
            }
            LinkEvent::Goodbye(incarnation) => Input::Goodbye { id: peer?, incarnation },
            LinkEvent::Fingerprint(fingerprint) => {
                if fingerprint != self.context.local.fingerprint() {
                    self.context.local.counters.fingerprint_differences.up();
                }
                Input::Fingerprint { id: peer?, fingerprint }
            }
        })
    }

    /// Retries pending dials early, because an inbound connection or message proves that the peer is up. Targets known
    /// only by address are retried too, because their peer id is not known yet.
    fn on_arrival(&self, id: &PeerId) {
        // An idle peer sends something now and then, which is the usual case. A dial of this node to itself, or to
        // another node with its id, arrives too, and says nothing about other targets.
        if self.context.reaches(id) || *id == self.me.borrow().id {
            return;
        }
        let said = self.inbound.said_addresses(id);
        for link in self.context.links().iter().filter(|link| !link.admits()) {
            link.retry_soon(Arrival::at(&link.target(), id, &said));
        }
    }

    /// Logs a change of the provider's health.
    fn on_health(&mut self, health: Health) {
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

/// Returns whether an address is the port of this node on an address of this machine.
fn is_own_address(address: &Address, port: u16) -> bool {
    // Only an address of this machine can be bound.
    let is_local = |at: &SocketAddr| cfg!(not(simulation)) && std::net::UdpSocket::bind((at.ip(), 0)).is_ok();
    address.as_str().parse().is_ok_and(|at: SocketAddr| at.port() == port && is_local(&at))
}

/// Returns the facts of a Hello that membership needs.
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
