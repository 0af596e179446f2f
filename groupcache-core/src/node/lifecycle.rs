//! The end of a node: drain, shutdown and drop.
//!
//! A node leaves in steps: peers take it out of their rings, new owners receive its values, local gets are refused,
//! owed responses and loads complete, the provider withdraws the announcement, peers receive a goodbye, and all tasks
//! end. Each step may be repeated, so that two concurrent calls, or a call after a dropped one, do no harm.
//! [`handover`] has the sending of values.
//!
//! [`handover`]: crate::node::handover

use std::{sync::Arc, time::Duration};

use crate::node::{Inner, Node, channels::Command, handover::handover_limit};
use crate::{
    error::Result,
    identity::NodeState,
    limits::{DRAIN, WITHDRAW},
    peer::client::link::Link,
};

/// Time limit of [`Node::shutdown`]. Kubernetes kills a process 30 s after SIGTERM.
const SHUTDOWN: Duration = Duration::from_secs(25);

/// Interval at which the conditions of a step are checked.
const POLL: Duration = Duration::from_millis(5);

/// Maximum time until the connections have taken the goodbyes.
const FLUSH: Duration = Duration::from_millis(200);

impl Node {
    /// Announces that this node drains, and waits until the peers have taken it out of their rings, for `limit` at
    /// most.
    async fn leave_rings_within(&self, limit: Duration) -> Result<()> {
        let inner = &self.inner;
        inner.commands.send(Command::Drain).await.map_err(|_| self.closed())?;
        // A peer with the fingerprint of the local view, in which this node owns nothing, has taken the node out of its
        // ring. Draining and unreachable peers are not waited for, because they receive no keys of this node.
        let removed_everywhere = async {
            let mut status = inner.status.clone();
            let _ = status.wait_for(|status| status.is_draining).await;
            loop {
                let view = inner.context.view();
                let mut new_owners =
                    view.members().iter().filter(|m| m.dial.is_some() && m.state != NodeState::Draining);
                let agrees = |link: Arc<Link>| !link.admits() || link.fingerprint() == view.fingerprint();
                if new_owners.all(|member| inner.context.link(member).is_none_or(agrees)) {
                    return;
                }
                inner.context.timers.sleep(POLL).await;
            }
        };
        if inner.context.timers.timeout(limit, removed_everywhere).await.is_none() {
            tracing::warn!(
                "not every peer has taken this node out of its ring yet; the node answers peers as long as it runs"
            );
        }
        Ok(())
    }

    /// Stops owning keys, and waits until the new owners have received the values, the most used first.
    ///
    /// The call takes at most `deadline`: up to 3 s of it until the connected peers have taken the node out of their
    /// rings, and the rest for the values. Meanwhile local gets go on, and peers are answered from memory and from
    /// loads that run already. A node without peers, or with peers that receive nothing, does not wait. A drain cannot
    /// be undone. Calling it again, or dropping its future, is safe.
    ///
    /// The method is for a process with an HTTP server that must close before the node does. Otherwise use
    /// [`shutdown`](Self::shutdown), which drains too.
    ///
    /// ```
    /// # async fn f(node: groupcache_core::Node) -> Result<(), groupcache_core::Error> {
    /// # use std::time::Duration;
    /// // after SIGTERM: drain, then close the HTTP server, then leave
    /// node.drain(Duration::from_secs(10)).await?;
    /// node.shutdown_within(Duration::from_secs(10)).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`is_closed`](crate::Error::is_closed) when the node has been shut down.
    pub async fn drain(&self, deadline: Duration) -> Result<()> {
        let begun = self.inner.context.timers.now();
        self.leave_rings_within(DRAIN.min(deadline)).await?;
        self.send_values_within(
            deadline.saturating_sub(self.inner.context.timers.now().saturating_duration_since(begun)),
        )
        .await;
        Ok(())
    }

    /// Leaves the cluster as [`shutdown_within`](Self::shutdown_within) does, with a deadline of 25 s.
    ///
    /// Values move to their new owners first, so that a deploy does not load them again. The deadline suits Kubernetes,
    /// which kills a process 30 s after SIGTERM.
    ///
    /// # Errors
    /// None at present. A closed node stays closed.
    pub async fn shutdown(&self) -> Result<()> {
        self.shutdown_within(SHUTDOWN).await
    }

    /// Leaves the cluster: drains, refuses local gets, completes owed responses and loads, withdraws the announcement,
    /// sends goodbyes and closes.
    ///
    /// The call takes at most `deadline`, plus up to 2.2 s for the provider, the goodbyes and the last tasks. Of the
    /// deadline, the removal from the rings takes at most a third and at most 3 s, the hand-over at most 10 s and at
    /// most two thirds of the time that is left then, and owed responses and loads take the rest. Loads that still run
    /// at the deadline end with an error.
    ///
    /// Calling it again, or dropping its future, is safe. A dropped future leaves the node in the state that it has
    /// reached, and another call goes on from there.
    ///
    /// ```
    /// # async fn f(node: groupcache_core::Node) -> Result<(), groupcache_core::Error> {
    /// // after SIGTERM, in a process that is killed 10 s later
    /// node.shutdown_within(std::time::Duration::from_secs(7)).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// None at present. A closed node stays closed.
    pub async fn shutdown_within(&self, deadline: Duration) -> Result<()> {
        let inner = &self.inner;
        let context = &inner.context;
        let begun = self.inner.context.timers.now();
        let end = begun.checked_add(deadline);
        if inner.stop_serving.is_cancelled() {
            return Ok(());
        }
        // An error means that another call shuts the node down too. The steps below may be repeated.
        if self.leave_rings_within(DRAIN.min(deadline / 3)).await.is_ok() {
            self.send_values_within(handover_limit(
                deadline.saturating_sub(self.inner.context.timers.now().saturating_duration_since(begun)),
            ))
            .await;
        }
        context.close();
        let is_idle = match end {
            Some(end) => context.timers.timeout_at(end, inner.wait_until_idle()).await.is_some(),
            None => {
                inner.wait_until_idle().await;
                true
            }
        };
        if !is_idle {
            inner.warn_of_unfinished();
        }
        inner.leaving.send_replace(true);
        let _ = context.timers.timeout(WITHDRAW, inner.withdrawn.cancelled()).await;
        // Before the goodbye, because writes are complete without this node from then on.
        context.registry.all().into_iter().for_each(|group| group.close());
        inner.say_goodbye().await;
        inner.close();
        let _ = context.timers.timeout(WITHDRAW, context.tasks.others.wait()).await;
        tracing::info!(id = %self.id(), "left the cluster");
        Ok(())
    }
}

/// Work that a shutdown waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Unfinished {
    loads: usize,
    /// Responses that this node owes to peers.
    responses: usize,
    /// Requests that peers have not answered.
    requests: usize,
}

impl Inner {
    fn unfinished(&self) -> Unfinished {
        Unfinished {
            loads: self.context.tasks.loads.len(),
            responses: self.server.owes(),
            requests: self.context.links().iter().map(|link| link.in_flight()).sum(),
        }
    }

    /// Warns of the work that the end of the deadline cuts short. A deadline that was shorter than the drain, and met
    /// an idle node, is no fault.
    fn warn_of_unfinished(&self) {
        let Unfinished { loads, responses, requests } = self.unfinished();
        if loads + responses + requests > 0 {
            tracing::warn!(
                loads,
                responses,
                requests,
                "work was left at the end of the shutdown, so its waiters get an error; allow more time"
            );
        }
    }

    /// Waits until no load runs, and until neither this node nor a peer of it owes a response.
    async fn wait_until_idle(&self) {
        let is_idle = || self.unfinished() == Unfinished::default();
        // The check must succeed twice, because a request to a lost peer is in no table until its fallback load begins
        // here a moment later.
        let mut was_idle = false;
        loop {
            let is_idle = is_idle();
            if is_idle && was_idle {
                return;
            }
            was_idle = is_idle;
            self.context.timers.sleep(POLL).await;
        }
    }

    async fn say_goodbye(&self) {
        let links = self.context.links();
        links.iter().for_each(|link| link.say_goodbye());
        self.server.say_goodbye();
        let all_sent = async {
            while links.iter().any(|link| link.owes_goodbye()) || self.server.owes_goodbye() {
                self.context.timers.sleep(POLL).await;
            }
            // HTTP/2 has taken the goodbyes, and its task writes them to the sockets the next time it runs.
            self.context.timers.sleep(POLL).await;
        };
        let _ = self.context.timers.timeout(FLUSH, all_sent).await;
    }

    /// Ends the node at once: provider, listener, tasks, groups and links.
    fn close(&self) {
        self.context.close();
        self.leaving.send_replace(true);
        self.stop_serving.cancel();
        // Tasks end before links, so that fetches which lose their link do not begin a load here.
        self.context.tasks.close();
        self.context.tasks.others.close();
        // Groups hold the context, and the context holds the registry. An empty registry breaks this cycle, so that a
        // group is freed with its last handle.
        for group in self.context.registry.take_all() {
            group.close();
        }
        for link in self.context.links() {
            link.close();
        }
        if let Some(service) = &self.mounted {
            service.ends(&self.server);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}
