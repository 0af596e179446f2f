//! Manifests: reads the files of `deploy/kubernetes` and builds their kustomizations.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value;

use super::root;

/// Files of `deploy/kubernetes`, by their paths below that directory.
pub(crate) type Files = BTreeMap<PathBuf, Value>;

/// Contents of a `kustomization.yaml`, with the fields that these manifests use.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Kustomization {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) resources: Vec<PathBuf>,
    #[serde(default)]
    pub(crate) patches: Vec<Patch>,
    #[serde(default)]
    pub(crate) images: Vec<Image>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Patch {
    pub(crate) path: PathBuf,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Image {
    pub(crate) name: String,
    pub(crate) new_tag: String,
}

/// Reads all files.
pub(crate) fn read() -> Files {
    let root = root().join("deploy/kubernetes");
    let mut files = Files::new();
    let mut directories = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let value = serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            files.insert(path.strip_prefix(&root).unwrap().to_owned(), value);
        }
    }
    files
}

/// Returns the kustomization of a directory.
pub(crate) fn kustomization(files: &Files, directory: &Path) -> Result<Kustomization, String> {
    let path = directory.join("kustomization.yaml");
    let value = files.get(&path).ok_or_else(|| format!("{} is missing", path.display()))?;
    Kustomization::deserialize(value).map_err(|e| format!("{}: {e}", path.display()))
}

/// Returns the objects that `kubectl apply -k` makes from a directory, without patches.
pub(crate) fn build(files: &Files, directory: &Path) -> Result<Vec<Value>, String> {
    let mut objects = Vec::new();
    for resource in kustomization(files, directory)?.resources {
        let path = normal(&directory.join(&resource));
        match files.get(&path) {
            Some(object) => objects.push(object.clone()),
            None => objects.extend(build(files, &path)?),
        }
    }
    Ok(objects)
}

/// Returns a path without `..` in it.
fn normal(path: &Path) -> PathBuf {
    let mut parts: Vec<_> = Vec::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => drop(parts.pop()),
            other => parts.push(other),
        }
    }
    parts.into_iter().collect()
}

/// Returns the object of a kind, or `None` unless there is exactly one.
pub(crate) fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Option<&'a Value> {
    let mut all = objects.iter().filter(|object| object["kind"] == kind);
    all.next().filter(|_| all.next().is_none())
}

/// Returns the Deployment or the StatefulSet.
pub(crate) fn workload(objects: &[Value]) -> Option<&Value> {
    of_kind(objects, "Deployment").or_else(|| of_kind(objects, "StatefulSet"))
}
