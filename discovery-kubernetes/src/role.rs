//! Rights of the provider, as YAML to apply.

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

/// Returns the Role and a RoleBinding to the service account that the refusal of the API server names, otherwise to the
/// default service account.
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

/// ClusterRole with the right to read the zones of machines.
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

/// Returns the namespace and the name of the service account in a refusal, if YAML can hold their characters.
fn account(refusal: &str) -> Option<(&str, &str)> {
    let (_, user) = refusal.split_once("system:serviceaccount:")?;
    let end = user.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':')))?;
    user.get(..end)?.split_once(':')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that the RoleBinding names the service account of the refusal.
    #[test]
    fn role_binding_names_service_account_of_refusal() {
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
