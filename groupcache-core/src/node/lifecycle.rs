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

/// Default time of [`Node::shutdown`]: Kubernetes kills a process 30 s after SIGTERM.
const SHUTDOWN: Duration = Duration::from_secs(25);

/// How often a condition of other nodes is looked at while leaving.
const LOOK: Duration = Duration::from_millis(5);

/// How long the last frames may take to be handed to the sockets.
const FLUSH: Duration = Duration::from_millis(200);

impl Node {
    /// Announces that this node drains, and waits until the peers have taken it out of their rings.
    async fn leave_rings_within(&self, limit: Duration) -> Result<()> {
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

    /// Stops owning keys, and waits until their new owners have received the values, the most used first.
    ///
    /// Within the first 3 s of `deadline` the node waits until the connected peers have taken it out of their rings, and
    /// then for the values. Its own gets go on, and peers are answered from memory and from loads that run. A node without
    /// peers, or whose peers receive nothing, does not wait. There is no way back. Calling it again, or dropping its
    /// future, is safe. For a process whose HTTP server must close before the node does; otherwise
    /// [`shutdown`](Self::shutdown) drains.
    ///
    /// # Errors
    /// [`is_closed`](crate::Error::is_closed) when the node was shut down.
    pub async fn drain(&self, deadline: Duration) -> Result<()> {
        let begun = Instant::now();
        self.leave_rings_within(DRAIN.min(deadline)).await?;
        self.send_values_within(deadline.saturating_sub(begun.elapsed())).await;
        Ok(())
    }

    /// Leaves the cluster within 25 s, so that a deploy loads nothing again. Otherwise as
    /// [`shutdown_within`](Self::shutdown_within).
    ///
    /// Kubernetes kills a process 30 s after SIGTERM.
    ///
    /// # Errors
    /// None at present; a node that is closed already stays so.
    pub async fn shutdown(&self) -> Result<()> {
        self.shutdown_within(SHUTDOWN).await
    }

    /// Leaves the cluster: drains, refuses gets, finishes owed responses and loads, withdraws the announcement, says
    /// goodbye and closes.
    ///
    /// The call takes at most `deadline`, and a second for the provider: up to a third of it until the peers know, up to
    /// 10 s for the values, and the rest for owed responses and loads. Give it somewhat less than the process has from
    /// SIGTERM on. Calling it again, or dropping its future, is safe; a future that is dropped leaves the node where it
    /// was.
    ///
    /// ```
    /// # async fn f(node: groupcache_core::Node) -> Result<(), groupcache_core::Error> {
    /// // after SIGTERM, in a process that is killed 10 s later
    /// node.shutdown_within(std::time::Duration::from_secs(8)).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// None at present; a node that is closed already stays so.
    pub async fn shutdown_within(&self, deadline: Duration) -> Result<()> {
        let inner = &self.inner;
        let context = &inner.context;
        let begun = Instant::now();
        let end = begun.checked_add(deadline);
        if inner.stop_serving.is_cancelled() {
            return Ok(());
        }
        // An error means that another call shuts the node down too: the steps below bear being taken twice.
        if self.leave_rings_within(DRAIN.min(deadline / 3)).await.is_ok() {
            self.send_values_within(share_of(deadline.saturating_sub(begun.elapsed()))).await;
        }
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
