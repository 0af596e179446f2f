//! What the objects of one directory say of each other, of the image, and of the provider.

use std::{cell::RefCell, collections::BTreeSet};

use discovery_kubernetes::{APPLICATION_LABELS, PORT_NAME, Pods, Service};
use groupcache_discovery::{DiscoveryConfig, Identity};
use serde_json::{Value, json};

use super::{
    manifests::{of_kind, workload},
    root,
};

/// What the process takes from SIGTERM to its end, at most: 3 s to drain, 2 s for requests, 15 s for the values that others
/// take over and for loads, 1 s to withdraw, 1 s for the tasks of the connections.
const ENDING: u64 = 22;
/// What the service and the libraries read, beside what says who it is and who finds its peers.
const OTHER_VARIABLES: [&str; 2] = ["POD_NAMESPACE", "GROUPCACHE_CLUSTER_KEY_FILE"];

/// What does not agree.
pub(crate) fn faults(objects: &[Value]) -> Vec<String> {
    let mut faults = Faults(Vec::new());
    let Some(workload) = workload(objects) else { return vec!["there is not one workload".to_owned()] };
    let pod = &workload["spec"]["template"];
    let found = labels(objects, workload, &mut faults);
    names(objects, workload, &mut faults);
    namespaces(objects, &mut faults);
    rights(objects, &pod["spec"], &found, &mut faults);
    ports(objects, &pod["spec"], &mut faults);
    variables(objects, &pod["spec"], &found, &mut faults);
    ending(&pod["spec"], &mut faults);
    image(&pod["spec"], &mut faults);
    faults.0
}

struct Faults(Vec<String>);

impl Faults {
    fn unless(&mut self, holds: bool, fault: impl Into<String>) {
        if !holds {
            self.0.push(fault.into());
        }
    }

    fn unless_equal(&mut self, this: &Value, that: &Value, what: &str) {
        self.unless(this == that && !this.is_null(), format!("{what}: {this} is not {that}"));
    }
}

/// How pods find each other.
enum Found {
    ByLabels { application: String },
    ByService { name: String },
}

/// All selectors choose the pods, by the labels of the application.
fn labels(objects: &[Value], workload: &Value, faults: &mut Faults) -> Found {
    let template = &workload["spec"]["template"];
    let env =
        |name: &str| variable(&container(&template["spec"]), name)["value"].as_str().unwrap_or_default().to_owned();
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
    faults.unless(selectors == 5, format!("{selectors} selectors"));
    for spread in list(&template["spec"]["topologySpreadConstraints"]) {
        let chosen = spread["labelSelector"]["matchLabels"].as_object();
        let agrees = chosen
            .is_some_and(|all| !all.is_empty() && all.iter().all(|(label, value)| wanted.get(label) == Some(value)));
        faults.unless(agrees, "pods are spread by other labels than they have");
    }
    if workload["kind"] == "StatefulSet" {
        Found::ByService { name: env("GROUPCACHE_K8S_SERVICE") }
    } else {
        let application = env("GROUPCACHE_K8S_APPLICATION");
        faults.unless_equal(&json!(application), &wanted[APPLICATION_LABELS[0]], "the application");
        Found::ByLabels { application }
    }
}

/// What is said of the pods has the name of what makes them.
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
        "it asks for processors and memory, and limits memory",
    );
}

/// Everything is in the one namespace.
fn namespaces(objects: &[Value], faults: &mut Faults) {
    let Some(namespace) = of_kind(objects, "Namespace") else { return faults.unless(false, "no namespace") };
    let name = &namespace["metadata"]["name"];
    for object in objects.iter().filter(|object| object["kind"] != "Namespace") {
        faults.unless_equal(&object["metadata"]["namespace"], name, &format!("the namespace of {}", object["kind"]));
    }
    told_by_minikube("NAMESPACE", name, faults);
}

/// The pods may do what the provider does, and no more.
fn rights(objects: &[Value], pod: &Value, found: &Found, faults: &mut Faults) {
    let [account, role, binding] =
        ["ServiceAccount", "Role", "RoleBinding"].map(|kind| of_kind(objects, kind).cloned().unwrap_or_default());
    let name = &account["metadata"]["name"];
    faults.unless_equal(&pod["serviceAccountName"], name, "the service account of the pods");
    let subject = json!([{ "kind": "ServiceAccount", "name": name, "namespace": account["metadata"]["namespace"] }]);
    faults.unless_equal(&binding["subjects"], &subject, "who has the role");
    let bound = json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role["metadata"]["name"] });
    faults.unless_equal(&binding["roleRef"], &bound, "the role that is bound");
    faults.unless_equal(&binding["metadata"]["name"], &role["metadata"]["name"], "the name of the binding");
    let namespace = role["metadata"]["namespace"].as_str().unwrap_or_default();
    let wanted = match found {
        Found::ByLabels { application } => Pods::new(namespace, application).role(namespace),
        Found::ByService { name } => Service::new(namespace, name).role(namespace),
    };
    let wanted: Value = serde_saphyr::from_str(&wanted).unwrap();
    faults.unless_equal(&role, &wanted, "the role that the provider asks for");
    // It reads the API, and whoever else uses the account does not.
    faults.unless(pod["automountServiceAccountToken"] == true, "the pods have no token");
    faults.unless(account["automountServiceAccountToken"] == false, "everyone has the token");
}

/// Services, policies and probes mean ports that the pods have, by their names.
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
        "peers are found before they are ready",
    );
    faults.unless_equal(&peers["spec"]["ports"][0]["name"], &json!(PORT_NAME), "the port of peers in their service");
    if let Some(stateful) = of_kind(objects, "StatefulSet") {
        faults.unless_equal(
            &stateful["spec"]["serviceName"],
            &peers["metadata"]["name"],
            "the service of the stateful set",
        );
        let told = variable(&container, "GROUPCACHE_K8S_SERVICE")["value"].clone();
        faults.unless_equal(&told, &peers["metadata"]["name"], "the service that peers are looked for in");
    }
    let users =
        objects.iter().find(|object| object["kind"] == "Service" && !headless(object)).cloned().unwrap_or_default();
    told_by_minikube("SERVICE", &users["metadata"]["name"], faults);

    let policy = of_kind(objects, "NetworkPolicy").cloned().unwrap_or_default();
    let open = |n: usize| policy["spec"]["ingress"][n]["ports"][0]["port"].clone();
    faults.unless_equal(&open(0), &json!(PORT_NAME), "the port that peers alone reach");
    faults.unless(known(&open(0)) && known(&open(1)) && open(1) != open(0), "the policy opens other ports");
    faults.unless(policy["spec"]["ingress"][1]["from"].is_null(), "users come from anywhere");

    for (probe, service) in
        [("startupProbe", "liveness"), ("livenessProbe", "liveness"), ("readinessProbe", "readiness")]
    {
        let wanted = json!({ "port": number("http"), "service": service });
        faults.unless_equal(&container[probe]["grpc"], &wanted, probe);
    }
    let group_port = variable(&container, "GROUP_PORT")["value"].clone();
    faults.unless_equal(&group_port, &json!(number(PORT_NAME).to_string()), "GROUP_PORT");
    faults.unless(
        image_variable("HTTP_ADDR").is_some_and(|at| at.ends_with(&format!(":{}", number("http")))),
        "the image serves users on another port",
    );
}

/// The variables are those that are read, and say what is meant.
fn variables(objects: &[Value], pod: &Value, found: &Found, faults: &mut Faults) {
    let container = container(pod);
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
    let who = me.as_ref().map(|(id, ip)| (id.as_str(), ip.as_str()));
    faults.unless(who.is_ok_and(|who| who == ("groupcache-0", "10.0.0.7")), format!("a pod is {me:?}"));
    match (DiscoveryConfig::from_vars(told), found) {
        (Ok(DiscoveryConfig::Kubernetes(config)), Found::ByLabels { application }) => {
            faults.unless(config.application.as_ref() == Some(application), "pods are found otherwise");
        }
        (Ok(DiscoveryConfig::Kubernetes(config)), Found::ByService { name }) => {
            faults.unless(config.service.as_ref() == Some(name), "pods are found otherwise");
        }
        _ => faults.unless(false, "the provider is none of Kubernetes"),
    }
    let namespace = &variable(&container, "POD_NAMESPACE")["valueFrom"]["fieldRef"]["fieldPath"];
    faults.unless_equal(namespace, &json!("metadata.namespace"), "POD_NAMESPACE");
    for one in list(&container["env"]) {
        let name = one["name"].as_str().unwrap_or_default();
        faults.unless(
            asked.borrow().contains(name) || OTHER_VARIABLES.contains(&name),
            format!("nobody reads the variable {name}"),
        );
    }
    key(objects, pod, &container, faults);
}

/// The Secret that `tools/minikube` makes is where the process looks for it; what it writes is on a volume that it may
/// write to.
fn key(objects: &[Value], pod: &Value, container: &Value, faults: &mut Faults) {
    let volumes = list(&pod["volumes"]);
    let mounted = |what: &str| {
        let volume = volumes.iter().find(|volume| !volume[what].is_null())?;
        let mount = list(&container["volumeMounts"]).into_iter().find(|mount| mount["name"] == volume["name"])?;
        Some((volume.clone(), mount))
    };
    let Some((volume, mount)) = mounted("secret") else { return faults.unless(false, "no secret is mounted") };
    told_by_minikube("SECRET", &volume["secret"]["secretName"], faults);
    let path = variable(container, "GROUPCACHE_CLUSTER_KEY_FILE")["value"].clone();
    let file = path.as_str().and_then(|path| path.strip_prefix(mount["mountPath"].as_str()?)?.strip_prefix('/'));
    let makes = |file: &str| minikube().contains(&format!("--from-file={file}=/dev/stdin"));
    faults.unless(file.is_some_and(makes), format!("{path} is not what is mounted"));
    let Some((_, mount)) = mounted("emptyDir") else { return faults.unless(false, "nothing can be written") };
    let directory = mount["mountPath"].as_str().unwrap_or_default();
    let database = image_variable("DATABASE").unwrap_or_default();
    faults.unless(
        database.strip_prefix(directory).is_some_and(|file| file.starts_with('/')),
        "the database cannot be written",
    );
    faults.unless(volumes.len() == 2 && list(&container["volumeMounts"]).len() == 2, "other volumes");
    if let Some(deployment) = of_kind(objects, "Deployment") {
        told_by_minikube("DEPLOYMENT", &deployment["metadata"]["name"], faults);
        told_by_minikube("APPLICATION", &variable(container, "GROUPCACHE_K8S_APPLICATION")["value"], faults);
    }
}

/// The grace period is enough, and one pod at a time is taken away.
fn ending(pod: &Value, faults: &mut Faults) {
    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap_or_default();
    let pause = container(pod)["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64();
    faults
        .unless(pause.is_some_and(|pause| grace > pause + ENDING), format!("{grace} s are not enough after {pause:?}"));
}

/// It runs as the user of the image, who is not root.
fn image(pod: &Value, faults: &mut Faults) {
    let user =
        dockerfile().lines().find_map(|line| line.strip_prefix("USER ")).map(ToOwned::to_owned).unwrap_or_default();
    let context = &pod["securityContext"];
    let runs_as = format!("{}:{}", context["runAsUser"], context["runAsGroup"]);
    faults.unless(user == runs_as && user != "0:0", format!("the image is made for {user}, and runs as {runs_as}"));
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

/// The script that applies them.
pub(crate) fn minikube() -> String {
    std::fs::read_to_string(root().join("tools/minikube")).unwrap()
}

fn told_by_minikube(name: &str, value: &Value, faults: &mut Faults) {
    let line = format!("{name}={}\n", value.as_str().unwrap_or_default());
    faults.unless(minikube().contains(&format!("\n{line}")), format!("tools/minikube does not say {line}"));
}

fn dockerfile() -> String {
    std::fs::read_to_string(root().join("deploy/Dockerfile")).unwrap()
}

/// What the image sets.
fn image_variable(name: &str) -> Option<String> {
    let text = dockerfile();
    let set = text.lines().filter_map(|line| line.strip_prefix("ENV ")).flat_map(|line| line.split(' '));
    set.filter_map(|pair| pair.split_once('=')).find(|(set, _)| *set == name).map(|(_, value)| value.to_owned())
}
