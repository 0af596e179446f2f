//! Hand-over: how values follow their keys to new owners.
//!
//! A value is only ever sent to a node that asks for it. A node that owns a key now asks its previous owner: for one key
//! before it is loaded, and for all keys, a page at a time, in the background.

mod overwritten;
mod plan;
mod previous_owners;
mod usefulness;
mod views;

#[cfg(test)]
pub(crate) use self::views::tests;
pub(crate) use self::{
    plan::{PeerQueue, PlanForRing, TransferPlans},
    previous_owners::PreviousOwners,
    views::{PreviousView, PreviousViews},
};

/// State of one group's hand-over.
#[derive(Debug, Default)]
pub(crate) struct GroupHandover {
    pub(crate) previous: PreviousOwners,
    pub(crate) plans: TransferPlans,
}
