//! Pods and endpoint slices: reads the few fields that discovery needs.
//!
//! The types of `k8s-openapi` are not used, because they keep everything (10 KiB and more for a pod, most of it managed
//! fields), and because one object that does not fit the types would make the whole list unreadable.

mod pod;
mod slice;
#[cfg(test)]
mod tests;

use std::{fmt, net::IpAddr, net::SocketAddr, sync::Arc};

use groupcache_core::{PeerId, discovery::Address};
use serde::Deserialize;

/// Kind of the watched objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Pods,
    Slices,
}

/// Port of the peers: a name to look up, or a number.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Port {
    Named(Arc<str>),
    Number(u16),
}

impl Kind {
    /// Returns the plural name of the resource in paths and Roles.
    pub(crate) fn resource(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Slices => "endpointslices",
        }
    }

    /// Returns the API group; the core group is empty.
    pub(crate) fn group(self) -> &'static str {
        match self {
            Self::Pods => "",
            Self::Slices => "discovery.k8s.io",
        }
    }

    /// Returns the path of the resource in a namespace.
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
    /// Returns the number, or the number of the first TCP port with the name.
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
    /// Returns whether this is the TCP port with the name. TCP is the default protocol of Kubernetes.
    fn is(&self, name: &str) -> bool {
        self.name.as_deref() == Some(name) && self.protocol.as_deref().is_none_or(|protocol| protocol == "TCP")
    }
}

/// A pod or an endpoint slice, with the peers in it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) name: Arc<str>,
    /// Resource version from which a watch continues after this object.
    pub(crate) version: String,
    pub(crate) content: Content,
}

/// Content of an object.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Peers of the object. Empty for a pod that has Failed or Succeeded.
    Read(Box<[Record]>),
    /// Unreadable content. The last known peers of the object stay.
    Garbage,
}

/// Data of one peer in one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Name of the pod. `None` if an endpoint is no pod.
    pub(crate) id: Option<PeerId>,
    /// Uid of the pod, which differs between two pods that have the same name one after the other.
    pub(crate) uid: Option<Arc<str>>,
    /// Addresses to dial. Empty while the pod has no IP address or no port of the right name.
    pub(crate) addresses: Box<[Address]>,
    /// Grace period of a deletion in seconds. `None` if the pod is not being deleted.
    pub(crate) grace: Option<u32>,
}

impl Record {
    /// Returns whether the pod is being deleted.
    pub(crate) fn is_terminating(&self) -> bool {
        self.grace.is_some()
    }
}

/// Metadata of an object.
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
}

/// Reads the name and the version alone, for an object that is unreadable otherwise.
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

/// Returns the addresses of a peer with these IP addresses or host names. Invalid, unspecified and repeated ones are
/// left out; without a port the result is empty.
fn addresses<'a>(ips: impl IntoIterator<Item = &'a str>, port: Option<u16>) -> Box<[Address]> {
    let Some(port) = port.filter(|port| *port > 0) else { return Box::default() };
    let mut found = Vec::with_capacity(2);
    for ip in ips {
        let address = match ip.parse::<IpAddr>() {
            Ok(ip) if ip.is_unspecified() => None,
            Ok(ip) => Some(Address::from(SocketAddr::new(ip, port))),
            // Slices may hold host names.
            Err(_) => Address::new(format!("{ip}:{port}")).ok(),
        };
        if let Some(address) = address.filter(|address| !found.contains(address)) {
            found.push(address);
        }
    }
    found.into_boxed_slice()
}
