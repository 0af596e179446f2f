//! Checks that the manifests agree with the API, with each other, with the image and with the provider, so that a name
//! that is misspelt is found.

use std::{collections::BTreeSet, path::Path};

use serde_json::Value;

use crate::support::{
    agreement,
    manifests::{self, Files, build, kustomization, workload},
    typed,
};

/// Checks the manifests as they are in the repository.
#[test]
fn manifests_have_no_faults() {
    let faults = faults(&manifests::read());
    assert!(faults.is_empty(), "{faults:#?}");
}

/// Checks the names and the ports that the documents name.
#[test]
fn manifests_have_the_documented_names() {
    let files = manifests::read();
    let objects = build(&files, Path::new("base")).unwrap();
    let names: BTreeSet<_> = objects.iter().map(|one| (text(&one["kind"]), text(&one["metadata"]["name"]))).collect();
    for (kind, name) in [
        ("Namespace", "groupcache-example"),
        ("Service", "groupcache-svc"),
        ("ServiceAccount", "groupcache-sa"),
        ("Role", "endpointslice-reader"),
        ("RoleBinding", "endpointslice-reader"),
        ("Deployment", "groupcache"),
        ("Service", "groupcache-peers"),
        ("PodDisruptionBudget", "groupcache"),
        ("NetworkPolicy", "groupcache"),
    ] {
        assert!(names.contains(&(kind, name)), "{kind} {name} among {names:?}");
    }
    assert_eq!(workload(&objects).unwrap()["spec"]["replicas"], 3);
    let port = &files[Path::new("minikube/service.yaml")]["spec"]["ports"][0];
    assert_eq!((&port["port"], &port["nodePort"]), (&3000.into(), &30000.into()));
}

/// Changes each key, each text and each port number of the manifests, one at a time, and checks that a fault is found.
/// [`FREE`] lists the places to which nothing refers.
#[test]
fn changed_names_and_ports_are_found() {
    let files = manifests::read();
    let (mut changed, mut missed) = (0, Vec::new());
    for (path, file) in &files {
        for change in changes(file) {
            let mut files = files.clone();
            let (what, value) = change;
            files.insert(path.clone(), value);
            changed += 1;
            if faults(&files).is_empty() && !FREE.iter().any(|free| what.ends_with(free)) {
                missed.push(format!("{}{what}", path.display()));
            }
        }
    }
    println!("{changed} changes");
    assert!(changed > 500, "only {changed} changes");
    assert!(missed.is_empty(), "nothing finds a change of {missed:#?}");
}

/// Places that may have any value: quantities, and text for people.
const FREE: [&str; 6] = [
    "/pod-security.kubernetes.io~1enforce renamed",
    "/pod-security.kubernetes.io~1enforce",
    "/resources/requests/cpu",
    "/resources/requests/memory",
    "/resources/limits/memory",
    "/emptyDir/sizeLimit",
];

/// Returns all faults of the manifests.
fn faults(files: &Files) -> Vec<String> {
    let mut faults: Vec<_> = files
        .iter()
        .filter(|(path, _)| !path.ends_with("kustomization.yaml"))
        .filter_map(|(path, file)| typed::check(file).err().map(|why| format!("{}: {why}", path.display())))
        .collect();
    let directories: BTreeSet<_> = files.keys().filter_map(|path| path.parent()).collect();
    for directory in directories {
        faults.extend(listed(files, directory).err());
    }
    for directory in ["base", "statefulset"] {
        match build(files, Path::new(directory)) {
            Ok(objects) => {
                faults.extend(agreement::faults(&objects).into_iter().map(|why| format!("{directory}: {why}")))
            }
            Err(why) => faults.push(why),
        }
    }
    faults.extend(patched(files).err());
    faults
}

/// Checks that the kustomization of a directory lists exactly the files of that directory.
fn listed(files: &Files, directory: &Path) -> Result<(), String> {
    let kustomization = kustomization(files, directory)?;
    let named = (kustomization.api_version.as_str(), kustomization.kind.as_str());
    if named != ("kustomize.config.k8s.io/v1beta1", "Kustomization") {
        return Err(format!("{}: {named:?}", directory.display()));
    }
    build(files, directory)?;
    let lists = kustomization.resources.iter().chain(kustomization.patches.iter().map(|patch| &patch.path));
    let listed: BTreeSet<_> =
        lists.filter(|path| path.extension().is_some()).map(|path| directory.join(path)).collect();
    let there = files.keys().filter(|path| path.parent() == Some(directory) && !path.ends_with("kustomization.yaml"));
    let there: BTreeSet<_> = there.cloned().collect();
    if listed != there { Err(format!("{}: lists {listed:?}, has {there:?}", directory.display())) } else { Ok(()) }
}

/// Checks that the overlay `minikube` patches objects and ports that exist, and uses the image that `tools/minikube`
/// builds.
fn patched(files: &Files) -> Result<(), String> {
    let overlay = Path::new("minikube");
    let (objects, kustomization) = (build(files, overlay)?, kustomization(files, overlay)?);
    for patch in &kustomization.patches {
        let patch = files.get(&overlay.join(&patch.path)).ok_or("the file of a patch is missing")?;
        let id = |object: &Value| {
            [&object["apiVersion"], &object["kind"], &object["metadata"]["name"], &object["metadata"]["namespace"]]
                .map(Value::to_string)
        };
        let target = objects.iter().find(|object| id(object) == id(patch));
        let target = target.ok_or_else(|| format!("no object is {:?}", id(patch)))?;
        let ports = |object: &Value| -> Vec<_> {
            object["spec"]["ports"].as_array().into_iter().flatten().map(|port| port["port"].clone()).collect()
        };
        if ports(target) != ports(patch) {
            return Err(format!("the ports {:?} are patched as {:?}", ports(target), ports(patch)));
        }
        if patch["spec"]["ports"][0]["nodePort"] != 30_000 {
            return Err("the port of the machine is not 30000, as documented".to_owned());
        }
    }
    let workload = workload(&objects).ok_or("no workload")?;
    let image = &workload["spec"]["template"]["spec"]["containers"][0]["image"];
    let tagged = kustomization.images.iter().find(|one| one.name == text(image));
    let tagged = tagged.map(|one| format!("IMAGE={}:{}\n", one.name, one.new_tag));
    match tagged.filter(|tagged| agreement::minikube().contains(tagged)) {
        None => Err(format!("tools/minikube does not build the image {image} of the workload")),
        Some(_) => Ok(()),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Returns every variant of a file with one change, with the place of the change.
fn changes(file: &Value) -> Vec<(String, Value)> {
    let mut places = Vec::new();
    walk(file, String::new(), &mut places);
    let mut all = Vec::new();
    for place in places {
        let mut changed = file.clone();
        let value = changed.pointer_mut(&place).unwrap();
        let is_port = place.to_lowercase().ends_with("port");
        match value {
            Value::String(text) => text.push('x'),
            Value::Number(number) if is_port => *value = (number.as_u64().unwrap() + 1).into(),
            _ => {}
        }
        if &changed != file {
            all.push((place.clone(), changed));
        }
        let (parent, key) = place.rsplit_once('/').unwrap();
        let key = key.replace("~1", "/").replace("~0", "~");
        let mut renamed = file.clone();
        if let Value::Object(map) = renamed.pointer_mut(parent).unwrap() {
            let value = map.remove(&key).unwrap();
            map.insert(format!("{key}x"), value);
            all.push((format!("{place} renamed"), renamed));
        }
    }
    all
}

/// Collects the JSON pointers of everything below a value.
fn walk(value: &Value, at: String, places: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let at = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
                places.push(at.clone());
                walk(value, at, places);
            }
        }
        Value::Array(list) => {
            for (n, value) in list.iter().enumerate() {
                let at = format!("{at}/{n}");
                places.push(at.clone());
                walk(value, at, places);
            }
        }
        _ => {}
    }
}
