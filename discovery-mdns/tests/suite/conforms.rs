//! Conformance: the suite for all providers, on loopback, and on Linux with an interface that goes down.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use discovery_mdns::Mdns;
use groupcache_core::{
    PeerId, async_trait,
    conformance::{Cannot, Source, Timing, conform},
    discovery::{Me, Provider},
};
use segment::{Families, Segment};

use crate::support::{Announcer, free_port, has_multicast};

/// Source on loopback, which can go down in a network namespace.
struct Loopback {
    port: u16,
    /// Announcers of single members, so that each member can crash.
    announcers: BTreeMap<PeerId, Announcer>,
    /// Announcer shared by the members beyond [`OWN_ANNOUNCERS`].
    crowd: Option<Announcer>,
    link: Option<Link>,
}

/// Loopback interface of this network namespace.
struct Link;

impl Link {
    fn set(&self, state: &str) {
        let done = std::process::Command::new("ip").args(["link", "set", "lo", state]).status();
        assert!(done.unwrap().success());
    }
}

impl Loopback {
    fn new(link: Option<Link>) -> Self {
        Self { port: free_port(), announcers: BTreeMap::new(), crowd: None, link }
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        if let Some(link) = &self.link {
            link.set("up");
        }
    }
}

/// Maximum number of members with an announcer of their own.
const OWN_ANNOUNCERS: usize = 5;

/// Maximum number of lies, because each is a service that is probed and announced. The table is tested with more.
const LIES: usize = 200;

#[async_trait]
impl Source for Loopback {
    fn provider(&mut self) -> Arc<dyn Provider> {
        Arc::new(Mdns::new().port(self.port).unwrap().loopback())
    }

    /// Returns limits that allow for goodbyes, which take effect after a second (RFC 6762), and for a slow machine.
    fn timing(&self) -> Timing {
        let s = Duration::from_secs;
        Timing { first_set: s(5), change: s(5), crash: s(10), recovery: s(12), ..Timing::default() }
    }

    async fn join(&mut self, member: &Me) -> Result<(), Cannot> {
        let port = self.port;
        let has_own = self.announcers.contains_key(&member.id) || self.announcers.len() < OWN_ANNOUNCERS;
        let announcer = match has_own {
            true => self.announcers.entry(member.id.clone()).or_insert_with(|| Announcer::new(port)),
            false => self.crowd.get_or_insert_with(|| Announcer::new(port)),
        };
        announcer.announce(member);
        Ok(())
    }

    async fn leave(&mut self, member: &Me) -> Result<(), Cannot> {
        self.announcers[&member.id].withdraw(member.id.as_str());
        Ok(())
    }

    async fn crash(&mut self, member: &Me) -> Result<(), Cannot> {
        self.announcers.remove(&member.id).unwrap().crash();
        Ok(())
    }

    async fn fail(&mut self) -> Result<(), Cannot> {
        self.link.as_ref().ok_or(Cannot("the loopback interface of this machine must stay up"))?.set("down");
        Ok(())
    }

    async fn refuse(&mut self) -> Result<(), Cannot> {
        Err(Cannot("a network segment refuses no node"))
    }

    async fn mend(&mut self, members: &[Me]) {
        if let Some(link) = &self.link {
            link.set("up");
        }
        for member in members {
            let _ = self.join(member).await;
        }
    }

    async fn lie(&mut self, lies: &[Me]) -> Result<(), Cannot> {
        let announcer = self.crowd.get_or_insert_with(|| Announcer::new(self.port));
        for (number, lie) in lies.iter().take(LIES).enumerate() {
            announcer.announce_as(&format!("lie-{number}"), lie);
        }
        Ok(())
    }

    async fn garbage(&mut self) -> Result<(), Cannot> {
        let announcer = self.crowd.get_or_insert_with(|| Announcer::new(self.port));
        let here = ["127.0.0.1".parse().unwrap()];
        let of_member = |cluster: &str| {
            let mut txt = vec![("txtvers", "1".to_owned()), ("id", "member-0".to_owned()), ("inc", "1".to_owned())];
            txt.push(("cluster", cluster.to_owned()));
            txt
        };
        announcer.register("bare", "bare.local.", &here, 1, &[]);
        announcer.register("future", "future.local.", &here, 1, &[("txtvers", "2".to_owned())]);
        announcer.register("unlisted", "unlisted.local.", &here, 1, &of_member("other"));
        let public = ["203.0.113.7".parse().unwrap()];
        announcer.register("public", "public.local.", &public, 1, &of_member("conformance"));
        Ok(())
    }

    fn knows_dual_stack(&self) -> Result<(), Cannot> {
        match &self.link {
            Some(_) => Ok(()),
            None => Err(Cannot("loopback has no IPv6 multicast")),
        }
    }
}

#[tokio::test]
async fn provider_conforms_on_loopback() {
    if has_multicast() {
        println!("{}", conform(async || Loopback::new(None)).await.passed().unwrap());
    }
}

#[test]
fn provider_conforms_when_the_interface_goes_down() {
    let Some(segment) = Segment::of(1, Families::V6) else { return };
    let host = &segment.hosts()[0];
    host.ip(&["address", "add", "fd00::1/64", "dev", "eth0", "nodad"]);
    let report = host.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(conform(async || Loopback::new(Some(Link))))
    });
    println!("{}", report.passed().unwrap());
}
