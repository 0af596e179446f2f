//! Events: reads one line of a watch.

use std::sync::Arc;

use kube::core::Status;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    api::{Api, Trouble},
    object::{Object, name_and_version},
};

/// An event of a watch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A new or changed object.
    Put(Object),
    Removed {
        name: Arc<str>,
        version: String,
    },
    /// A version to continue from, and whether the first state ends here.
    Bookmark {
        version: String,
        ends_initial: bool,
    },
    Trouble(Trouble),
    /// An empty line, an unreadable bookmark, or an event of an unknown type.
    Nothing,
    /// An event that does not even identify its object.
    Garbage,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// Reads one line, and counts an unreadable one.
pub(super) fn read(api: &Api, line: &[u8]) -> Event {
    if line.iter().all(u8::is_ascii_whitespace) {
        return Event::Nothing;
    }
    let line: Line<'_> = match serde_json::from_slice(line) {
        Ok(line) => line,
        Err(e) => {
            api.counters.garbage(api.kind.resource(), &e);
            return Event::Garbage;
        }
    };
    let json = line.object.get();
    match line.kind.as_str() {
        "ADDED" | "MODIFIED" => api.read(json).map_or(Event::Garbage, Event::Put),
        // The event has the last state of the object, at the version of the deletion. Only the name is needed.
        "DELETED" => name_and_version(json).map_or(Event::Garbage, |(name, version)| Event::Removed { name, version }),
        "BOOKMARK" => bookmark(json),
        "ERROR" => {
            let status = serde_json::from_str::<Status>(json).unwrap_or_default();
            Event::Trouble(api.refusal("watch", status.code, &status))
        }
        _ => Event::Nothing,
    }
}

fn bookmark(json: &str) -> Event {
    #[derive(Deserialize)]
    struct Bookmark {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Metadata {
        #[serde(default)]
        resource_version: String,
        #[serde(default)]
        annotations: Option<Annotations>,
    }
    #[derive(Deserialize)]
    struct Annotations {
        #[serde(rename = "k8s.io/initial-events-end", default)]
        initial_events_end: Option<String>,
    }
    let Ok(Bookmark { metadata }) = serde_json::from_str(json) else { return Event::Nothing };
    let end = metadata.annotations.and_then(|annotations| annotations.initial_events_end);
    Event::Bookmark { version: metadata.resource_version, ends_initial: end.as_deref() == Some("true") }
}
