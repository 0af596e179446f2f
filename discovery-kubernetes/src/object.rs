//! Pods and endpoint slices, and the little of each that is kept.
//!
//! They are not read as the types of `k8s-openapi`: those keep everything (10 KiB and more for a pod, its managed
//! fields above all), and one object that does not fit them would spoil the list it is in.

mod pod;
mod slice;
#[cfg(test)]
mod tests;

use std::{fmt, net::IpAddr, net::SocketAddr, sync::Arc};

use groupcache_core::{Address, PeerId};
use serde::Deserialize;

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Pods,
    Slices,
}

/// Which port of a pod.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Port {
    Named(Arc<str>),
    Number(u16),
}

impl Kind {
    /// The plural by which the API server and Roles call it.
    pub(crate) fn resource(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Slices => "endpointslices",
        }
    }

    pub(crate) fn group(self) -> &'static str {
        match self {
            Self::Pods => "",
            Self::Slices => "discovery.k8s.io",
        }
    }

    /// The path of the resource in a namespace.
    pub(crate) fn path(self, namespace: &str) -> String {
        match self {
            Self::Pods => format!("/api/v1/namespaces/{namespace}/pods"),
            Self::Slices => format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"),
        }
    }

    /// Reads one object.
    pub(crate) fn read(self, json: &str, port: &Port) -> Result<Object, serde_json::Error> {
        match self {
            Self::Pods => pod::read(json, port),
            Self::Slices => slice::read(json, port),
        }
    }
}

impl Port {
    /// The first TCP port that is meant.
    fn find<'a>(&self, ports: impl IntoIterator<Item = &'a NamedPort>) -> Option<u16> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Named(name) => ports.into_iter().find(|port| port.is(name)).and_then(|port| port.number),
        }
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::Number(number) => number.fmt(f),
        }
    }
}

/// A port of a container or of a slice.
#[derive(Deserialize)]
struct NamedPort {
    name: Option<String>,
    #[serde(alias = "containerPort", alias = "port")]
    number: Option<u16>,
    protocol: Option<String>,
}

impl NamedPort {
    fn is(&self, name: &str) -> bool {
        self.name.as_deref() == Some(name) && self.protocol.as_deref().is_none_or(|protocol| protocol == "TCP")
    }
}

/// One pod, or one slice of endpoints: its name, its version, and who is in it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) name: Arc<str>,
    /// Where a watch goes on after this.
    pub(crate) version: String,
    pub(crate) content: Content,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Who is in it; none for a pod that has come to its end.
    Read(Box<[Record]>),
    /// It cannot be read: what is known of it stays.
    Garbage,
}

/// One peer, as one object knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// The name of the pod; none where an endpoint is no pod.
    pub(crate) id: Option<PeerId>,
    /// Tells a pod from another one of its name, before or after it.
    pub(crate) uid: Option<Arc<str>>,
    /// None of them: it waits for an address, or for a port.
    pub(crate) addresses: Box<[Address]>,
    pub(crate) zone: Option<Arc<str>>,
    /// The machine, where the zone is to be asked of it.
    pub(crate) machine: Option<Arc<str>>,
    /// Seconds that it has to end, from when it was asked to; none for one that stays.
    pub(crate) grace: Option<u32>,
}

impl Record {
    pub(crate) fn is_terminating(&self) -> bool {
        self.grace.is_some()
    }
}

/// What every object has.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: String,
    #[serde(default)]
    uid: Option<String>,
    #[serde(default)]
    resource_version: Option<String>,
    #[serde(default)]
    deletion_timestamp: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    deletion_grace_period_seconds: Option<u32>,
    #[serde(default)]
    labels: Option<Labels>,
}

#[derive(Deserialize)]
struct Labels {
    #[serde(rename = "topology.kubernetes.io/zone", default)]
    zone: Option<String>,
}

/// What is left to be read of an object that is garbage.
pub(crate) fn name_and_version(json: &str) -> Option<(Arc<str>, String)> {
    #[derive(Deserialize)]
    struct Any {
        metadata: Named,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Named {
        name: String,
        #[serde(default)]
        resource_version: Option<String>,
    }
    let metadata = serde_json::from_str::<Any>(json).ok()?.metadata;
    Some((metadata.name.into(), metadata.resource_version.unwrap_or_default()))
}

/// Where a peer with these IP addresses answers. What is no address is left out.
fn addresses<'a>(ips: impl IntoIterator<Item = &'a str>, port: Option<u16>) -> Box<[Address]> {
    let Some(port) = port.filter(|port| *port > 0) else { return Box::default() };
    let mut found = Vec::with_capacity(2);
    for ip in ips {
        let address = match ip.parse::<IpAddr>() {
            Ok(ip) if ip.is_unspecified() => None,
            Ok(ip) => Some(Address::from(SocketAddr::new(ip, port))),
            // Slices may hold names.
            Err(_) => Address::new(format!("{ip}:{port}")).ok(),
        };
        if let Some(address) = address.filter(|address| !found.contains(address)) {
            found.push(address);
        }
    }
    found.into_boxed_slice()
}

/// A zone that core would take.
fn zone(text: Option<String>) -> Option<Arc<str>> {
    let is_good = |zone: &String| (1..=MAX_ZONE).contains(&zone.len()) && !zone.contains(char::is_whitespace);
    text.filter(is_good).map(Arc::from)
}

/// That of a label.
const MAX_ZONE: usize = 63;
