//! Agreement: checks that the objects of one directory agree with each other, with the image, with `tools/minikube` and
//! with the provider.

use std::{cell::RefCell, collections::BTreeSet};

use discovery_kubernetes::{APPLICATION_LABELS, PORT_NAME, Service};
use groupcache_discovery::{DiscoveryConfig, Identity};
use serde_json::{Value, json};

use super::{
    manifests::{of_kind, workload},
    root,
};

/// Maximum time from SIGTERM to the end of the process, in seconds: 12 s to drain and to send the values, 2 s for
/// requests, 5 s for loads, 1 s to withdraw, 1 s for the tasks of the connections, and 1 s of reserve.
const ENDING: u64 = 22;
/// Variables that the service and the libraries read, beside those of the identity and of the provider.
const OTHER_VARIABLES: [&str; 3] = ["POD_NAMESPACE", "GROUPCACHE_CLUSTER_KEY_FILE", "GROUPCACHE_ACCEPT_OLD_KEYS"];

/// Returns everything that does not agree.
pub(crate) fn faults(objects: &[Value]) -> Vec<String> {
    let mut faults = Faults(Vec::new());
    let Some(workload) = workload(objects) else { return vec!["there is no workload, or more than one".to_owned()] };
    let pod = &workload["spec"]["template"];
    labels(objects, workload, &mut faults);
    names(objects, workload, &mut faults);
    namespaces(objects, &mut faults);
    rights(objects, &pod["spec"], &mut faults);
    ports(objects, &pod["spec"], &mut faults);
    variables(objects, pod, &mut faults);
    ending(&pod["spec"], &mut faults);
    image(&pod["spec"], &mut faults);
    faults.0
}

struct Faults(Vec<String>);

impl Faults {
    /// Records a fault unless a condition holds.
    fn unless(&mut self, holds: bool, fault: impl Into<String>) {
        if !holds {
            self.0.push(fault.into());
        }
    }

    /// Records a fault unless two values are equal and exist.
    fn unless_equal(&mut self, actual: &Value, expected: &Value, what: &str) {
        let holds = actual == expected && !actual.is_null();
        self.unless(holds, format!("{what}: {actual} is not {expected}"));
    }
}

/// Checks that all selectors match the labels of the pods.
fn labels(objects: &[Value], workload: &Value, faults: &mut Faults) {
    let template = &workload["spec"]["template"];
    let labels = &template["metadata"]["labels"];
    let application = labels[APPLICATION_LABELS[2]].clone();
    let wanted: Value = APPLICATION_LABELS.iter().map(|label| ((*label).to_owned(), application.clone())).collect();
    faults.unless_equal(labels, &wanted, "the labels of the pods");
    faults.unless_equal(&workload["spec"]["selector"]["matchLabels"], &wanted, "the selector of the workload");
    let mut selectors = 0;
    for object in objects {
        let spec = &object["spec"];
        let chosen = match object["kind"].as_str() {
            Some("Service") => vec![&spec["selector"]],
            Some("PodDisruptionBudget") => vec![&spec["selector"]["matchLabels"]],
            Some("NetworkPolicy") => {
                vec![&spec["podSelector"]["matchLabels"], &spec["ingress"][0]["from"][0]["podSelector"]["matchLabels"]]
            }
            _ => vec![],
        };
        selectors += chosen.len();
        for selector in chosen {
            faults.unless_equal(
                selector,
                &wanted,
                &format!("the selector of {} {}", object["kind"], object["metadata"]["name"]),
            );
        }
    }
    faults.unless(selectors == 5, format!("there are {selectors} selectors and not 5"));
    for spread in list(&template["spec"]["topologySpreadConstraints"]) {
        let chosen = spread["labelSelector"]["matchLabels"].as_object();
        let agrees = chosen
            .is_some_and(|all| !all.is_empty() && all.iter().all(|(label, value)| wanted.get(label) == Some(value)));
        faults.unless(agrees, "the spread constraint selects labels that the pods do not have");
    }
}

/// Checks that the disruption budget, the network policy and the container have the name of the workload, and that the
/// container requests processors and memory.
fn names(objects: &[Value], workload: &Value, faults: &mut Faults) {
    let name = &workload["metadata"]["name"];
    for kind in ["PodDisruptionBudget", "NetworkPolicy"] {
        let named = of_kind(objects, kind).map(|object| object["metadata"]["name"].clone()).unwrap_or_default();
        faults.unless_equal(&named, name, &format!("the name of the {kind}"));
    }
    let container = container(&workload["spec"]["template"]["spec"]);
    faults.unless_equal(&container["name"], name, "the name of the container");
    let amounts = [&container["resources"]["requests"]["cpu"], &container["resources"]["requests"]["memory"]];
    let limited = container["resources"]["limits"]["memory"].is_string();
    faults.unless(
        limited && amounts.iter().all(|one| one.is_string()),
        "the container must request cpu and memory, and limit memory",
    );
}

/// Checks that all objects are in the one namespace.
fn namespaces(objects: &[Value], faults: &mut Faults) {
    let Some(namespace) = of_kind(objects, "Namespace") else {
        return faults.unless(false, "there is no namespace, or more than one");
    };
    let name = &namespace["metadata"]["name"];
    for object in objects.iter().filter(|object| object["kind"] != "Namespace") {
        faults.unless_equal(&object["metadata"]["namespace"], name, &format!("the namespace of {}", object["kind"]));
    }
    unless_in_minikube("NAMESPACE", name, faults);
}

/// Checks that the pods have the rights that the provider needs, and no others.
fn rights(objects: &[Value], pod: &Value, faults: &mut Faults) {
    let [account, role, binding] =
        ["ServiceAccount", "Role", "RoleBinding"].map(|kind| of_kind(objects, kind).cloned().unwrap_or_default());
    let name = &account["metadata"]["name"];
    faults.unless_equal(&pod["serviceAccountName"], name, "the service account of the pods");
    let subject = json!([{ "kind": "ServiceAccount", "name": name, "namespace": account["metadata"]["namespace"] }]);
    faults.unless_equal(&binding["subjects"], &subject, "the subject of the role");
    let bound = json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role["metadata"]["name"] });
    faults.unless_equal(&binding["roleRef"], &bound, "the role that is bound");
    faults.unless_equal(&binding["metadata"]["name"], &role["metadata"]["name"], "the name of the binding");
    let namespace = role["metadata"]["namespace"].as_str().unwrap_or_default();
    let wanted: Value = serde_saphyr::from_str(&Service::new(namespace, "any").role(namespace)).unwrap();
    faults.unless_equal(&role, &wanted, "the role that the provider asks for");
    // Only these pods read the API. Other pods of the account get no token.
    faults.unless(pod["automountServiceAccountToken"] == true, "the pods have no token");
    faults.unless(account["automountServiceAccountToken"] == false, "every pod of the account has the token");
}

/// Checks that the Services, the network policy, the probes and the image use ports of the pods.
fn ports(objects: &[Value], pod: &Value, faults: &mut Faults) {
    let container = container(pod);
    let number = |name: &str| {
        let ports = list(&container["ports"]);
        ports.iter().find(|port| port["name"] == name).map_or(Value::Null, |port| port["containerPort"].clone())
    };
    let known = |name: &Value| name.as_str().is_some_and(|name| !number(name).is_null());
    for service in objects.iter().filter(|object| object["kind"] == "Service") {
        for port in list(&service["spec"]["ports"]) {
            faults.unless(known(&port["targetPort"]), format!("no port of the pods is {}", port["targetPort"]));
            faults.unless_equal(&port["name"], &port["targetPort"], "the name of a port of a service");
            faults.unless_equal(
                &port["port"],
                &number(port["name"].as_str().unwrap_or_default()),
                "a port of a service",
            );
        }
    }
    let headless = |object: &&Value| object["kind"] == "Service" && object["spec"]["clusterIP"] == "None";
    let peers = objects.iter().find(headless).cloned().unwrap_or_default();
    faults.unless_equal(
        &peers["spec"]["publishNotReadyAddresses"],
        &json!(true),
        "publication of peers that are not ready",
    );
    faults.unless_equal(&peers["spec"]["ports"][0]["name"], &json!(PORT_NAME), "the port of peers in their service");
    if let Some(stateful) = of_kind(objects, "StatefulSet") {
        faults.unless_equal(
            &stateful["spec"]["serviceName"],
            &peers["metadata"]["name"],
            "the service of the stateful set",
        );
    }
    let told = variable(&container, "GROUPCACHE_K8S_SERVICE")["value"].clone();
    faults.unless_equal(&told, &peers["metadata"]["name"], "the service in which the provider looks for peers");
    let users =
        objects.iter().find(|object| object["kind"] == "Service" && !headless(object)).cloned().unwrap_or_default();
    unless_in_minikube("SERVICE", &users["metadata"]["name"], faults);

    let policy = of_kind(objects, "NetworkPolicy").cloned().unwrap_or_default();
    let open = |n: usize| policy["spec"]["ingress"][n]["ports"][0]["port"].clone();
    faults.unless_equal(&open(0), &json!(PORT_NAME), "the port that peers alone reach");
    faults.unless(known(&open(0)) && known(&open(1)) && open(1) != open(0), "the policy opens wrong ports");
    faults.unless(policy["spec"]["ingress"][1]["from"].is_null(), "the policy keeps users out");

    for (probe, service) in
        [("startupProbe", "liveness"), ("livenessProbe", "liveness"), ("readinessProbe", "readiness")]
    {
        let wanted = json!({ "port": number("http"), "service": service });
        faults.unless_equal(&container[probe]["grpc"], &wanted, probe);
    }
    let group_port = variable(&container, "GROUP_PORT")["value"].clone();
    faults.unless_equal(&group_port, &json!(number(PORT_NAME).to_string()), "GROUP_PORT");
    faults.unless(
        image_variable("HTTP_ADDR") == Some(format!("[::]:{}", number("http"))),
        "the image serves users on another port, or not in both families",
    );
}

/// Checks that each variable of the pods is read, and has the meaning that the manifests intend.
fn variables(objects: &[Value], template: &Value, faults: &mut Faults) {
    let (pod, container) = (&template["spec"], container(&template["spec"]));
    let asked = RefCell::new(BTreeSet::new());
    let told = |name: &str| {
        asked.borrow_mut().insert(name.to_owned());
        let one = variable(&container, name);
        match one["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
            Some("status.podIP") => Some("10.0.0.7".to_owned()),
            Some("metadata.name") => Some("groupcache-0".to_owned()),
            Some(other) => Some(other.to_owned()),
            None => one["value"].as_str().map(ToOwned::to_owned),
        }
    };
    let me = Identity::from_vars(told).map(|me| (me.id().to_string(), me.listen().ip().to_string()));
    let pair = me.as_ref().map(|(id, ip)| (id.as_str(), ip.as_str()));
    faults.unless(pair.is_ok_and(|pair| pair == ("groupcache-0", "10.0.0.7")), format!("the identity is {me:?}"));
    let service = variable(&container, "GROUPCACHE_K8S_SERVICE")["value"].clone();
    match DiscoveryConfig::from_vars(told) {
        Ok(DiscoveryConfig::Kubernetes(config)) => {
            faults.unless_equal(&json!(config.service), &service, "the service of the provider");
        }
        _ => faults.unless(false, "the provider is not that of Kubernetes"),
    }
    let zone = &variable(&container, "GROUPCACHE_ZONE")["valueFrom"]["fieldRef"]["fieldPath"];
    faults.unless_equal(zone, &json!("metadata.labels['topology.kubernetes.io/zone']"), "GROUPCACHE_ZONE");
    let namespace = &variable(&container, "POD_NAMESPACE")["valueFrom"]["fieldRef"]["fieldPath"];
    faults.unless_equal(namespace, &json!("metadata.namespace"), "POD_NAMESPACE");
    for one in list(&container["env"]) {
        let name = one["name"].as_str().unwrap_or_default();
        faults.unless(
            asked.borrow().contains(name) || OTHER_VARIABLES.contains(&name),
            format!("the variable {name} is not read"),
        );
    }
    key(pod, &container, faults);
    if let Some(deployment) = of_kind(objects, "Deployment") {
        unless_in_minikube("DEPLOYMENT", &deployment["metadata"]["name"], faults);
        unless_in_minikube("APPLICATION", &template["metadata"]["labels"][APPLICATION_LABELS[2]], faults);
    }
}

/// Checks that the process reads its key from the Secret that `tools/minikube` makes, and that its database is on a
/// volume that the process may write to.
fn key(pod: &Value, container: &Value, faults: &mut Faults) {
    let volumes = list(&pod["volumes"]);
    let mounted = |what: &str| {
        let volume = volumes.iter().find(|volume| !volume[what].is_null())?;
        let mount = list(&container["volumeMounts"]).into_iter().find(|mount| mount["name"] == volume["name"])?;
        Some((volume.clone(), mount))
    };
    let Some((volume, mount)) = mounted("secret") else { return faults.unless(false, "no secret is mounted") };
    unless_in_minikube("SECRET", &volume["secret"]["secretName"], faults);
    let path = variable(container, "GROUPCACHE_CLUSTER_KEY_FILE")["value"].clone();
    let file = path.as_str().and_then(|path| path.strip_prefix(mount["mountPath"].as_str()?)?.strip_prefix('/'));
    let makes = |file: &str| minikube().contains(&format!("--from-file={file}=/dev/stdin"));
    faults.unless(file.is_some_and(makes), format!("{path} is not the file of the mounted secret"));
    let accepts_old = &variable(container, "GROUPCACHE_ACCEPT_OLD_KEYS")["value"];
    faults.unless(accepts_old == "0", "a new cluster accepts keys of release 0.1");
    let Some((_, mount)) = mounted("emptyDir") else { return faults.unless(false, "there is no volume to write to") };
    let directory = mount["mountPath"].as_str().unwrap_or_default();
    let database = image_variable("DATABASE").unwrap_or_default();
    faults.unless(
        database.strip_prefix(directory).is_some_and(|file| file.starts_with('/')),
        "the database is not on the volume to write to",
    );
    faults.unless(volumes.len() == 2 && list(&container["volumeMounts"]).len() == 2, "there are other volumes");
}

/// Checks that the grace period is longer than the pause of `preStop` and the end of the process together.
fn ending(pod: &Value, faults: &mut Faults) {
    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap_or_default();
    let pause = container(pod)["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64();
    faults.unless(
        pause.is_some_and(|pause| grace > pause + ENDING),
        format!("a grace period of {grace} s is too short after a pause of {pause:?} s"),
    );
}

/// Checks that the pods run the image that `tools/minikube` builds, as the user of that image, and not as root.
fn image(pod: &Value, faults: &mut Faults) {
    let user =
        dockerfile().lines().find_map(|line| line.strip_prefix("USER ")).map(ToOwned::to_owned).unwrap_or_default();
    let context = &pod["securityContext"];
    let runs_as = format!("{}:{}", context["runAsUser"], context["runAsGroup"]);
    faults.unless(
        user == runs_as && user != "0:0",
        format!("the user of the image is {user}, and the pods run as {runs_as}"),
    );
    let image = format!("\nIMAGE={}:", container(pod)["image"].as_str().unwrap_or_default());
    faults.unless(minikube().contains(&image), "tools/minikube builds another image");
}

fn container(pod: &Value) -> Value {
    pod["containers"][0].clone()
}

fn variable(container: &Value, name: &str) -> Value {
    list(&container["env"]).into_iter().find(|one| one["name"] == name).unwrap_or_default()
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

/// Reads the script that applies the manifests.
pub(crate) fn minikube() -> String {
    std::fs::read_to_string(root().join("tools/minikube")).unwrap()
}

/// Records a fault unless `tools/minikube` sets a variable to this value.
fn unless_in_minikube(name: &str, value: &Value, faults: &mut Faults) {
    let line = format!("{name}={}\n", value.as_str().unwrap_or_default());
    faults.unless(minikube().contains(&format!("\n{line}")), format!("tools/minikube has no line {line}"));
}

fn dockerfile() -> String {
    std::fs::read_to_string(root().join("deploy/Dockerfile")).unwrap()
}

/// Returns the value of a variable that the image sets.
fn image_variable(name: &str) -> Option<String> {
    let text = dockerfile();
    let set = text.lines().filter_map(|line| line.strip_prefix("ENV ")).flat_map(|line| line.split(' '));
    set.filter_map(|pair| pair.split_once('=')).find(|(set, _)| *set == name).map(|(_, value)| value.to_owned())
}
