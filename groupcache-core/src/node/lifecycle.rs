//! How a node leaves: drain, shutdown, drop.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};

use crate::node::{Inner, Node, handover::share_of, membership::Command};
use crate::{
    error::Result,
    flight::within,
    identity::NodeState,
    limits::{DRAIN, WITHDRAW},
    peer::client::link::Link,
};

/// How often a condition of other nodes is looked at while leaving.
const LOOK: Duration = Duration::from_millis(5);

/// How long the last frames may take to be handed to the sockets.
const FLUSH: Duration = Duration::from_millis(200);

impl Node {
    pub(super) async fn drain_within(&self, limit: Duration) -> Result<()> {
        let inner = &self.inner;
        inner.commands.send(Command::Drain).await.map_err(|_| self.closed())?;
        // A peer that agrees with our view, in which we own nothing, has taken us out. One that drains itself, or
        // cannot be reached, takes no keys from us: nothing is to be waited for.
        let all_know = async {
            let mut status = inner.status.clone();
            let _ = status.wait_for(|status| status.is_draining).await;
            loop {
                let view = inner.context.view();
                let mut heirs = view.members().iter().filter(|m| m.dial.is_some() && m.state != NodeState::Draining);
                let knows = |link: Arc<Link>| !link.admits() || link.fingerprint() == view.fingerprint();
                if heirs.all(|heir| inner.context.link(heir).is_none_or(knows)) {
                    return;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        if timeout(limit, all_know).await.is_err() {
            tracing::warn!(
                "not every peer has taken this node out of its ring yet; it answers them as long as it runs"
            );
        }
        Ok(())
    }

    /// Leaves the cluster so that nothing is loaded again because of it: as [`shutdown`](Self::shutdown), and before it
    /// refuses gets it waits until the nodes that own its keys now have taken its values over, the most used first.
    ///
    /// It takes at most `deadline`: up to a third of it until the peers know, up to 10 s for the values, and the rest for
    /// owed answers and loads. Give it somewhat less than the process has from SIGTERM on: 25 s of the 30 s of Kubernetes.
    /// A node without peers, or whose peers take nothing over, does not wait. Calling it again, or dropping its
    /// future, is safe.
    ///
    /// ```
    /// # async fn f(node: groupcache_core::Node) -> Result<(), groupcache_core::Error> {
    /// // after SIGTERM
    /// node.drain_and_shutdown(std::time::Duration::from_secs(25)).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// None at present; a node that is closed already stays so.
    pub async fn drain_and_shutdown(&self, deadline: Duration) -> Result<()> {
        let begun = Instant::now();
        // Closed already: there is nothing to hand over.
        if self.drain_within(DRAIN.min(deadline / 3)).await.is_ok() {
            self.hand_over_within(share_of(deadline.saturating_sub(begun.elapsed()))).await;
        }
        self.shutdown_within(deadline.saturating_sub(begun.elapsed())).await
    }

    /// The first part of [`drain_and_shutdown`](Self::drain_and_shutdown), for a node whose peer service is mounted in a
    /// server that must close before the node does: drains, and waits until its values are taken over, together at most
    /// `deadline`. Local gets go on.
    ///
    /// # Errors
    /// [`is_closed`](crate::Error::is_closed) when it was shut down.
    pub async fn drain_and_hand_over(&self, deadline: Duration) -> Result<()> {
        let begun = Instant::now();
        self.drain_within(DRAIN.min(deadline)).await?;
        self.hand_over_within(deadline.saturating_sub(begun.elapsed())).await;
        Ok(())
    }

    /// As [`shutdown`](Self::shutdown), with another time for owed answers and loads.
    ///
    /// # Errors
    /// None at present; a node that is closed already stays so.
    pub async fn shutdown_within(&self, deadline: Duration) -> Result<()> {
        let inner = &self.inner;
        let context = &inner.context;
        let end = Instant::now().checked_add(deadline);
        if inner.stop_serving.is_cancelled() {
            return Ok(());
        }
        // Already closed means that somebody else shuts it down too: the steps below bear being taken twice.
        let _ = self.drain_within(DRAIN.min(deadline)).await;
        context.close();
        if within(end, inner.has_answered_all()).await.is_none() {
            tracing::warn!(
                left = context.tasks.loads.len(),
                "loads still ran at the end of the shutdown; who waits gets an error"
            );
        }
        inner.leaving.send_replace(true);
        let _ = timeout(WITHDRAW, inner.withdrawn.cancelled()).await;
        inner.say_goodbye().await;
        inner.close();
        let _ = timeout(WITHDRAW, context.tasks.others.wait()).await;
        tracing::info!(id = %self.id(), "left the cluster");
        Ok(())
    }
}

impl Inner {
    /// Waits until no load runs, and no answer is owed by this node or to it.
    async fn has_answered_all(&self) {
        let is_quiet = || {
            let links = self.context.links();
            self.context.tasks.loads.is_empty() && self.server.owes() == 0 && links.iter().all(|l| l.in_flight() == 0)
        };
        // Twice: what a peer that is lost was asked for is in no table until its load begins here, a moment later.
        let mut was_quiet = false;
        loop {
            let is_quiet = is_quiet();
            if is_quiet && was_quiet {
                return;
            }
            was_quiet = is_quiet;
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn say_goodbye(&self) {
        let links = self.context.links();
        links.iter().for_each(|link| link.say_goodbye());
        self.server.say_goodbye();
        let all_said = async {
            while links.iter().any(|link| link.owes_goodbye()) || self.server.owes_goodbye() {
                tokio::time::sleep(LOOK).await;
            }
            // Taken by HTTP/2; its task writes it to the socket at the next turn.
            tokio::time::sleep(LOOK).await;
        };
        let _ = timeout(FLUSH, all_said).await;
    }

    /// Ends everything at once.
    fn close(&self) {
        self.context.close();
        self.leaving.send_replace(true);
        self.stop_serving.cancel();
        // First, so that fetches which lose their link now do not begin to load here.
        self.context.tasks.close();
        self.context.tasks.others.close();
        // Groups hold what holds the registry: emptied, they are freed with their last handle.
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
