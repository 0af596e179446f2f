//! Conformance suite of providers, over TCP and in real time, with a new client from a kubeconfig for each run.

use std::sync::Arc;

use discovery_kubernetes::{Pods, Service};
use groupcache_core::{
    async_trait,
    conformance::{Cannot, Report, Source, Timing, conform},
    discovery::{Me, Provider},
};
use serde_json::{Value, json};

use crate::support::{
    NAMESPACE, Scratch,
    fake::{Fake, Mode},
    kubeconfig, pod, running,
    wire::{Listening, listen},
};

/// The fake API server as a source of members.
struct Cluster {
    fake: Fake,
    listening: Listening,
    scratch: Scratch,
    is_service: bool,
}

const SLICES: &str = "endpointslices";

async fn fresh(is_service: bool) -> Cluster {
    let fake = Fake::default();
    let listening = listen(&fake, None).await;
    Cluster { fake, listening, scratch: Scratch::new(), is_service }
}

/// Returns the pod of a member.
fn pod_of(member: &Me) -> Value {
    let mut pod = pod(member.id.as_str(), &member.incarnation.0.to_string());
    let ips: Vec<_> = member.addresses.iter().map(|at| ip(at.as_str())).collect();
    pod["status"] = running(&ips.iter().map(String::as_str).collect::<Vec<_>>(), true);
    let ports = json!([{ "name": "group-port", "containerPort": port(member) }]);
    pod["spec"]["containers"][0]["ports"] = ports;
    pod
}

fn ip(address: &str) -> String {
    address.rsplit_once(':').unwrap().0.trim_matches(['[', ']']).to_owned()
}

fn port(member: &Me) -> u16 {
    member.addresses[0].as_str().rsplit_once(':').unwrap().1.parse().unwrap()
}

/// Returns the slices of a member, one per address, because a slice has one address family.
fn slices_of(member: &Me) -> Vec<Value> {
    let slice = |(n, at): (usize, &groupcache_core::discovery::Address)| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": format!("{}-{n}", member.id), "namespace": NAMESPACE,
                          "labels": { "kubernetes.io/service-name": "users" } },
            "addressType": if at.as_str().starts_with('[') { "IPv6" } else { "IPv4" },
            "ports": [{ "name": "group-port", "port": port(member), "protocol": "TCP" }],
            "endpoints": [{ "addresses": [ip(at.as_str())], "conditions": { "ready": false },
                "targetRef": { "kind": "Pod", "name": member.id.as_str(), "uid": member.incarnation.0.to_string() } }],
        })
    };
    member.addresses.iter().enumerate().map(slice).collect()
}

#[async_trait]
impl Source for Cluster {
    fn provider(&mut self) -> Arc<dyn Provider> {
        let path =
            kubeconfig(&self.scratch, &format!("http://127.0.0.1:{}", self.listening.port), "t0ken-of-users", None);
        match self.is_service {
            true => Arc::new(Service::new(NAMESPACE, "users").kubeconfig(path)),
            false => Arc::new(Pods::new(NAMESPACE, "users").kubeconfig(path)),
        }
    }

    fn timing(&self) -> Timing {
        Timing { change: std::time::Duration::from_millis(500), ..Timing::default() }
    }

    async fn join(&mut self, member: &Me) -> Result<(), Cannot> {
        match self.is_service {
            true => slices_of(member).into_iter().for_each(|slice| self.fake.put(SLICES, slice)),
            false => self.fake.put("pods", pod_of(member)),
        }
        Ok(())
    }

    async fn leave(&mut self, member: &Me) -> Result<(), Cannot> {
        self.crash(member).await
    }

    /// Deletes the pod, because Kubernetes detects a dead pod after some time and deletes it like any other.
    async fn crash(&mut self, member: &Me) -> Result<(), Cannot> {
        for n in 0..2 {
            self.fake.delete(SLICES, NAMESPACE, &format!("{}-{n}", member.id));
        }
        self.fake.delete("pods", NAMESPACE, member.id.as_str());
        Ok(())
    }

    async fn fail(&mut self) -> Result<(), Cannot> {
        self.fake.set(Mode::Down);
        Ok(())
    }

    async fn refuse(&mut self) -> Result<(), Cannot> {
        self.fake.set(Mode::Refuses { verb: "", code: 401, body: None });
        Ok(())
    }

    async fn mend(&mut self, members: &[Me]) {
        for resource in ["pods", SLICES] {
            for (namespace, name) in self.fake.names(resource) {
                self.fake.delete(resource, &namespace, &name);
            }
        }
        for member in members {
            let _ = self.join(member).await;
        }
        self.fake.set(Mode::Normal);
    }

    async fn garbage(&mut self) -> Result<(), Cannot> {
        for resource in ["pods", SLICES] {
            for (name, spec) in [("member-0", json!("none")), ("unlisted", json!([1])), ("odd", json!({}))] {
                let mut garbage = pod(name, "x");
                garbage["metadata"]["labels"]["kubernetes.io/service-name"] = json!("users");
                garbage["spec"] = spec.clone();
                garbage["endpoints"] = spec;
                // A pod is overwritten even if it exists, because an unreadable object keeps the last state of its
                // member.
                let is_new = self.fake.get(resource, NAMESPACE, name).is_none();
                if is_new || !self.is_service {
                    self.fake.put(resource, garbage);
                }
            }
        }
        Ok(())
    }
}

/// Checks [`Pods`] against all scenarios.
#[tokio::test]
async fn pods_conform() {
    let report = conform(async || fresh(false).await).await;
    println!("{report}");
    assert_only_lies_are_left_out(&report);
    report.passed().unwrap();
}

/// Checks [`Service`] against all scenarios.
#[tokio::test]
async fn service_conforms() {
    let report = conform(async || fresh(true).await).await;
    println!("{report}");
    assert_only_lies_are_left_out(&report);
    report.passed().unwrap();
}

/// Checks that the scenarios with a liar are the only ones left out, because only the API server writes to the source.
fn assert_only_lies_are_left_out(report: &Report) {
    let why = "only the operator changes the source";
    let names = ["flood of inventions removes no member that is reached", "false records of a member hide no true one"];
    assert_eq!(report.left_out(), names.map(|name| (name, why)));
}
