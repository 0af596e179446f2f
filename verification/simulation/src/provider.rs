//! Provider: discovery that is late, wrong, empty or absent, as the driver demands.

use std::time::Duration;

use groupcache_core::{
    async_trait,
    discovery::{Address, Peer, PeerSet, Provider, ProviderContext, ProviderError, Signal, Trust},
};

use crate::world::{Belief, PORT, State, Update, World, id};

/// Pause between two checks for scheduled updates.
const LOOK: Duration = Duration::from_millis(20);

/// Provider of one machine.
pub(crate) struct Scripted {
    pub(crate) world: World,
    pub(crate) machine: usize,
}

#[async_trait]
impl Provider for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    fn trust(&self) -> Trust {
        Trust::Authority
    }

    async fn run(&self, mut cx: ProviderContext) -> Result<(), ProviderError> {
        loop {
            for update in self.world.due_updates(self.machine) {
                self.publish(&cx, update)?;
            }
            match cx.next_within(LOOK).await {
                Some(Signal::Leaving) => return Ok(()),
                Some(signal) => {
                    if let Some(update) = self.world.resolve(self.machine, &signal) {
                        self.publish(&cx, update)?;
                    }
                }
                None => {}
            }
        }
    }
}

impl Scripted {
    fn publish(&self, cx: &ProviderContext, update: Update) -> Result<(), ProviderError> {
        let mut state = self.world.lock();
        match update {
            Update::Set(set, belief) => {
                let peers: Vec<_> = set.iter().map(|at| peer(&state, *at)).collect();
                let hint = peers.last().cloned();
                state.machines[self.machine].last_set = Some((set, belief));
                cx.publish(PeerSet::complete(peers));
                // The hint stands for a change that a watch sees while the snapshot is made.
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
    Address::new(format!("{host}:{PORT}")).expect("a valid address")
}

/// Returns the address of a machine. The simulated network assigns addresses in order.
pub(crate) fn host(machine: usize) -> String {
    format!("192.168.0.{}", machine + 1)
}

/// Returns an update with a set that a node may act upon.
pub(crate) fn meant(set: impl IntoIterator<Item = usize>) -> Update {
    Update::Set(set.into_iter().collect(), Belief::Meant)
}
