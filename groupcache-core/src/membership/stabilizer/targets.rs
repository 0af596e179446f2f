//! Targets: the addresses at which each is dialled, and the changes of them that the node receives.

use crate::identity::Address;
use crate::membership::stabilizer::{
    OwnerKind, Stabilizer,
    dials::{DialPurpose, Link},
    events::{Action, Refusal},
    listing::distinct,
    members::DialId,
};

impl Stabilizer {
    pub(super) fn hangup(&mut self, dial: DialId) {
        if self.dials.remove(dial).is_some() {
            self.actions.push(Action::Hangup { dial });
        }
    }

    /// Dials a new target, if any address is known for it.
    pub(super) fn open(&mut self, purpose: DialPurpose) {
        let addresses = self.addresses_of(&purpose, &[]);
        if addresses.is_empty() {
            return;
        }
        let expected = purpose.id().cloned();
        if let Some(dial) = self.dials.open(purpose, addresses.clone()) {
            self.actions.push(Action::Dial { dial, expected, addresses });
        }
    }

    /// Sends the node the addresses of a target if they have changed. A live connection stays as it is.
    pub(super) fn update_target(&mut self, dial: DialId) {
        let Some(target) = self.dials.get(dial).filter(|t| t.link != Link::Live) else { return };
        // Earlier addresses are dropped when another peer answers at the target.
        let is_recycled = matches!(target.refusal, Some(Refusal::WrongId { .. }));
        let addresses = self.addresses_of(&target.purpose, if is_recycled { &[] } else { &target.addresses });
        let expected = target.purpose.id().cloned();
        if addresses.is_empty() || (addresses == target.addresses && expected == target.expected) {
            return;
        }
        if let Some(target) = self.dials.get_mut(dial) {
            target.addresses.clone_from(&addresses);
            target.expected.clone_from(&expected);
            self.actions.push(Action::Dial { dial, expected, addresses });
        }
    }

    /// Returns the addresses to dial, best first: from discovery, from answers at hinted addresses, from the peer's
    /// Hello, and `before`. The addresses of a record with a stale incarnation come last. For the id of this node: the
    /// listed addresses at which it is not known to answer itself.
    pub(super) fn addresses_of(&self, purpose: &DialPurpose, before: &[Address]) -> Vec<Address> {
        let id = match purpose {
            DialPurpose::Hint(address) => return vec![address.clone()],
            DialPurpose::Named(id) | DialPurpose::Member(id) => id,
        };
        let listed = self.listing.named.get(id);
        let of_list = listed.map(|l| l.addresses.clone()).unwrap_or_default();
        if *id == self.me.id {
            let is_foreign = |a: &Address| !self.me.addresses.contains(a) && !self.is_own_address(a);
            return of_list.into_iter().filter(is_foreign).collect();
        }
        let mut all = Vec::new();
        let entry = self.members.get(id);
        let is_old = entry.zip(listed).is_some_and(|(e, l)| l.incarnation.is_some_and(|i| i < e.facts.incarnation));
        if !is_old {
            all.extend(of_list.iter().cloned());
        }
        all.extend(self.address_owners.iter().filter(|(_, a)| a.is_of(id)).map(|(address, _)| address.clone()));
        all.extend(entry.map(|e| e.facts.addresses.clone()).unwrap_or_default());
        all.extend(before.iter().cloned());
        all.extend(of_list);
        distinct(self.with_said_addresses(id, all))
    }

    pub(super) fn is_own_address(&self, address: &Address) -> bool {
        self.address_owners.get(address).is_some_and(|owner| owner.kind == OwnerKind::Local)
    }
}
