//! The provider through the suite that all providers pass, and the program as a whole.
#![expect(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test, helpers included, with a registry outside of the runtime whose tasks are counted"
)]
use std::{
    net::SocketAddr,
    process::Command,
    sync::{Arc, mpsc},
    time::Duration,
};

use custom_provider::{Entry, Mood, Registry, json, registry};
use groupcache_discovery::{
    Me, Provider, async_trait,
    conformance::{Cannot, Source, Timing, conform},
};
use read_along as _;

/// A registry of its own for each scenario.
struct Listed {
    registry: Registry,
    address: SocketAddr,
}

impl Listed {
    fn new() -> Self {
        let registry = Registry::default();
        let (said, hear) = mpsc::channel();
        let served = registry.clone();
        // A runtime of its own: the suite counts the tasks that the provider leaves in this one.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (address, serving) = served.serve().await.unwrap();
                said.send(address).unwrap();
                serving.await.unwrap();
            });
        });
        Self { registry, address: hear.recv().unwrap() }
    }
}

#[async_trait]
impl Source for Listed {
    fn provider(&mut self) -> Arc<dyn Provider> {
        Arc::new(registry(&format!("http://{}/peers", self.address)))
    }

    fn timing(&self) -> Timing {
        // It is asked once a second.
        Timing { change: Duration::from_secs(3), ..Timing::default() }
    }

    async fn join(&mut self, member: &Me) -> Result<(), Cannot> {
        self.registry.add(Entry { id: member.id.to_string(), address: member.addresses[0].to_string() });
        Ok(())
    }

    async fn leave(&mut self, member: &Me) -> Result<(), Cannot> {
        self.registry.remove(member.id.as_str());
        Ok(())
    }

    async fn crash(&mut self, _: &Me) -> Result<(), Cannot> {
        Err(Cannot("the registry does not know who is alive"))
    }

    async fn fail(&mut self) -> Result<(), Cannot> {
        self.registry.feels(Mood::Silent);
        Ok(())
    }

    async fn refuse(&mut self) -> Result<(), Cannot> {
        self.registry.feels(Mood::Failing);
        Ok(())
    }

    async fn mend(&mut self, members: &[Me]) {
        for member in members {
            let _ = self.join(member).await;
        }
        self.registry.feels(Mood::Well);
    }

    async fn garbage(&mut self) -> Result<(), Cannot> {
        self.registry.feels(Mood::Confused);
        Ok(())
    }

    fn knows_incarnations(&self) -> Result<(), Cannot> {
        Err(Cannot("a line has a name and an address"))
    }

    fn knows_dual_stack(&self) -> Result<(), Cannot> {
        Err(Cannot("a line has one address"))
    }
}

#[tokio::test]
async fn a_provider_of_twenty_lines_conforms() {
    println!("{}", conform(async || Listed::new()).await.passed().unwrap());
}

/// As they are counted in the README.
#[test]
fn they_are_twenty_lines() {
    let source = include_str!("../src/lib.rs");
    let provider = source.split_once("/// Finds the peers").unwrap().1;
    assert!(provider.lines().count() <= 20, "{provider}");
}

#[test]
fn three_nodes_find_each_other_and_stay_when_the_registry_fails() {
    let ran = Command::new(env!("CARGO_BIN_EXE_custom-provider")).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
    let lines: Vec<_> = said.lines().skip(1).collect();
    assert_eq!(lines[0], "it lists a and b: a sees 2, b sees 2");
    assert_eq!(lines[1], "it lists c, too: a sees 3, b sees 3, c sees 3");
    let age = lines[2].strip_prefix("it answers 500: a sees 3, by a list that is ").unwrap();
    assert!(age.strip_suffix(" s old").unwrap().parse::<u32>().unwrap() >= 2, "{said}");
    assert_eq!(lines[3], "it is well again, and c has left: a sees 2, b sees 2");
}

#[tokio::test]
async fn what_cannot_be_fetched_is_said() {
    let error = async |url: &str| json::<Vec<Entry>>(url).await.unwrap_err().to_string();
    for (url, says) in [
        ("10.0.0.5", "write http://host:port/path"),
        ("https://10.0.0.5/peers", "write http://host:port/path"),
        ("http://127.0.0.1:1/peers", "cannot be reached"),
        ("http://peers", "cannot be reached"),
    ] {
        assert!(error(url).await.contains(says), "{url}: {}", error(url).await);
    }
    let listed = Listed::new();
    let url = format!("http://{}/peers", listed.address);
    for (mood, says) in [
        (Mood::Confused, "another document"),
        (Mood::Failing, "500 Internal Server Error"),
        (Mood::Silent, "does not answer within 1s"),
    ] {
        listed.registry.feels(mood);
        assert!(error(&url).await.contains(says), "{mood:?}: {}", error(&url).await);
    }
    assert!(error(&format!("http://{}/", listed.address)).await.contains("404"));
    listed.registry.feels(Mood::Well);
    listed.registry.add(Entry { id: "long".repeat(100_000), address: String::new() });
    assert!(error(&url).await.contains("length limit"), "{}", error(&url).await);
}
