//! The rights that the provider needs, as what to apply to give them.

use crate::object::Kind;

/// The Role for one namespace.
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

/// The Role, and who needs it as far as the refusal of the API server tells.
pub(crate) fn with_binding(kind: Kind, namespace: &str, refusal: &str) -> String {
    let (role, name) = (of(kind, namespace), name(kind));
    let (of_namespace, account) = account(refusal).unwrap_or((namespace, "default"));
    format!(
        "{role}---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {name}
  namespace: {namespace}
subjects:
  - kind: ServiceAccount
    name: {account}
    namespace: {of_namespace}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {name}
"
    )
}

/// The right to read the zones of machines.
pub(crate) const NODES: &str = "apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: node-reader
rules:
  - apiGroups: [\"\"]
    resources: [\"nodes\"]
    verbs: [\"get\"]
";

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Pods => "pod-reader",
        Kind::Slices => "endpointslice-reader",
    }
}

/// Namespace and name of the service account that a refusal speaks of, if they are such that YAML can hold them.
fn account(refusal: &str) -> Option<(&str, &str)> {
    let (_, user) = refusal.split_once("system:serviceaccount:")?;
    let end = user.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':')))?;
    user.get(..end)?.split_once(':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_role_is_bound_to_whom_the_refusal_names() {
        let refusal = r#"pods is forbidden: User "system:serviceaccount:prod:users-sa" cannot list resource "pods""#;
        assert_eq!(account(refusal), Some(("prod", "users-sa")));
        let text = with_binding(Kind::Pods, "shared", refusal);
        assert!(text.contains("name: users-sa\n    namespace: prod\n"), "{text}");
        assert!(text.contains("name: pod-reader\n  namespace: shared\n"), "{text}");
        for other in ["", "User \"jane\" cannot", "system:serviceaccount:", "system:serviceaccount:a"] {
            assert_eq!(account(other), None, "{other}");
        }
    }
}
