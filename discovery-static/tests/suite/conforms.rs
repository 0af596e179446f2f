//! Conformance of the list that code sets.

use std::sync::Arc;

use discovery_static::Static;
use groupcache_core::{
    async_trait,
    conformance::{Cannot, Source, conform},
    discovery::{Me, Peer, Provider},
};

#[derive(Default)]
struct List(Static);

#[async_trait]
impl Source for List {
    fn provider(&mut self) -> Arc<dyn Provider> {
        Arc::new(self.0.clone())
    }

    async fn join(&mut self, member: &Me) -> Result<(), Cannot> {
        let peer = Peer::member(member.id.clone(), member.addresses.clone()).with_incarnation(member.incarnation);
        self.0.handle().add(peer);
        Ok(())
    }

    async fn leave(&mut self, member: &Me) -> Result<(), Cannot> {
        self.0.handle().remove(&member.id);
        Ok(())
    }

    async fn crash(&mut self, _: &Me) -> Result<(), Cannot> {
        Err(Cannot("a list cannot report a crash"))
    }

    async fn fail(&mut self) -> Result<(), Cannot> {
        Err(Cannot("a list in memory does not fail"))
    }

    async fn refuse(&mut self) -> Result<(), Cannot> {
        Err(Cannot("a list in memory does not fail"))
    }

    async fn mend(&mut self, members: &[Me]) {
        for member in members {
            let _ = self.join(member).await;
        }
    }

    /// Lists the lies before the members, as an operator may that a liar has deceived.
    async fn lie(&mut self, lies: &[Me]) -> Result<(), Cannot> {
        let lies = lies.iter().map(|lie| Peer::member(lie.id.clone(), lie.addresses.clone()));
        let handle = self.0.handle();
        handle.set(lies.chain(handle.peers()).collect::<Vec<_>>());
        Ok(())
    }

    async fn garbage(&mut self) -> Result<(), Cannot> {
        Err(Cannot("only peers can be set"))
    }
}

#[tokio::test(start_paused = true)]
async fn list_conforms() {
    println!("{}", conform(async || List::default()).await.passed().unwrap());
}
