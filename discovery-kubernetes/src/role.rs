//! Rights of the provider, as YAML to apply and as commands to run.

use crate::object::Kind;

/// Returns the Role for one namespace.
pub(crate) fn of(kind: Kind, namespace: &str) -> String {
    let (name, group, resource) = (name(kind), kind.group(), kind.resource());
    format!(
        "apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {name}
  namespace: {namespace}
rules:
  - apiGroups: [\"{group}\"]
    resources: [\"{resource}\"]
    verbs: [\"list\", \"watch\"]
"
    )
}

/// Returns commands that create the Role and bind it to the service account that the refusal of the API server names,
/// otherwise to the default service account. A single line, because the commands are part of a log line.
pub(crate) fn commands(kind: Kind, namespace: &str, refusal: &str) -> String {
    let (name, resource) = (name(kind), kind.resource());
    let group = if kind.group().is_empty() { String::new() } else { format!(".{}", kind.group()) };
    let (of_namespace, account) = account(refusal).unwrap_or((namespace, "default"));
    format!(
        "kubectl -n {namespace} create role {name} --verb=list,watch --resource={resource}{group} && kubectl -n \
         {namespace} create rolebinding {name} --role={name} --serviceaccount={of_namespace}:{account}"
    )
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Pods => "pod-reader",
        Kind::Slices => "endpointslice-reader",
    }
}

/// Returns the namespace and the name of the service account in a refusal, if a command can hold their characters.
fn account(refusal: &str) -> Option<(&str, &str)> {
    let (_, user) = refusal.split_once("system:serviceaccount:")?;
    let end = user.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':')))?;
    user.get(..end)?.split_once(':')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that the commands name the service account of the refusal.
    #[test]
    fn commands_name_service_account_of_refusal() {
        let refusal = r#"pods is forbidden: User "system:serviceaccount:prod:users-sa" cannot list resource "pods""#;
        assert_eq!(account(refusal), Some(("prod", "users-sa")));
        assert_eq!(
            commands(Kind::Pods, "shared", refusal),
            "kubectl -n shared create role pod-reader --verb=list,watch --resource=pods && kubectl -n shared create \
             rolebinding pod-reader --role=pod-reader --serviceaccount=prod:users-sa"
        );
        let slices = commands(Kind::Slices, "shared", "");
        assert!(slices.contains("--resource=endpointslices.discovery.k8s.io "), "{slices}");
        assert!(slices.ends_with("--serviceaccount=shared:default"), "{slices}");
        for other in ["", "User \"jane\" cannot", "system:serviceaccount:", "system:serviceaccount:a"] {
            assert_eq!(account(other), None, "{other}");
        }
    }
}
