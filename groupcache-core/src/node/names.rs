//! Names of the peer list without an id: each is looked up again and again, because several nodes may answer behind it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{context::NodeContext, identity::Address};

/// Time between two look-ups of a name, so that a node that is new behind it is found within 10 s. The jitter adds up
/// to a quarter.
const REFRESH: Duration = Duration::from_secs(8);

/// Maximum number of addresses of one name.
const MAX_ADDRESSES_OF_NAME: usize = 256;

/// The names that are looked up, each in a task of its own, so that a name without an answer delays no other.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeMap<Address, DropGuard>);

impl Names {
    /// Looks up these names from now on, and no others.
    pub(super) fn watch(
        &mut self,
        wanted: BTreeSet<Address>,
        context: &Arc<NodeContext>,
        resolved: &mpsc::Sender<(Address, Vec<Address>)>,
    ) {
        self.0.retain(|name, _| wanted.contains(name));
        for name in wanted.into_iter().filter(|_| cfg!(not(simulation))) {
            self.0.entry(name).or_insert_with_key(|name| {
                let dropped = CancellationToken::new();
                let lookups = look_up(name.clone(), Arc::clone(context), resolved.clone());
                context.tasks.run(dropped.clone().run_until_cancelled_owned(lookups).map(drop));
                dropped.drop_guard()
            });
        }
    }
}

/// Looks up a name until the future is dropped, and sends the addresses of the nodes behind it when they have changed.
async fn look_up(name: Address, context: Arc<NodeContext>, resolved: mpsc::Sender<(Address, Vec<Address>)>) {
    let Some((host, port)) = name.as_str().rsplit_once(':') else { return };
    let Ok(port) = port.parse() else { return };
    let mut known = None;
    loop {
        // The dial of the name reports an error, so that none is logged here.
        if let Ok(found) = context.local.net.lookup(host, port).await {
            let nodes = nodes_behind(&found);
            if known.as_ref() != Some(&nodes) {
                known = Some(nodes.clone());
                if resolved.send((name.clone(), nodes)).await.is_err() {
                    return;
                }
            }
        }
        sleep(REFRESH.mul_f64(1.0 + context.random_share() / 4.0)).await;
    }
}

/// Returns the addresses of the nodes behind a name, sorted. Empty if a single node answers there, which may have an
/// address of each family.
fn nodes_behind(found: &[SocketAddr]) -> Vec<Address> {
    let of_family = |is_v4: bool| found.iter().filter(move |at| at.is_ipv4() == is_v4).count();
    if of_family(true) < 2 && of_family(false) < 2 {
        return Vec::new();
    }
    let mut nodes: Vec<_> = found.iter().take(MAX_ADDRESSES_OF_NAME).map(|at| Address::from(*at)).collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that one address of each family is one node, and that several of one family are several nodes.
    #[test]
    fn several_addresses_of_one_family_are_several_nodes() {
        let nodes = |found: &[&str]| {
            let found: Vec<SocketAddr> = found.iter().map(|at| at.parse().unwrap()).collect();
            nodes_behind(&found).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(nodes(&[]).is_empty() && nodes(&["10.0.0.1:1"]).is_empty());
        assert!(nodes(&["[fd00::1]:1", "10.0.0.1:1"]).is_empty(), "one node with two families");
        assert_eq!(nodes(&["10.0.0.2:1", "10.0.0.1:1", "10.0.0.2:1"]), ["10.0.0.1:1", "10.0.0.2:1"]);
        assert_eq!(nodes(&["[fd00::1]:1", "[fd00::2]:1", "10.0.0.1:1"]).len(), 3);
    }
}
