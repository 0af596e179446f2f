//! Hand-over: the move of values to the new owners of their keys.
//!
//! A value is sent only to a node that requests it. The new owner of a key reads the key from its previous owner before
//! it loads the key, and receives all of its keys in the background, a page at a time.
//!
//! The module has the state of the hand-over, and sends nothing itself. `views` remembers the previous views of the
//! node, for all groups. The other files hold the state of one group: `previous_owners` with `usefulness` and
//! `overwritten` decides which previous owners are asked for a key, and `plan` has the entries to send. The reads of
//! single keys are in `engine/previous_owner.rs`, the pages in `engine/send.rs` and `engine/receive.rs`, and the
//! transfers in `node/handover.rs`.
//!
//! A value of a previous owner never replaces one that was written or loaded after the key has moved.

mod overwritten;
mod plan;
mod previous_owners;
mod usefulness;
mod views;

#[cfg(all(test, not(shuttle)))]
pub(crate) use self::views::tests;
pub(crate) use self::{
    plan::{PeerQueue, PlanForRing, TransferPlans},
    previous_owners::PreviousOwners,
    views::{NextView, PreviousView, PreviousViews},
};

/// State of one group's hand-over.
#[derive(Debug, Default)]
pub(crate) struct GroupHandover {
    pub(crate) previous: PreviousOwners,
    pub(crate) plans: TransferPlans,
}
