//! Types: checks that a manifest is an object of its API version and kind, and that no field is lost when it is read.

use k8s_openapi::{
    Resource,
    api::{
        apps::v1::{Deployment, StatefulSet},
        core::v1::{Namespace, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
        rbac::v1::{Role, RoleBinding},
    },
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// Fields for which the API server accepts certain words only, although their type is any text.
const WORDS: [(&str, &[&str]); 11] = [
    ("type", &["RollingUpdate", "NodePort", "RuntimeDefault"]),
    ("podManagementPolicy", &["Parallel"]),
    ("unhealthyPodEvictionPolicy", &["AlwaysAllow"]),
    ("whenUnsatisfiable", &["ScheduleAnyway"]),
    ("topologyKey", &["topology.kubernetes.io/zone", "kubernetes.io/hostname"]),
    ("matchLabelKeys", &["pod-template-hash"]),
    ("imagePullPolicy", &["IfNotPresent"]),
    ("protocol", &["TCP"]),
    ("policyTypes", &["Ingress"]),
    ("drop", &["ALL"]),
    ("clusterIP", &["None"]),
];

/// Reads a manifest as the type that its API version and kind name, and checks every field.
pub(crate) fn check(written: &Value) -> Result<(), String> {
    let known = [
        of::<Namespace>,
        of::<ServiceAccount>,
        of::<Service>,
        of::<PodDisruptionBudget>,
        of::<NetworkPolicy>,
        of::<Role>,
        of::<RoleBinding>,
        of::<Deployment>,
        of::<StatefulSet>,
    ];
    let read = known.into_iter().find_map(|of| of(written));
    let read = read.ok_or_else(|| format!("no type is {} {}", written["apiVersion"], written["kind"]))??;
    holds(&read, written, "")
}

fn of<T: Resource + Serialize + DeserializeOwned>(written: &Value) -> Option<Result<Value, String>> {
    let is_it = written["apiVersion"] == T::API_VERSION && written["kind"] == T::KIND;
    let read = || serde_json::to_value(T::deserialize(written).map_err(|e| e.to_string())?).map_err(|e| e.to_string());
    is_it.then(read)
}

/// Checks that everything in `written` is also in `read`.
fn holds(read: &Value, written: &Value, at: &str) -> Result<(), String> {
    let field = at.trim_end_matches(|c: char| c.is_ascii_digit() || c == '/');
    let field = field.rsplit('/').next().unwrap_or_default();
    match (read, written) {
        (Value::Object(read), Value::Object(written)) => written.iter().try_for_each(|(key, written)| {
            let read = read.get(key).ok_or_else(|| format!("{at}/{key} is no field"))?;
            holds(read, written, &format!("{at}/{key}"))
        }),
        (Value::Array(read), Value::Array(written)) if read.len() == written.len() => read
            .iter()
            .zip(written)
            .enumerate()
            .try_for_each(|(n, (read, written))| holds(read, written, &format!("{at}/{n}"))),
        (read, Value::String(word)) if read == written => match WORDS.iter().find(|(name, _)| *name == field) {
            Some((_, words)) if !words.contains(&word.as_str()) => Err(format!("{at} must not be {word}")),
            _ => Ok(()),
        },
        (read, written) if read == written => Ok(()),
        _ => Err(format!("{at} is {written}, and is read as {read}")),
    }
}
