//! Conformance: the suite that every provider passes, the errors of the fetch, and the program as a whole.
#![expect(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test, helpers included, with a registry outside of the runtime under test"
)]
use std::{
    net::SocketAddr,
    process::Command,
    sync::{Arc, mpsc},
    time::Duration,
};

use custom_provider::{Entry, Mood, Registry, json, registry};
use groupcache_discovery::{
    async_trait,
    conformance::{Cannot, Source, Timing, conform},
    discovery::{Me, Provider},
};
use read_along as _;

/// Source of one scenario: a registry that only this scenario uses.
struct RegistrySource {
    registry: Registry,
    address: SocketAddr,
}

impl RegistrySource {
    fn new() -> Self {
        let registry = Registry::default();
        let (sender, receiver) = mpsc::channel();
        let served = registry.clone();
        // The registry has its own runtime, because the suite counts the tasks that the provider leaves in this one.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (address, serving) = served.serve().await.unwrap();
                sender.send(address).unwrap();
                serving.await.unwrap();
            });
        });
        Self { registry, address: receiver.recv().unwrap() }
    }
}

#[async_trait]
impl Source for RegistrySource {
    fn provider(&mut self) -> Arc<dyn Provider> {
        Arc::new(registry(&format!("http://{}/peers", self.address)))
    }

    fn timing(&self) -> Timing {
        // The provider reads the registry once a second.
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
        Err(Cannot("the registry does not know which nodes are alive"))
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
        Err(Cannot("an item has an id and an address only"))
    }

    fn knows_dual_stack(&self) -> Result<(), Cannot> {
        Err(Cannot("an item has one address"))
    }
}

/// Checks that the provider passes every scenario of the suite that applies to a registry.
#[tokio::test]
async fn registry_provider_conforms() {
    println!("{}", conform(async || RegistrySource::new()).await.passed().unwrap());
}

/// Checks the number of lines that the README claims.
#[test]
fn registry_provider_has_at_most_twenty_lines() {
    let source = include_str!("../src/lib.rs");
    let provider = source.split_once("/// Finds the peers").unwrap().1;
    assert!(provider.lines().count() <= 20, "{provider}");
}

/// Checks the output of the program, which the README shows: nodes keep each other while the registry fails.
#[test]
fn program_keeps_its_members_while_the_registry_fails() {
    let ran = Command::new(env!("CARGO_BIN_EXE_custom-provider")).output().unwrap();
    let output = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{output}{}", String::from_utf8_lossy(&ran.stderr));
    let lines: Vec<_> = output.lines().skip(1).collect();
    assert_eq!(lines[0], "the registry lists a and b: a sees 2, b sees 2");
    assert_eq!(lines[1], "the registry lists a, b and c: a sees 3, b sees 3, c sees 3");
    let age = lines[2].strip_prefix("the registry answers 500: a sees 3, from a list that is ").unwrap();
    assert!(age.strip_suffix(" s old").unwrap().parse::<u32>().unwrap() >= 2, "{output}");
    assert_eq!(lines[3], "the registry works again, and c has left: a sees 2, b sees 2");
}

/// Checks that each way in which a fetch fails has an error that names the cause.
#[tokio::test]
async fn failed_fetch_names_its_cause() {
    let error = async |url: &str| json::<Vec<Entry>>(url).await.unwrap_err().to_string();
    for (url, expected) in [
        ("10.0.0.5", "write http://host:port/path"),
        ("https://10.0.0.5/peers", "write http://host:port/path"),
        ("http://127.0.0.1:1/peers", "cannot be reached"),
        ("http://peers", "cannot be reached"),
    ] {
        assert!(error(url).await.contains(expected), "{url}: {}", error(url).await);
    }
    let source = RegistrySource::new();
    let url = format!("http://{}/peers", source.address);
    for (mood, expected) in [
        (Mood::Confused, "another document"),
        (Mood::Failing, "500 Internal Server Error"),
        (Mood::Silent, "does not answer within 1s"),
    ] {
        source.registry.feels(mood);
        assert!(error(&url).await.contains(expected), "{mood:?}: {}", error(&url).await);
    }
    assert!(error(&format!("http://{}/", source.address)).await.contains("404"));
    source.registry.feels(Mood::Well);
    source.registry.add(Entry { id: "long".repeat(100_000), address: String::new() });
    assert!(error(&url).await.contains("length limit"), "{}", error(&url).await);
}
