//! Fake API server: serves the calls that pods make, lists and watches of pods and endpoint slices, to service accounts
//! with a Role for it. The server makes the slices from the Services of the manifests.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Query, State},
    http::{HeaderMap, StatusCode, Uri, header::AUTHORIZATION},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, task::AbortHandle};

/// Server on a port of loopback, which ends on drop.
pub(crate) struct Api {
    shared: Arc<Shared>,
    pub(crate) port: u16,
    task: AbortHandle,
}

struct Shared {
    /// Services, Roles and other objects of the manifests.
    applied: Vec<Value>,
    world: Mutex<World>,
    changed: watch::Sender<u64>,
    /// Whether requests are answered. While false, requests are accepted and wait.
    answers: watch::Sender<bool>,
}

#[derive(Default)]
struct World {
    version: u64,
    /// Objects by resource and name, all in one namespace.
    objects: BTreeMap<(&'static str, String), Value>,
    events: Vec<Event>,
    refused: Vec<String>,
}

#[derive(Clone)]
struct Event {
    version: u64,
    resource: &'static str,
    kind: &'static str,
    object: Value,
}

impl Drop for Api {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Api {
    pub(crate) async fn serve(applied: &[Value]) -> Self {
        let (changed, answers) = (watch::Sender::new(0), watch::Sender::new(true));
        let shared = Arc::new(Shared { applied: applied.to_vec(), world: Mutex::default(), changed, answers });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }).abort_handle();
        Self { shared, port, task }
    }

    /// Sets whether requests are answered. A watch that has begun goes on.
    pub(crate) fn answers(&self, answers: bool) {
        self.shared.answers.send_replace(answers);
    }

    /// Adds a pod, or replaces it.
    pub(crate) fn put_pod(&self, pod: Value) {
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        self.shared.change(|world| world.put("pods", name, pod));
    }

    pub(crate) fn change_pod(&self, name: &str, change: impl FnOnce(&mut Value)) {
        self.shared.change(|world| {
            let Some(mut pod) = world.objects.get(&("pods", name.to_owned())).cloned() else { return };
            change(&mut pod);
            world.put("pods", name.to_owned(), pod);
        });
    }

    pub(crate) fn delete_pod(&self, name: &str) {
        self.shared.change(|world| {
            let object = world.objects.remove(&("pods", name.to_owned())).unwrap();
            world.record("pods", "DELETED", object);
        });
    }

    /// Returns the endpoints of one port of a Service: `ip:port` of each ready pod.
    pub(crate) fn endpoints(&self, service: &str, port: &str) -> Vec<String> {
        let world = self.shared.world();
        let Some(slice) = world.objects.get(&("endpointslices", service.to_owned())) else { return Vec::new() };
        let ports = slice["ports"].as_array().unwrap();
        let Some(number) = ports.iter().find(|one| one["name"] == port).map(|one| &one["port"]) else {
            return Vec::new();
        };
        let ready = slice["endpoints"].as_array().unwrap().iter().filter(|one| one["conditions"]["ready"] == true);
        ready.map(|one| format!("{}:{number}", one["addresses"][0].as_str().unwrap())).collect()
    }

    /// Returns the calls that were refused, each by its verb and resource.
    pub(crate) fn refused(&self) -> Vec<String> {
        self.shared.world().refused.clone()
    }
}

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// Changes pods and their slices under one lock. Otherwise a slice made before another change could replace one
    /// made after it.
    fn change(&self, change: impl FnOnce(&mut World)) {
        let mut world = self.world();
        change(&mut world);
        self.publish_endpoints(&mut world);
        self.changed.send_replace(world.version);
    }

    /// Makes the endpoint slice of each Service, as the controller of Kubernetes does.
    fn publish_endpoints(&self, world: &mut World) {
        let pods: Vec<_> =
            world.objects.iter().filter(|(key, _)| key.0 == "pods").map(|(_, pod)| pod.clone()).collect();
        for service in self.applied.iter().filter(|object| object["kind"] == "Service") {
            let name = service["metadata"]["name"].as_str().unwrap();
            let publishes_all = service["spec"]["publishNotReadyAddresses"] == true;
            let chosen: Vec<_> = pods.iter().filter(|pod| selects(&service["spec"]["selector"], pod)).collect();
            let endpoints: Vec<_> = chosen.iter().filter_map(|pod| endpoint(pod, publishes_all)).collect();
            let ports = service["spec"]["ports"].as_array().unwrap().iter().filter_map(|port| {
                let target = chosen.iter().find_map(|pod| container_port(pod, &port["targetPort"]))?;
                Some(json!({ "name": port["name"], "port": target, "protocol": "TCP" }))
            });
            let slice = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": { "name": name, "namespace": service["metadata"]["namespace"],
                              "labels": { "kubernetes.io/service-name": name } },
                "endpoints": endpoints, "ports": ports.collect::<Vec<_>>(),
            });
            world.put("endpointslices", name.to_owned(), slice);
        }
    }

    /// Returns whether the service account with this token may make a call, by the RoleBindings and Roles of the
    /// manifests.
    fn allows(&self, token: &str, verb: &str, group: &str, resource: &str) -> bool {
        let lists = |list: &Value, what: &str| list.as_array().is_some_and(|all| all.iter().any(|one| one == what));
        let bindings = self.applied.iter().filter(|object| object["kind"] == "RoleBinding");
        let mine = bindings.filter(|binding| {
            binding["subjects"]
                .as_array()
                .unwrap()
                .iter()
                .any(|subject| subject["name"] == token && subject["kind"] == "ServiceAccount")
        });
        let roles = mine.filter_map(|binding| {
            let role =
                |object: &&Value| object["kind"] == "Role" && object["metadata"]["name"] == binding["roleRef"]["name"];
            self.applied.iter().find(role)
        });
        roles.flat_map(|role| role["rules"].as_array().unwrap()).any(|rule| {
            lists(&rule["verbs"], verb) && lists(&rule["apiGroups"], group) && lists(&rule["resources"], resource)
        })
    }

    /// Returns the current version, and the lines of a watch for the events since another version.
    fn lines(&self, resource: &str, selector: &str, since: u64) -> (u64, String) {
        let world = self.world();
        let new = world
            .events
            .iter()
            .filter(|event| event.version > since && event.resource == resource && matches(selector, &event.object));
        let line = |event: &Event| format!("{}\n", json!({ "type": event.kind, "object": event.object }));
        (world.version, new.map(line).collect())
    }
}

impl World {
    fn put(&mut self, resource: &'static str, name: String, object: Value) {
        let before = self.objects.insert((resource, name), object.clone());
        self.record(resource, if before.is_some() { "MODIFIED" } else { "ADDED" }, object);
    }

    /// Records an event with the next version.
    fn record(&mut self, resource: &'static str, kind: &'static str, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.events.push(Event { version: self.version, resource, kind, object });
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<BTreeMap<String, String>>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let mut answers = shared.answers.subscribe();
    answers.wait_for(|answers| *answers).await.unwrap();
    let parts: Vec<_> = uri.path().split('/').skip(1).collect();
    let (group, resource) = match parts.as_slice() {
        ["api", "v1", "namespaces", _, resource] => ("", *resource),
        ["apis", group, "v1", "namespaces", _, resource] => (*group, *resource),
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    let verb = if query.contains_key("watch") { "watch" } else { "list" };
    let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    if !shared.allows(token.unwrap_or_default(), verb, group, resource) {
        shared.world().refused.push(format!("{verb} {resource}"));
        return (StatusCode::FORBIDDEN, "forbidden").into_response();
    }
    let selector = query.get("labelSelector").cloned().unwrap_or_default();
    if verb == "list" {
        let world = shared.world();
        let here = world.objects.iter().filter(|(key, object)| key.0 == resource && matches(&selector, object));
        let items: Vec<_> = here.map(|(_, object)| object.clone()).collect();
        let metadata = json!({ "resourceVersion": world.version.max(1).to_string() });
        let list = json!({ "apiVersion": "v1", "kind": "List", "metadata": metadata, "items": items });
        return axum::Json(list).into_response();
    }
    let since = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
    let changed = shared.changed.subscribe();
    let resource = resource.to_owned();
    let events = stream::unfold((since, changed), move |(since, mut changed)| {
        let (shared, resource, selector) = (Arc::clone(&shared), resource.clone(), selector.clone());
        async move {
            loop {
                let (now, lines) = shared.lines(&resource, &selector, since);
                if !lines.is_empty() {
                    return Some((Ok::<_, Infallible>(Bytes::from(lines)), (now, changed)));
                }
                changed.changed().await.ok()?;
            }
        }
    });
    Body::from_stream(events).into_response()
}

/// Returns whether a label selector of a URL matches an object. Equality is the only operator.
fn matches(selector: &str, object: &Value) -> bool {
    let mut terms = selector.split(',').filter_map(|term| term.split_once('='));
    terms.all(|(label, value)| object["metadata"]["labels"][label] == value)
}

fn selects(selector: &Value, object: &Value) -> bool {
    selector.as_object().unwrap().iter().all(|(label, value)| &object["metadata"]["labels"][label] == value)
}

fn endpoint(pod: &Value, publishes_all: bool) -> Option<Value> {
    let conditions = pod["status"]["conditions"].as_array();
    let serves = conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"));
    let is_terminating = pod["metadata"]["deletionTimestamp"].is_string();
    let is_ready = publishes_all || (serves && !is_terminating);
    Some(json!({
        "addresses": [pod["status"]["podIP"].as_str()?],
        "conditions": { "ready": is_ready, "serving": serves, "terminating": is_terminating },
        "targetRef": { "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"] },
    }))
}

fn container_port(pod: &Value, name: &Value) -> Option<Value> {
    let containers = pod["spec"]["containers"].as_array()?.iter();
    let mut ports = containers.filter_map(|container| container["ports"].as_array()).flatten();
    ports.find(|port| &port["name"] == name).map(|port| port["containerPort"].clone())
}
