//! Discovery as the driver wants it: late, wrong, empty, or not there.

use std::time::Duration;

use groupcache_core::{Address, Peer, PeerSet, Provider, ProviderContext, ProviderError, Signal, async_trait};

use crate::world::{Belief, PORT, State, Update, World, id};

/// How often it looks whether it is to say something.
const LOOK: Duration = Duration::from_millis(20);

/// The provider of one machine.
pub(crate) struct Scripted {
    pub(crate) world: World,
    pub(crate) machine: usize,
}

#[async_trait]
impl Provider for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    async fn run(&self, mut cx: ProviderContext) -> Result<(), ProviderError> {
        loop {
            for update in self.world.updates(self.machine) {
                self.say(&cx, update)?;
            }
            match cx.next_within(LOOK).await {
                Some(Signal::Leaving) => return Ok(()),
                Some(signal) => {
                    if let Some(update) = self.world.asked(self.machine, &signal) {
                        self.say(&cx, update)?;
                    }
                }
                None => {}
            }
        }
    }
}

impl Scripted {
    fn say(&self, cx: &ProviderContext, update: Update) -> Result<(), ProviderError> {
        let mut state = self.world.lock();
        match update {
            Update::Set(set, belief) => {
                let peers: Vec<_> = set.iter().map(|at| peer(&state, *at)).collect();
                let hint = peers.last().cloned();
                state.machines[self.machine].last_set = Some((set, belief));
                cx.publish(PeerSet::complete(peers));
                // What it has watched while it made the snapshot.
                if state.scenario.has_hints
                    && let Some(hint) = hint
                {
                    cx.publish(PeerSet::partial(vec![hint]));
                }
            }
            Update::Ghosts => cx.publish(PeerSet::partial(vec![
                Peer::at("192.168.200.1:7946").map_err(Box::new)?,
                Peer::member(id(99), [address("192.168.200.2")]),
            ])),
            Update::Left(peer) => cx.left(id(peer), None),
            Update::Fail => return Err("discovery is down".into()),
        }
        Ok(())
    }
}

fn peer(_: &State, machine: usize) -> Peer {
    Peer::member(id(machine), [address(&host(machine))])
}

fn address(host: &str) -> Address {
    Address::new(format!("{host}:{PORT}")).expect("a good address")
}

/// The address that the simulated network gives to a machine: they are given in order.
pub(crate) fn host(machine: usize) -> String {
    format!("192.168.0.{}", machine + 1)
}

/// Nothing but the belief of a set is left open by a lie.
pub(crate) fn meant(set: impl IntoIterator<Item = usize>) -> Update {
    Update::Set(set.into_iter().collect(), Belief::Meant)
}
